from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softdimo.report.equation import mathml, prose, text, weighted_sum


def shape(equation: str) -> str:
    """The MathML without attributes."""
    root = ET.fromstring(mathml(equation))
    for element in root.iter():
        element.attrib.clear()
    return ET.tostring(root, encoding="unicode")


def test_scripts_greek_and_sums() -> None:
    assert shape("sum_{masked i} p_phi^i") == (
        "<math><mrow><munder><mo>∑</mo><mrow><mi>masked</mi><mspace /><mi>i</mi></mrow></munder><mspace />"
        "<msubsup><mi>p</mi><mi>φ</mi><mi>i</mi></msubsup></mrow></math>"
    )


@pytest.mark.parametrize(
    ("equation", "blackboard"),
    [("E_t x", True), ("E[x]", True), ("E_r[x]", True), ("E^T p", False), ("E_dec^T p", False)],
)
def test_expectations_are_told_from_embedding_tables(equation: str, blackboard: bool) -> None:
    assert ("𝔼" in mathml(equation)) == blackboard


def test_text_keeps_scripts_and_replaces_words() -> None:
    assert text("-E_r[log D(e_r)] + lambda_i || sum_{masked i}") == "−E_r[log D(e_r)] + λ_i ‖ ∑_{masked i}"
    assert text("L_{GAN}") == "L_GAN"
    assert text("alphabet") == "alphabet"


def test_prose_replaces_greek_words_only() -> None:
    assert prose("match p_psi to p_phi; psi-like, epsilons, `lambda`") == "match p_ψ to p_φ; ψ-like, epsilons, `λ`"


def test_semicolons_make_lines() -> None:
    assert shape("a; b").count("<mtr>") == 2


def test_weighted_sum() -> None:
    assert weighted_sum("L", [("1", "A"), ("4", "B"), ("-0.5", "C")]) == "L = A + 4 B - 0.5 C"
    assert weighted_sum("L", [("-1", "A")]) == "L = -A"
    assert weighted_sum("L", []) == "L = 0"


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=40))
def test_anything_gives_wellformed_mathml(equation: str) -> None:
    ET.fromstring(mathml(equation))
    text(equation)


def test_markup_in_an_equation_is_escaped() -> None:
    assert "<script" not in mathml("<script>alert(1)</script>")

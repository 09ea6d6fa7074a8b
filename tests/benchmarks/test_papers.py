"""The papers' tables: every published row is shown, ours beside it, and unlike evaluators never share a column."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import papers
import provenance
import tables
from collect import collect

from softdimo.errors import DataError

ONE, TWO = papers.TABLES[:2]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder for results."""
    monkeypatch.setattr(provenance, "RESULTS", tmp_path / "results")
    (tmp_path / "results" / "imagenet256").mkdir(parents=True)
    return tmp_path / "results"


def measured(results, run, rows, evaluator="a" * 64, samples=50_000):
    """Collect a finished run with these rows: name -> Fréchet distance."""
    folder = results.parent / run
    folder.mkdir()
    made = [
        {"name": name, "of": "student", "n": samples, "passes": 1.0}
        | {"metrics": {"fd": {"value": fd, "sd": 0.05, "values": [fd, fd]}, "recall": {"value": 0.5, "sd": None}}}
        for name, fd in rows.items()
    ]
    made.append({"name": "real held out", "of": "real", "n": 9, "metrics": {"fd": {"value": 1.0, "sd": None}}})
    table = {"evaluator_hash": evaluator, "samples": samples, "seeds": [0, 1], "rows": made, "lock": {"command": "x"}}
    (folder / "eval.json").write_text(json.dumps(table), encoding="utf-8")
    (folder / "lock.json").write_text(json.dumps({"git": "1234", "command": "x"}), encoding="utf-8")
    return collect(folder, "imagenet256")


def cells(page, method, steps):
    """The cells of a published row by the heads of its table."""
    heads = []
    for line in page.splitlines():
        words = [w.strip() for w in line.strip("|").split("|")]
        if words[0] == "published":
            heads = words
        elif words[:2] == [method, steps]:
            return dict(zip(heads, words, strict=True))
    raise AssertionError(f"{method} is not there")


@pytest.mark.parametrize("paper", papers.TABLES, ids=lambda p: p.file)
def test_every_published_row_is_shown_under_a_known_evaluator(paper):
    published = papers.read(paper)
    assert set(published) <= set(papers.EVALUATORS)
    page = tables.paper(published, None)
    for evaluator, lines in published.items():
        (part,) = (p for p in page.split("\n\n") if f"| {lines[0]['method']} | {lines[0]['steps']} |" in p)
        assert part.count("\n") == len(lines) + 1, f"the table of {evaluator} has other rows too"
        for line in lines:
            shown = cells(page, line["method"], line["steps"])
            for column in set(papers.COLUMNS) & set(line):
                assert shown.get(papers.COLUMNS[column], "") == line[column]
            assert not any(value for head, value in shown.items() if head.startswith("our "))


def test_what_the_second_paper_says_of_its_student():
    page = tables.paper(papers.read(TWO), None)
    assert (cells(page, "Soft-Di[M]O", "1")["FID ↓"], cells(page, "MaskGit", "16")["FID ↓"]) == ("6.40", "6.60")


def test_our_rows_land_beside_the_published_ones_of_their_name(results):
    measured(results, "first", {"Di[M]O, 1 step": 6.91, "MaskGit, 16 steps": 6.7})
    path = measured(results, "second", {"Soft-Di[M]O-MaskBit, 1 step": 2.5, "something else": 3.5})
    assert path == results / "imagenet256" / "second.json"
    assert "command" not in path.read_text(encoding="utf-8")
    found = papers.ours("imagenet256", results)
    second, first = (tables.paper(papers.read(p), found) for p in (TWO, ONE))
    student = cells(second, "Di[M]O", "1")
    assert student["our Fréchet distance ↓"] == "6.91 ± 0.05"
    assert student["our recall ↑"] == "0.500"
    assert (student["FID ↓"], student["our Inception score ↑"], student["our density ↑"]) == ("6.91", "–", "–")
    assert cells(second, "MaskGit", "16")["our Fréchet distance ↓"] == "6.70 ± 0.05"
    assert not cells(second, "MaskGit", "8")["our Fréchet distance ↓"]
    assert cells(first, "Soft-Di[M]O-MaskBit", "1")["our Fréchet distance ↓"] == "2.50 ± 0.05"
    assert not cells(first, "Soft-Di[M]O-MaskBit + train longer", "1")["our Fréchet distance ↓"]
    everything = [row for paper in (ONE, TWO) for lines in papers.read(paper).values() for row in lines]
    assert [r["name"] for r in found.others(everything)] == ["something else"]
    assert "a" * 12 in tables.ours(found)
    assert "fewer" not in tables.ours(found)


@pytest.mark.parametrize(
    ("changed", "said"), [({"evaluator": "b" * 64}, "evaluator_hash"), ({"samples": 5000}, "samples is 5000")]
)
def test_unlike_evaluators_are_refused(results, changed, said):
    measured(results, "first", {"Di[M]O, 1 step": 6.9})
    measured(results, "second", {"MaskGit, 16 steps": 6.6}, **changed)
    with pytest.raises(DataError, match=rf"second\.json: {said}.*first\.json"):
        papers.ours("imagenet256", results)


def test_two_rows_of_one_name_are_refused(results):
    measured(results, "first", {"Di[M]O, 1 step": 6.9})
    measured(results, "second", {"Di[M]O, 1 step": 6.8})
    with pytest.raises(DataError, match=r"second\.json: the row 'Di\[M\]O, 1 step' is in first\.json too"):
        papers.ours("imagenet256", results)


def test_a_file_that_is_no_run_is_named(results):
    (results / "imagenet256" / "other.json").write_text('{"rows": []}', encoding="utf-8")
    with pytest.raises(DataError, match=r"other\.json is not a run"):
        papers.ours("imagenet256", results)


def test_fewer_images_than_the_papers_are_said(results):
    assert "empty" in tables.ours(papers.ours("imagenet256", results))
    measured(results, "first", {"Di[M]O, 1 step": 12.0}, samples=5000)
    assert "fewer images" in tables.ours(papers.ours("imagenet256", results))

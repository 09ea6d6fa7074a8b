"""The recipe of the public Di[M]O script's choices: its table is true, and its terms give the recorded gradients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from pydantic import BaseModel

from benchmarks.parity_checks.case import RELATIVE, Case
from benchmarks.parity_checks.class_conditional import sequence, tokens_and_classes
from benchmarks.parity_checks.maskgit import Given
from softdimo import recipe
from softdimo.cli.explain import explain
from softdimo.kinds import Cond, Teacher
from softdimo.math.masking import apply_mask
from softdimo.math.rollout import Roll
from softdimo.math.soft import Relaxation
from softdimo_plugins.losses import dimo
from softdimo_plugins.losses.dimo import DiMO, DiMOTerm
from softdimo_plugins.teachers.maskgit import MaskGit

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "recipes" / "reference"
OFFICIAL = recipe.load(FOLDER / "maskgit_dimo_official.yaml").recipe
TABLE = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d+", line)
]


def settings() -> DiMO:
    """Those of the recipe's only term."""
    assert OFFICIAL.train is not None
    (term,) = OFFICIAL.train.terms
    assert isinstance(term, DiMO)
    return term


def found(path: str) -> tuple[BaseModel, str]:
    """The settings that hold a field of the official recipe, and its name there; list items go by `use`."""
    at: Any = OFFICIAL
    *inner, last = path.split(".")
    for key in inner:
        at = next(x for x in at if x.use == key) if isinstance(at, tuple) else getattr(at, key)
    return at, last


def said(cell: str) -> Any:
    value = recipe_value(re.fullmatch(r"`(.*)`", cell)[1])  # type: ignore[index]
    return tuple(value) if isinstance(value, list) else value


def recipe_value(text: str) -> Any:
    """As a recipe reads it: 1e-6 is a number."""
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def test_the_table_has_all_deviations() -> None:
    assert {int(re.match(r"\d+", row[0])[0]) for row in TABLE} == set(range(1, 17))  # type: ignore[index]
    assert all(len(row) == 8 for row in TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_fields_exist_and_values_are_real(row: list[str]) -> None:
    _, _, paper, code, field, default, official, why = row
    assert paper
    assert code
    if field.startswith("file "):
        assert (ROOT / said(field.removeprefix("file "))).is_file()
        assert why
        return
    holder, name = found(said(field))
    known = type(holder).model_fields[name]
    assert known.description
    if default:
        assert known.default == said(default)
        assert why
    else:
        assert known.is_required()
    value = getattr(holder, name)
    if name == "reference":
        assert Path(value) == (FOLDER / said(official)).resolve()
    else:
        assert value == said(official)


def test_every_field_of_the_term_is_named_in_the_recipe() -> None:
    """So that a default that changes does not change the reference."""
    written = yaml.safe_load((FOLDER / "maskgit_dimo_official.yaml").read_text())
    (term,) = written["train"]["terms"]
    assert set(DiMO.model_fields) - set(term) == {"name", "schedule"}  # the schedule is the recipe's own, named there
    assert set(type(OFFICIAL.init).model_fields) == set(written["init"])
    player = written["train"]["player"]
    assert set(player) == set(type(OFFICIAL.train.player).model_fields)  # type: ignore[union-attr]
    missing = set(type(OFFICIAL.train.player.optimizer).model_fields) - set(player["optimizer"])  # type: ignore[union-attr]
    assert missing == {"momentum", "final"}  # of sgd, and of a decay


def test_what_it_says_is_what_the_script_does() -> None:
    train, term = OFFICIAL.train, settings()
    assert train is not None
    assert 0.5 ** (1 / train.ema.half_lives[0]) == pytest.approx(0.9999, abs=1e-9)
    assert 3 + sum(term.passes().values()) == 10
    text = explain(recipe.load(FOLDER / "maskgit_dimo_official.yaml"))
    assert "10 in all" in text
    assert "dimo on x_θ drawn anew" in text


def published(case: Case) -> Teacher:
    """The recorded tiny network as the recipe's teacher; it was recorded without dropout."""
    c = case.config
    sizes = {"width": c["hidden_dim"], "depth": c["depth"], "heads": c["heads"], "mlp": c["mlp_dim"]}
    assert isinstance(OFFICIAL.teacher, MaskGit)
    spec = OFFICIAL.teacher.model_copy(update={**sizes, "classes": c["nclass"], "dropout": 0.0})
    net = spec.build(tokens_and_classes(c))
    spec.load_weights(net, case.weights)
    return net.requires_grad_(False).eval()


def met(case: Case) -> None:
    assert not [gap for gap in case.gaps if not gap.ok]


def test_the_recipes_term_gives_the_recorded_gradients() -> None:
    """Of the generator's loss at its logits, within 1e-5 of the largest; only forward KL is the recipe's."""
    case, spec = Case.load(ROOT / "tests" / "data" / "maskgit_dimo.json"), settings()
    net, cond = published(case.origin), Cond(case["labels"])
    codes, mask = sequence(case["codes"]), sequence(case["mask"])
    x_t = apply_mask(codes, mask, net.shape.V)
    assert case.info["settings"]["true_cfg"] == spec.guidance.scale
    term = DiMOTerm(spec, net, Given(net, case["fake_logits"][:, :, None]), OFFICIAL.schedule)
    z = case["student_logits"][:, :, None].clone().requires_grad_()
    roll = Roll(cond, x_t, net.embed(x_t), z, codes, torch.Generator(), Relaxation(), mock.Mock())
    with mock.patch.object(dimo, "remask", return_value=(mask, x_t)):
        loss, _ = term.generator(roll)
    (gradient,) = torch.autograd.grad(spec.weight * loss, z)
    case.near("dloss_dstudent_FKL", gradient[:, :, 0], RELATIVE, relative=True)
    case.near("grad_FKL", gradient[:, :, 0] * len(cond), RELATIVE, relative=True)
    value = (gradient * len(cond)).square().sum() / (2 * len(cond))  # as the public code writes its loss
    case.near("loss_FKL", value, RELATIVE, relative=True)
    met(case)


def test_psis_loss_is_the_recorded_one() -> None:
    """Masked positions, 0.1 of label smoothing, V + 1 classes; psi sees samples drawn anew, with their own labels."""
    case = Case.load(ROOT / "tests" / "data" / "maskgit_tiny.json")
    net, x, mask = published(case), sequence(case["tokens"]), sequence(case["loss_mask"])
    term = DiMOTerm(settings(), net, net, OFFICIAL.schedule, case.config["nclass"])
    fresh = mock.Mock(tokens=sequence(case["loss_targets"]), cond=Cond(case["labels"]), shared={})
    roll = Roll(
        Cond(case["labels"]), x, net.embed(x), torch.zeros(()), x, torch.Generator(), Relaxation(), mock.Mock(),
        again=lambda cond: fresh,
    )  # fmt: skip
    with mock.patch.object(dimo, "remask", return_value=(mask, x)) as drawn:
        loss, _ = term.critic_loss(roll, mock.Mock())
    assert drawn.call_args.args[0] is fresh.tokens
    case.near("loss_masked_only", loss)
    met(case)
    assert abs(float(loss) - float(case["loss_masked_only"])) <= RELATIVE * float(case["loss_masked_only"])


@pytest.mark.parametrize(
    "change",
    [{"guidance": {"scale": 1.9}}, {"normalization": "mean_masked"}, {"divergence": {"name": "rkl"}}],
    ids=str,
)
def test_another_choice_is_noticed(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    other = DiMO.model_validate(settings().model_dump(by_alias=True) | change)
    monkeypatch.setitem(globals(), "settings", lambda: other)
    with pytest.raises(AssertionError):
        test_the_recipes_term_gives_the_recorded_gradients()

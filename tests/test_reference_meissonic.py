"""The recipe of the public Di[M]O script's choices for Meissonic: its settings and its term give what was recorded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from benchmarks.parity_checks.case import RELATIVE, Case
from benchmarks.parity_checks.class_conditional import sequence
from benchmarks.parity_checks.maskgit import Given
from benchmarks.parity_checks.meissonic import ATOL, condition, network, origin, ours, sequence_of
from softdimo import recipe
from softdimo.kinds import Cond
from softdimo.math.masking import apply_mask
from softdimo.math.rollout import Roll
from softdimo.math.soft import Relaxation
from softdimo_plugins.losses import dimo
from softdimo_plugins.losses.dimo import DiMO, DiMOTerm
from softdimo_plugins.teachers.meissonic import Meissonic

ROOT = Path(__file__).parent.parent
PATH = ROOT / "recipes" / "reference" / "meissonic_dimo_official.yaml"
OFFICIAL = recipe.load(PATH).recipe
CASE = ROOT / "tests" / "data" / "meissonic_dimo_tiny.json"


def settings() -> DiMO:
    """Those of the recipe's only term."""
    assert OFFICIAL.train is not None
    (term,) = OFFICIAL.train.terms
    assert isinstance(term, DiMO)
    return term


def conditions(case: Case) -> Cond:
    """The recorded encodings, with the time and the facts that the recipe tells every network."""
    spec = OFFICIAL.teacher
    assert isinstance(spec, Meissonic)
    assert spec.micro is not None
    assert {*case["gen.timestep_arg"].tolist(), *case["teacher.timestep_arg"].tolist()} == {spec.timestep}
    micro = torch.tensor(spec.micro).expand(len(case["in.cond_pooled"]), -1)
    assert torch.equal(micro, case["in.micro_conds"])
    null = case["in.neg_tokens"], case["in.neg_pooled"]
    return condition(case["in.cond_tokens"], case["in.cond_pooled"], micro, torch.tensor([spec.timestep]), *null)


def met(case: Case) -> None:
    assert case.gaps
    assert not [gap for gap in case.gaps if not gap.ok]


def test_every_line_of_the_recipe_says_where_it_comes_from() -> None:
    """But those that open a section, continue a text or are about this project's own doing."""
    ours_alone = ("use:", "weights:", "title:", "jacobian", "share_t", "every", "sample_every", "checkpoint_minutes")
    text = PATH.read_text().split("title:")[1]
    for line in text.splitlines()[1:]:
        key = line.strip().removeprefix("- ")
        if key.endswith(":") or key.startswith(ours_alone) or re.match(r"optimizer: &|[a-z ,]+$", key):
            continue
        assert re.search(r"# .*\b(config|launch|code|term)\b", line), line


def test_every_field_is_named_in_the_recipe() -> None:
    """So that a default that changes does not change the reference."""
    written = yaml.safe_load(PATH.read_text())
    (term,) = written["train"]["terms"]
    assert set(DiMO.model_fields) - set(term) == {"name", "schedule"}  # the schedule is the recipe's own, named there
    assert set(type(OFFICIAL.init).model_fields) == set(written["init"])
    train = OFFICIAL.train
    assert train is not None
    assert set(written["train"]["player"]) == set(type(train.player).model_fields)
    missing = set(type(train.player.optimizer).model_fields) - set(written["train"]["player"]["optimizer"])
    assert missing == {"momentum", "final"}  # of sgd, and of a decay


def test_steps_are_counted_as_the_script_counts_them() -> None:
    train, term = OFFICIAL.train, settings()
    assert train is not None
    assert term.player is not None
    assert train.iterations / train.player.accumulate == 20000
    assert train.player.optimizer.warmup / train.player.accumulate == 100
    assert term.player.accumulate == train.player.accumulate
    assert 0.5 ** (1 / train.ema.half_lives[0]) == pytest.approx(0.9999, abs=1e-9)
    assert 3 + sum(term.passes().values()) == 10


def test_the_recipes_student_gives_the_recorded_logits() -> None:
    case = Case.load(CASE)
    side = int(case.info["grid"])
    net, cond = network(origin(case), (side, side)), conditions(case)
    x = ours(case["gen.init_ids"], net)
    mine = OFFICIAL.init.tokens(len(x), net.shape, torch.Generator(), "cpu")
    assert (mine == net.shape.V).sum((1, 2)).tolist() == (x == net.shape.V).sum((1, 2)).tolist()
    with mock.patch.object(torch, "randn", return_value=sequence_of(case["gen.noise"])):
        e = OFFICIAL.init.at(0).perturb(net.embed(x), net.table_rms(), torch.Generator())
    case.near("gen.logits", net(e, cond).logits[:, :, 0], ATOL)
    met(case)


def test_the_recipes_term_gives_the_recorded_gradients() -> None:
    """Of the generator's loss at its logits, within 1e-5 of the largest; only forward KL is the recipe's."""
    case, spec = Case.load(CASE), settings()
    side = int(case.info["grid"])
    net, cond = network(origin(case), (side, side)), conditions(case)
    mask, drawn = sequence(case[f"mask.{OFFICIAL.schedule}.mask"].bool()), sequence(case["gen.sampled_ids"])
    r, scores = case[f"mask.{OFFICIAL.schedule}.r"], case[f"mask.{OFFICIAL.schedule}.scores"]
    term = DiMOTerm(spec, net, Given(net, case["aux.logits"][:, :, None]), OFFICIAL.schedule)
    z = case["gen.logits"][:, :, None].clone().requires_grad_()
    x_t = apply_mask(drawn, mask, net.shape.V)
    roll = Roll(cond, x_t, net.embed(x_t), z, drawn, torch.Generator(), Relaxation(), mock.Mock())
    guided = dimo.guided_logits

    def teacher(*args: Any, **at: Any) -> torch.Tensor:
        case.near("teacher.logits", guided(*args, **at), 1e-4, expected=case["teacher.logits"][mask[..., 0]])
        return case["teacher.logits"][:, :, None][mask]

    with (
        mock.patch.object(torch, "rand", side_effect=[r, scores]),
        mock.patch.object(dimo, "guided_logits", teacher),
    ):
        loss, _ = term.generator(roll)
    (gradient,) = torch.autograd.grad(spec.weight * loss, z)  # type: ignore[operator]
    case.near("dm.fkl.dloss_dlogits_sum", gradient[:, :, 0], RELATIVE, relative=True)
    met(case)


def test_psis_loss_is_the_recorded_one() -> None:
    """Masked positions, the recipe's label smoothing; psi sees samples drawn anew."""
    case = Case.load(CASE)
    side = int(case.info["grid"])
    net, cond = network(origin(case), (side, side)), conditions(case)
    mask, drawn = sequence(case[f"mask.{OFFICIAL.schedule}.mask"].bool()), sequence(case["gen.sampled_ids"])
    term = DiMOTerm(settings(), net, Given(net, case["aux.logits"][:, :, None]), OFFICIAL.schedule)
    fresh = mock.Mock(tokens=drawn, cond=cond, shared={})
    other = torch.zeros_like(drawn)
    roll = Roll(
        cond, other, net.embed(other), torch.zeros(()), other, torch.Generator(), Relaxation(), mock.Mock(),
        again=lambda cond: fresh,
    )  # fmt: skip
    with mock.patch.object(dimo, "remask", return_value=(mask, apply_mask(drawn, mask, net.shape.V))) as remasked:
        loss, _ = term.critic_loss(roll, mock.Mock())
    assert remasked.call_args.args[0] is drawn
    assert remasked.call_args.args[4] == (0.02, 0.98)
    case.near("aux.loss_hard", loss)
    met(case)


@pytest.mark.parametrize(
    ("change", "test"),
    [
        ({"guidance": {"scale": 3.9}}, test_the_recipes_term_gives_the_recorded_gradients),
        ({"normalization": "mean_masked"}, test_the_recipes_term_gives_the_recorded_gradients),
        ({"divergence": {"name": "rkl"}}, test_the_recipes_term_gives_the_recorded_gradients),
        ({"ratios": (0.45, 0.98)}, test_the_recipes_term_gives_the_recorded_gradients),
        ({"label_smoothing": 0.0}, test_psis_loss_is_the_recorded_one),
        ({"fresh_samples": False}, test_psis_loss_is_the_recorded_one),
    ],
    ids=str,
)
def test_another_choice_is_noticed(change: dict[str, Any], test: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = DiMO.model_validate(settings().model_dump(by_alias=True) | change)
    monkeypatch.setitem(globals(), "settings", lambda: other)
    with pytest.raises((AssertionError, ValueError)):
        test()

"""A term may end the training: what is there is saved, the rest of the run follows, and a resumed run agrees."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softdimo import recipe as recipes
from softdimo import run as running
from softdimo.build import PRODUCT
from softdimo.engine import checkpoint
from softdimo.engine.algorithm import Distillation, Ending, Entry
from softdimo.engine.loop import ENDED, Loop
from softdimo.engine.rng import seed_all
from softdimo.errors import Interrupted
from softdimo.kinds import Logs
from softdimo.math.rollout import Roll
from softdimo_plugins.losses.parting import Parting
from softdimo_plugins.losses.reward import RewardTerm, Weighted
from softdimo_plugins.rewards.connected import Connected
from tests import ranks, tiny
from tests.engine.test_loop import StopAt, everything
from tests.engine.tiny import Endless, context, distillation, players
from tests.fakes import distribution
from tests.plugins.terms import context as painted
from tests.plugins.terms import roll


class Patience:
    """A small term that has had enough after some turns."""

    critic, player = None, None

    def __init__(self, turns: int) -> None:
        self.turns, self.left = turns, turns

    @property
    def ending(self) -> str:
        return "" if self.left > 0 else f"{self.turns} turns are enough"

    def generator(self, roll: Roll) -> tuple[Tensor, Logs]:
        self.left -= 1
        return 0.01 * roll.logits.square().mean(), {}

    def critic_loss(self, roll: Roll, real: object) -> tuple[Tensor, Logs]:
        raise NotImplementedError

    def seen(self) -> dict[str, Any]:
        return {"left": self.left}

    def see(self, state: Mapping[str, Any]) -> None:
        self.left = state["left"]


def loop(folder: Path, stream: Endless, turns: int = 5, iterations: int = 7, title: str = "test") -> Loop:
    rng = torch.Generator().manual_seed(5)
    seed_all(7)
    algorithm = distillation(context(), rng, generator=players(), horizon=7)
    algorithm.terms.append(Entry("patience", Patience(turns), 1.0))
    return Loop(
        algorithm, stream, folder, algorithm.fabric, rng, "r", title, iterations, 6, log_every=2, checkpoint_minutes=1e9
    )


def saved(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.complete(folder / "checkpoints")]


def test_training_ends_where_the_term_wants_it_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended, short = loop(tmp_path / "ended", Endless()), loop(tmp_path / "short", Endless(), turns=99, iterations=5)
    ended.run()
    said = " ".join(capsys.readouterr().err.split())
    assert "test: training ends after iteration 5 of 7: 5 turns are enough" in said
    assert "test: 5 of 7 iterations, " in said
    short.run()
    assert saved(tmp_path / "ended") == saved(tmp_path / "short") == ["iter-00000005"]
    expected = {k: v for k, v in everything(short).items() if "patience" not in k}
    found = everything(ended)
    assert [k for k, v in expected.items() if not torch.equal(v, found[k])] == []
    assert json.loads((tmp_path / "ended" / ENDED).read_text()) == {
        "iterations": 5, "of": 7, "why": "5 turns are enough",
    }  # fmt: skip
    assert not (tmp_path / "short" / ENDED).exists()


def test_a_run_that_was_killed_after_its_end_does_not_go_on(tmp_path: Path) -> None:
    ended = loop(tmp_path, Endless())
    ended.run()
    (tmp_path / ENDED).unlink()
    stream = Endless()
    again = loop(tmp_path, stream)
    again.run(resume=True)
    assert stream.at == 5, "no batch was asked for"
    assert saved(tmp_path) == ["iter-00000005"]
    assert (tmp_path / ENDED).is_file()
    assert [k for k, v in everything(ended).items() if not torch.equal(v, everything(again)[k])] == []


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    whole = loop(tmp_path / "whole", Endless())
    whole.run()
    with pytest.raises(Interrupted, match="after iteration 3"):
        loop(tmp_path / "part", StopAt(3)).run()
    again = loop(tmp_path / "part", Endless())
    again.run(resume=True)
    assert [k for k, v in everything(whole).items() if not torch.equal(v, everything(again)[k])] == []
    assert json.loads((tmp_path / "part" / ENDED).read_text())["iterations"] == 5


def test_an_end_at_the_last_iteration_is_none(tmp_path: Path) -> None:
    loop(tmp_path, Endless(), turns=7).run()
    assert not (tmp_path / ENDED).exists()


def test_who_may_end_a_training() -> None:
    algorithm: Distillation = distillation(context(), torch.Generator().manual_seed(0))
    assert algorithm.ending == ""
    assert not any(isinstance(entry.term, Ending) for entry in algorithm.terms)
    assert isinstance(Patience(1), Ending)
    assert isinstance(RewardTerm([], []), Ending)


def watched(seed: int) -> tuple[dict[str, Any], float]:
    """On one of several ranks: what a term has seen, and this rank's own held-out reward."""
    from tests.plugins.test_reward_guards import judge

    torch.distributed.init_process_group("gloo")
    ctx = painted()
    entry = Weighted(reward=Connected(use="a"))
    term = RewardTerm([(entry, judge(1))], [(entry, judge(2))], None, Parting(window=8))
    logs = term.generator(roll(ctx, seed + torch.distributed.get_rank()))[1]
    return term.seen(), float(logs["held_out/a"])


def test_all_ranks_see_the_mean_over_their_batches() -> None:
    (one, mine), (two, theirs) = ranks.run(2, watched, 0)
    assert one == two
    assert mine != theirs
    assert one["turns"]["a"] == [pytest.approx((mine + theirs) / 2)]


SOURCE = """\
from typing import ClassVar

from softdimo.spec import Spec


class Bright(Spec):
    '''Mean brightness.'''

    differentiable: ClassVar[bool] = True

    def __call__(self, img, cond):
        return img.mean((1, 2, 3))


class Dark(Bright):
    '''Its opposite.'''

    def __call__(self, img, cond):
        return -img.mean((1, 2, 3))
"""
GUARDED = """\
base: student.yaml
title: Guarded
train:
  iterations: 400
  player: {optimizer: {lr: 1e-2}}
  terms:
    - {use: dimo}
    - use: reward
      weight: 20
      rewards: [{reward: {use: bright}}]
      held_out: [{reward: {use: dark}}]
      stop_when_parted: {window: 8}
  sample_every: 1000
"""


def test_a_run_whose_rewards_part_ends_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"softdimo.reward": {"bright": "ending_rewards:Bright", "dark": "ending_rewards:Dark"}}
    monkeypatch.syspath_prepend(distribution(tmp_path / "site", "rewards", entries, {"ending_rewards": SOURCE}))
    folder = tiny.write(tmp_path / "recipes").parent
    (folder / "guarded.yaml").write_text(GUARDED)
    loaded = recipes.load(
        folder / "guarded.yaml", ("hardware.jobs=1", "hardware.threads=1", "hardware.accelerator=cpu")
    )
    out = running.run(loaded, folder / "runs" / "guarded")
    ended = json.loads((out / ENDED).read_text())
    assert ended["iterations"] % 8 == 0
    assert 16 <= ended["iterations"] < ended["of"] == 400
    assert "the held-out reward `dark` fell from " in ended["why"]
    assert (out / PRODUCT).is_file()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"for {ended['iterations']} of 400 iterations of 8 samples" in page
    assert "training ended early: the held-out reward" in page
    before = (out / PRODUCT).stat().st_mtime_ns
    running.run(loaded, out)  # finished: nothing is trained again
    assert (out / PRODUCT).stat().st_mtime_ns == before
    running.run(loaded, out, fresh=True)
    assert json.loads((out / ENDED).read_text()) == ended
    sys.modules.pop("ending_rewards", None)

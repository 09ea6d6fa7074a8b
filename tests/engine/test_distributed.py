"""Two processes over gloo: the steps of one, FSDP2, stops and failures, evaluations that do not depend on the ranks."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from softdimo.build import PRODUCT
from softdimo.engine import checkpoint
from softdimo.files import read_weights
from tests import ranks
from tests.engine import distributed
from tests.engine.distributed import CPU, each, loop, tensors, trajectory

SHARED = ("train.terms.dimo.share_t=true",)
FSDP2 = ("hardware.strategy=fsdp2",)
STOPS = ("train.iterations=500", "train.checkpoint_minutes=1e-6", "train.log_every=1")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with every term, whose teacher, tokenizer and reward are there."""
    return distributed.write(tmp_path_factory.mktemp("distributed"))


def check_close(one: Any, two: Sequence[Any], logs: float, weights: float) -> None:
    """Logs (their mean over the ranks) and the state of every rank, within tolerances."""
    for iteration, row in enumerate(one[0]):
        mean = {name: sum(rank[0][iteration][name] for rank in two) / len(two) for name in row}
        assert mean == pytest.approx(row, rel=logs, abs=logs)
    expected = tensors(one[1])
    for rank in two:
        found = tensors(rank[1])
        assert found.keys() == expected.keys()
        far = {k: float((v.double() - expected[k].double()).abs().max()) for k, v in found.items() if v.numel()}
        assert max(far.values()) < weights, max(far, key=lambda k: far[k])


def test_two_ranks_follow_one_process_with_their_batches_together(recipe: Path) -> None:
    """Di[M]O, GAN with R1 and reward; ratio weights, clipping, accumulation. And a teacher, from data.

    Every random number is that of the rank whose sample it is for, and in float64 only the order of sums differs.
    Tolerances: 1e-12 (logs), 1e-9 (state); 1e-6 for the teacher, whose loss is a sum in float32.
    """
    double = "hardware.precision=64-true"
    kinds = [(recipe, (double,)), (recipe, (double, *SHARED)), (recipe.parent / "teacher.yaml", (double,))]
    two = ranks.run(2, each, trajectory, *((r, (*o, "train.batch_size=4"), 4, 1, True) for r, o in kinds))
    (one,) = ranks.run(1, each, trajectory, *((r, (*o, "train.batch_size=8"), 4, 2, True) for r, o in kinds))
    for i, (logs, state) in enumerate([(1e-12, 1e-9), (1e-12, 1e-9), (1e-6, 1e-6)]):
        check_close(one[i], [rank[i] for rank in two], logs, state)
    names = {"gan/r1", "gan/weight", "reward/loss", "dimo/critic_grad_norm"}
    assert all(names <= rows[0].keys() for rows, _ in one[:2])


def steps_of_ddp(recipe: Path, *kinds: Sequence[str]) -> None:
    """FSDP2 against DDP on the same ranks in float32. Tolerances: 1e-4 (logs), 1e-3 of 1 (weights; lr is 1e-3)."""
    calls = [(recipe, (*kind, *strategy), 4) for kind in kinds for strategy in ((), FSDP2)]
    found = ranks.run(2, each, trajectory, *calls)
    for rank in found:
        for i in range(0, len(calls), 2):
            check_close(rank[i], [rank[i + 1]], 1e-4, 1e-3)
            assert max(float((a - b).abs().max()) for a, b in moved(found[0][i + 1], rank[i + 1])) == 0


def moved(one: Any, two: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The student's weights of two ranks."""
    return [(v, two[1]["generator"]["weights"][k]) for k, v in one[1]["generator"]["weights"].items()]


def test_fsdp2_takes_the_steps_of_ddp(recipe: Path) -> None:
    steps_of_ddp(recipe, (), SHARED)


@pytest.mark.slow
def test_fsdp2_takes_the_steps_of_ddp_with_adapters_and_recomputed_layers(recipe: Path) -> None:
    lora = ("train.terms.dimo.auxiliary={use: lora, rank: 2}",)
    steps_of_ddp(recipe, lora, (*lora, *SHARED), ("hardware.activation_checkpointing=true",))


@pytest.mark.parametrize(
    "strategy", [pytest.param(FSDP2, id="fsdp2"), pytest.param((), id="ddp", marks=pytest.mark.slow)]
)
def test_a_signal_to_one_rank_saves_once_and_resuming_is_bit_exact(
    recipe: Path, tmp_path: Path, strategy: tuple[str, ...]
) -> None:
    """Also with gradients that wait for their step, and on one process, which goes on from the same weights."""
    whole, part, other = (tmp_path / name for name in ("whole", "part", "other"))
    calls = [(recipe, strategy, whole), (recipe, strategy, part, 2)]
    found = ranks.run(2, each, loop, *calls)
    assert [rank[1] for rank in found] == [found[0][1]] * 2
    assert f"stopped after iteration 3 of 6; everything is saved in {part}" in found[0][1]
    assert [p.name for p in checkpoint.complete(part / "checkpoints")] == ["iter-00000003"]
    saved = torch.load(part / "checkpoints" / "iter-00000003" / "state.pt", weights_only=True)["algorithm"]
    assert saved["generator"]["pending"] == 1
    assert saved["generator"]["gradients"]
    shutil.copytree(part, other)
    resumed = ranks.run(2, loop, recipe, strategy, part, None, True)
    for rank, again in zip(found, resumed, strict=True):
        expected, got = tensors(rank[0]), tensors(again)
        assert expected.keys() == got.keys()
        assert [k for k, v in expected.items() if not torch.equal(v, got[k])] == []
    assert (part / "log.csv").read_text() == (whole / "log.csv").read_text()
    product = read_weights(part / PRODUCT)
    assert product.keys() == resumed[0]["generator"]["weights"].keys()
    assert all(torch.equal(product[k], v) for k, v in resumed[0]["ema"]["averages"][0].items())
    live = read_weights(part / "live.safetensors")
    assert all(torch.equal(live[k], v) for k, v in resumed[0]["generator"]["weights"].items())
    (alone,) = ranks.run(1, loop, recipe, (), other, None, True)
    assert alone["ema"]["updates"] == resumed[0]["ema"]["updates"]
    assert all(bool(v.isfinite().all()) for v in tensors(alone).values())


def test_bfloat16(recipe: Path) -> None:
    kinds = [(f"hardware.precision={p}", *s) for p in ("bf16-mixed", "bf16-true") for s in ((), FSDP2)]
    for rank in ranks.run(2, each, trajectory, *((recipe, kind, 3) for kind in kinds)):
        for logs, state in rank:
            assert len(logs) == 3
            assert all(bool(v.isfinite().all()) for v in tensors((logs, state)).values())
        assert [state["generator"]["weights"]["norm.weight"].dtype for _, state in rank] == [
            torch.float32, torch.float32, torch.bfloat16, torch.bfloat16
        ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [(), FSDP2], ids=["ddp", "fsdp2"])
def test_compiled_layers(recipe: Path, strategy: tuple[str, ...]) -> None:
    compiled = (*strategy, "hardware.compile=true")
    for rank in ranks.run(2, each, trajectory, (recipe, strategy, 2), (recipe, compiled, 2), seconds=900):
        check_close(rank[0], [rank[1]], 1e-3, 3e-3)


def told(value: Any) -> Any:
    """A table without what may differ: times and versions."""
    if isinstance(value, dict):
        return {k: told(v) for k, v in value.items() if k not in ("seconds", "lock", "by")}
    return [told(v) for v in value] if isinstance(value, list) else value


def test_work_is_dealt_out_and_gathered_in_order() -> None:
    for found in ranks.run(3, each, distributed.dealt, *((n,) for n in range(8))):
        for n, (items, agreed) in enumerate(found):
            assert items == [(place, True, place, ("prompt",)) for place in range(n)]
            assert agreed == 0


def test_evaluation_and_search_do_not_depend_on_the_ranks(recipe: Path, tmp_path: Path) -> None:
    one, two = recipe.parent / "runs" / "one", recipe.parent / "runs" / "two"
    alone = ("run", recipe.parent / "whole.yaml", *CPU, "hardware.jobs=1", "eval.batch_size=3", "search.batch_size=1")
    (first,) = ranks.commands(1, (*alone, "--out", one), tmp_path / "one")
    assert first.wait() == 0, first.said
    shutil.copytree(one, two)
    for name in ("eval.json", "search.json", "report.html"):
        (two / name).unlink()
    shutil.rmtree(two / "search", ignore_errors=True)
    both = ranks.commands(2, (*alone, "--out", two), tmp_path / "two")
    assert [rank.wait() for rank in both] == [0, 0], [rank.said for rank in both]
    for name in ("eval.json", "search.json"):
        expected, found = (told(json.loads((folder / name).read_text())) for folder in (one, two))
        assert found == expected
    assert both[0].said.count("report: ") == 1
    assert not both[1].said


@pytest.mark.parametrize("environment", [ranks.environment, ranks.srun], ids=["torchrun", "srun"])
def test_what_one_rank_finds_ends_all_with_one_message(recipe: Path, tmp_path: Path, environment: Any) -> None:
    """A loss of rank 1 alone is not finite; a folder that holds another run is what all find, and one tells."""
    prelude = """
import os
from softdimo_plugins.losses.dimo import DiMOTerm
generator = DiMOTerm.generator
def broken(self, roll):
    loss, logs = generator(self, roll)
    return (loss * float("nan") if "1" in (os.environ.get("RANK"), os.environ.get("SLURM_PROCID")) else loss), logs
DiMOTerm.generator = broken
"""
    out = tmp_path / "run"
    shutil.copytree(recipe.parent / "runs" / "cache", tmp_path / "cache")
    run = ("run", recipe, *CPU, "--out", out)
    failed = ranks.commands(2, run, tmp_path / "failed", environment, prelude)
    assert [rank.wait() for rank in failed] == [1, 4], [rank.said for rank in failed]
    assert failed[1].said.startswith("error: the loss of `dimo` is nan at iteration 0; no checkpoint was written yet")
    assert not failed[0].said
    (out / "checkpoints").mkdir(exist_ok=True)  # a folder in which nothing was made belongs to no recipe
    refused = ranks.commands(2, (*run, "train.batch_size=3"), tmp_path / "refused", environment)
    assert sorted(rank.wait() for rank in refused) == [1, 3]
    assert sorted(rank.said.count("holds a run of another recipe") for rank in refused) == [0, 1]


def test_ctrl_c_on_all_ranks(recipe: Path, tmp_path: Path) -> None:
    """As torchrun passes it on: SIGINT from the terminal, then SIGTERM from torchrun, and once more."""
    out = tmp_path / "run"
    shutil.copytree(recipe.parent / "runs" / "cache", tmp_path / "cache")
    stopped = ranks.commands(2, ("run", recipe, *CPU, *STOPS, "--out", out), tmp_path)
    stopped[0].until(lambda: bool(checkpoint.complete(out / "checkpoints")))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        for rank in stopped:
            rank.send(number)
    assert sorted(rank.wait() for rank in stopped) == [1, 130]
    assert sorted(rank.said.count("everything is saved") for rank in stopped) == [0, 1]
    assert not any("Traceback" in rank.said for rank in stopped)


def test_a_rank_that_is_killed_ends_the_others(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(recipe.parent / "runs" / "cache", tmp_path / "cache")
    both = ranks.commands(2, ("run", recipe, *CPU, *STOPS, "--out", out), tmp_path)
    both[0].until(lambda: bool(checkpoint.complete(out / "checkpoints")))
    both[1].send(signal.SIGKILL)
    assert [rank.wait() for rank in both] == [1, -signal.SIGKILL]
    assert "error: another rank ended without a word" in both[0].said
    assert "Traceback" not in both[0].said


@pytest.mark.slow
def test_torchrun_runs_everything_and_says_once_what_is_wrong(recipe: Path, tmp_path: Path) -> None:
    def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "softdimo", "run"]
        given = [str(a) for a in (*arguments, *CPU, "--out", tmp_path / "run")]
        return subprocess.run([*command, *given], capture_output=True, text=True, timeout=300)

    for strategy in ((), FSDP2):  # the second has to train what the first one made
        done = torchrun(recipe.parent / "whole.yaml", *strategy, *(["--fresh"] if strategy else []))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("whole: 4 iterations") == 1
        shutil.rmtree(tmp_path / "cache")
        names = ("weights.safetensors", "eval.json", "search.json", "report.html", "samples/00000004.png")
        assert all((tmp_path / "run" / name).is_file() for name in names)
    wrong = torchrun(recipe.parent / "whole.yaml", "train.nothing=1")
    assert wrong.returncode != 0
    assert wrong.stderr.count("train.nothing: unknown key") == 1

import csv
import os
import signal
from pathlib import Path

import pytest
import torch

from softdimo.engine import checkpoint
from softdimo.engine.loop import Loop
from softdimo.errors import CheckpointError, CrashError, Interrupted, TrainingError, WriteError
from softdimo.kinds import Batch
from tests.engine.tiny import Endless, context, distillation, players


class StopAt(Endless):
    """Sends a signal to this process when a batch is asked for."""

    def __init__(self, batch: int | None, number: signal.Signals = signal.SIGINT) -> None:
        super().__init__()
        self.batch, self.number = batch, number

    def __next__(self) -> Batch:
        if self.at + 1 == self.batch:
            os.kill(os.getpid(), self.number)
        return super().__next__()


def loop(folder: Path, stream: Endless, recipe_hash: str = "r", minutes: float = 1e9, iterations: int = 7) -> Loop:
    rng = torch.Generator().manual_seed(5)
    algorithm = distillation(context(), rng, generator=players(every=1, accumulate=3), horizon=iterations)
    return Loop(
        algorithm, stream, folder, algorithm.fabric, rng, recipe_hash, "test", iterations, 6,
        log_every=2, checkpoint_minutes=minutes,
    )  # fmt: skip


def everything(run: Loop) -> dict[str, torch.Tensor]:
    flat: dict[str, torch.Tensor] = {}

    def walk(value: object, path: str) -> None:
        if isinstance(value, torch.Tensor):
            flat[path] = value.detach().clone()
        elif isinstance(value, dict):
            for k, v in value.items():
                walk(v, f"{path}/{k}")
        elif isinstance(value, list | tuple):
            for i, v in enumerate(value):
                walk(v, f"{path}/{i}")
        elif isinstance(value, float | int):
            flat[path] = torch.tensor(value)

    walk(run.algorithm.state_dict(), "")
    walk(run.generator.get_state(), "rng")
    walk(run.stream.state_dict(), "stream")
    return flat


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop", [2, 5, 7])
def test_resume_after_a_signal_is_bit_exact(tmp_path: Path, stop: int, number: signal.Signals) -> None:
    whole = loop(tmp_path / "whole", Endless())
    whole.run()
    part = loop(tmp_path / "part", StopAt(stop, number))
    with pytest.raises(Interrupted, match=f"after iteration {stop} of 7.*--resume"):
        part.run()
    again = loop(tmp_path / "part", Endless())
    torch.manual_seed(99)  # the global streams are restored too
    again.run(resume=True)
    expected, got = everything(whole), everything(again)
    assert expected.keys() == got.keys()
    assert [k for k in expected if not torch.equal(expected[k], got[k])] == []
    read = lambda name: list(csv.DictReader((tmp_path / name / "log.csv").read_text().splitlines()))  # noqa: E731
    assert [r["iteration"] for r in read("part")] == [r["iteration"] for r in read("whole")] == ["1", "3", "5"]
    for mine, theirs in zip(read("part"), read("whole"), strict=True):
        assert {k: float(v) for k, v in mine.items() if v} == pytest.approx(
            {k: float(v) for k, v in theirs.items() if v}
        )


def test_only_complete_checkpoints_count_and_old_ones_go(tmp_path: Path) -> None:
    run = loop(tmp_path, Endless(), minutes=0.0)
    run.run()
    folder = tmp_path / "checkpoints"
    assert [p.name for p in checkpoint.complete(folder)] == ["iter-00000006", "iter-00000007"]
    (folder / "iter-00000007" / checkpoint.MARKER).unlink()
    (folder / ".iter-00000009.partial").mkdir()
    again = loop(tmp_path, Endless())
    again.run(resume=True)
    assert [k for k, v in everything(run).items() if not torch.equal(v, everything(again)[k])] == []


@pytest.mark.parametrize("name", ["state.pt", "rank-0.pt", checkpoint.MARKER])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    loop(tmp_path, Endless()).run()
    file = tmp_path / "checkpoints" / "iter-00000007" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="iter-00000007"):
        loop(tmp_path, Endless()).run(resume=True)


def test_every_flipped_byte_of_a_marker_is_noticed(tmp_path: Path) -> None:
    run = loop(tmp_path, Endless())
    run.run()
    marker = tmp_path / "checkpoints" / "iter-00000007" / checkpoint.MARKER
    content = marker.read_bytes()
    for place in range(len(content) - 1):  # the last one is the end of the line
        marker.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match="iter-00000007"):
            checkpoint.load(marker.parent, run.fabric)
    marker.write_bytes(content)
    assert checkpoint.load(marker.parent, run.fabric)[0] == 7


def test_a_checkpoint_under_another_name_is_refused(tmp_path: Path) -> None:
    loop(tmp_path, Endless()).run()
    folder = tmp_path / "checkpoints"
    (folder / "iter-00000007").rename(folder / "iter-00000006")
    with pytest.raises(CheckpointError, match="is damaged"):
        loop(tmp_path, Endless()).run(resume=True)


def test_another_recipes_checkpoint_is_refused(tmp_path: Path) -> None:
    loop(tmp_path, Endless()).run()
    with pytest.raises(CheckpointError, match="another recipe"):
        loop(tmp_path, Endless(), recipe_hash="other").run(resume=True)


def test_a_failed_write_leaves_earlier_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop(tmp_path, Endless()).run()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WriteError, match="iter-00000009: No space left on device; what was saved before is untouched"):
        loop(tmp_path, Endless(), iterations=9).run()
    assert [p.name for p in checkpoint.complete(tmp_path / "checkpoints")] == ["iter-00000007"]
    assert not list((tmp_path / "checkpoints").glob(".*.partial"))


@pytest.mark.parametrize("broken", [KeyError("x"), MemoryError(), RuntimeError("can't allocate memory: 1 byte")])
def test_what_a_step_raises_names_the_last_good_checkpoint(tmp_path: Path, broken: Exception) -> None:
    run = loop(tmp_path, Endless(), minutes=0.0)
    step = run.algorithm.step

    def failing(iteration: int, real: Batch) -> object:
        if iteration == 4:
            raise broken
        return step(iteration, real)

    run.algorithm.step = failing  # type: ignore[method-assign, assignment]
    with pytest.raises(CrashError if isinstance(broken, KeyError) else TrainingError) as caught:
        run.run()
    assert "iteration 4; the last good checkpoint is" in str(caught.value)
    assert "iter-00000004" in str(caught.value)
    assert caught.value.__cause__ is broken


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    run = loop(tmp_path, Endless(), minutes=0.0)
    step = run.algorithm.step

    def poisoned(iteration: int, real: Batch) -> object:
        logs = step(iteration, real)
        if iteration == 4:
            with torch.no_grad():
                next(iter(run.algorithm.network.parameters())).view(-1)[0] = float("inf")
        return logs

    run.algorithm.step = poisoned  # type: ignore[method-assign, assignment]
    with pytest.raises(TrainingError, match=r"weights are not finite after iteration 4; .*iter-00000004\."):
        run.run()
    assert checkpoint.complete(tmp_path / "checkpoints")[-1].name == "iter-00000004"


def test_nan_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    run = loop(tmp_path, Endless(), minutes=0.0)
    step = run.algorithm.step

    def poisoned(iteration: int, real: Batch) -> object:
        if iteration == 4:
            with torch.no_grad():
                next(iter(run.algorithm.network.parameters())).fill_(float("nan"))
        return step(iteration, real)

    run.algorithm.step = poisoned  # type: ignore[method-assign, assignment]
    with pytest.raises(TrainingError, match=r"not finite|is nan") as caught:
        run.run()
    assert "iter-00000004" in str(caught.value)

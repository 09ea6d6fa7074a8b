"""Faults of what runs: components, clocks, signals, processes that die, two of them at once."""

from __future__ import annotations

import shutil
import signal
from textwrap import indent

from softdimo.engine import checkpoint
from tests.faults.bench import ALONE, Bench, Result, at, case, differences, earlier, rows, same_table, unchanged

# Two runs


@case("two runs in one folder", 3, "another run is writing in .*; wait for it, or give another --out", quick=True)
def two_runs(bench: Bench) -> Result:
    run, paused = bench.runs / "two", bench.root / "paused"
    pause = f"os.mkdir({str(paused)!r}); signal.pause()"  # a signal that comes before the pause would not end it
    first = bench.start(*bench.arguments("terms", run), prelude=at(".iter-00000003", pause))
    first.until(paused.exists)
    before = earlier(run)
    code, said = bench.command(*bench.arguments("terms", run, "--resume"))
    found = Result(code, bench.plain(said), unchanged(before, run))
    first.send(signal.SIGTERM)
    first.wait()
    assert bench.command(*bench.arguments("terms", run, "--resume"))[0] == 0
    found.recovered = not differences(run, bench.runs / "whole")
    return found


# Components that are broken


def boom(bench: Bench, how: str) -> Result:
    """A run whose term fails; once it is mended the run goes on to what it would have come to."""
    whole, run = bench.runs / "boom", bench.runs / f"boom-{how}"
    if not whole.exists():
        assert bench.command(*bench.arguments("boom", whole))[0] == 0
    return bench.meet(
        run, bench.arguments("boom", run), lambda: None, boom=how, same=lambda: not differences(run, whole)
    )


@case(
    "a plugin raises when it is imported",
    2,
    r"boom\.yaml:6:13.*`boom` of softdimo-boom is broken \(RuntimeError: boom",
    quick=True,
)
def raises_at_import(bench: Bench) -> Result:
    return boom(bench, "import")


@case("a plugin raises when it is built", 70, r"unexpected KeyError: 'boom' raised in softdimo-boom, .*boom\.py:\d+")
def raises_at_build(bench: Bench) -> Result:
    return boom(bench, "build")


@case(
    "a plugin raises in a step",
    70,
    r"ZeroDivisionError: boom at iteration 2; the last good checkpoint is .*-00000002",
    quick=True,
)
def raises_at_step(bench: Bench) -> Result:
    return boom(bench, "step")


@case(
    "a loss is NaN", 4, "the loss of `boom` is nan at iteration 2; the last good checkpoint is .*-00000002", quick=True
)
def nan(bench: Bench) -> Result:
    return boom(bench, "nan")


@case("memory runs out in a step", 4, "not enough memory for iteration 2; the last good checkpoint is .*-00000002")
def memory(bench: Bench) -> Result:
    return boom(bench, "memory")


@case("a plugin raises while a row is measured", 70, "unexpected IndexError: boom raised in softdimo-boom")
def raises_at_row(bench: Bench) -> Result:
    run = bench.copy("table", "drawn")
    arguments = ("run", bench.root / "drawn.yaml", "--out", run, *ALONE)
    return bench.meet(run, arguments, lambda: None, boom="sample", same=lambda: len(rows(run)) == 6)


@case(
    "weights overflow", 4, "the weights are not finite after iteration 0; no checkpoint was written yet", recovers=False
)
def overflow(bench: Bench) -> Result:
    run = bench.runs / "overflow"
    wild = ("train.player.optimizer={name: adamw, lr: 1e30, weight_decay: 1e30}", "train.player.clip=null")
    return bench.meet(run, bench.arguments("terms", run, *wild))


# Clocks, signals, processes that die


@case("the clock is set back and forth by ten years", 0, "terms: 6 iterations")
def clock(bench: Bench) -> Result:
    run = bench.runs / "clock"
    jump = "import time\nreal, n = time.time, [0]\n"
    jump += "def jumping():\n    n[0] += 1\n    return real() + (-1) ** n[0] * 3e8\ntime.time = jumping\n"
    code, said = bench.command(*bench.arguments("terms", run), prelude=jump)
    kept = len(checkpoint.complete(run / "checkpoints")) == 6
    return Result(code, bench.plain(said), kept, not differences(run, bench.runs / "whole"))


STOP = "os.kill(os.getpid(), signal.SIGTERM)"


@case(
    "SIGTERM during training",
    130,
    "stopped after iteration 3 of 6; everything is saved in .*--resume to go on",
    quick=True,
)
def stopped(bench: Bench) -> Result:
    run = bench.runs / "stopped"
    return bench.meet(run, bench.arguments("terms", run), lambda: None, at(".iter-00000002", STOP))


@case("SIGTERM during evaluation", 130, "stopped; .* keeps what is done. Run the same command with --resume to go on")
def stopped_table(bench: Bench) -> Result:
    run = bench.copy("table", "stopped_table")
    (run / "eval.json").unlink()
    return bench.meet(
        run, bench.arguments("whole", run), lambda: None, at("/.eval.json", STOP, 3),
        same=lambda: same_table(run, bench.runs / "table"),
    )  # fmt: skip


@case(
    "SIGTERM during `softdimo eval`",
    130,
    "stopped; .* keeps what is done. Run the same command again to go on",
    quick=True,
)
def stopped_eval(bench: Bench) -> Result:
    run = bench.copy("table", "stopped_eval")
    (run / "eval.json").unlink()
    command = ("eval", run)
    code, said = bench.command(*command, prelude=at("/.eval.json", STOP, 3))
    measured = rows(run)
    assert len(measured) == 2
    assert bench.command(*command)[0] == 0
    kept = rows(run)[: len(measured)] == measured
    return Result(code, bench.plain(said), kept, same_table(run, bench.runs / "table"))


@case("SIGTERM during an export", 130, "interrupted")
def stopped_export(bench: Bench) -> Result:
    code, said = bench.command("export", bench.runs / "table", "--out", bench.root / "stopped" / "model",
                               prelude=at("student.safetensors", STOP))  # fmt: skip
    clean = not list((bench.root / "stopped").iterdir())
    again = bench.command("export", bench.runs / "table", "--out", bench.root / "stopped" / "model")
    return Result(code, bench.plain(said), clean, again[0] == 0)


@case(
    "SIGKILL of one process of a run (as when memory is short)",
    1,
    "this run: it was killed .SIGKILL., perhaps for want of memory.*--resume",
)
def killed_job(bench: Bench) -> Result:
    run = bench.apart("killed", "jobs")
    shutil.rmtree(next((run.parent / "cache").glob("judge-*")))  # so that there are two jobs: the judge, and this run
    poison = bench.root / "poison"
    poison.mkdir()
    hook = at("6.partial/state.pt", "os.kill(os.getpid(), signal.SIGKILL)")
    (poison / "sitecustomize.py").write_text(f"import sys\nif 'train' in sys.orig_argv:\n{indent(hook, '    ')}")
    path = f"import os\nos.environ['PYTHONPATH'] = '{poison}:' + os.environ['PYTHONPATH']"
    arguments = bench.arguments("terms", run, "hardware.jobs=2", "--resume")
    return bench.meet(run, arguments, lambda: None, path)

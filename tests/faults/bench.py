"""Where faults are provoked: tiny runs, commands in processes of their own, and what a fault is measured by.

The faults are in `storage` and `programs`; `test_every_fault.py` checks them, `benchmarks/faults.py` writes a table.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softdimo.engine import checkpoint
from softdimo.files import PARTIAL, read_weights, sha256
from tests import forked, tiny
from tests.fakes import distribution

ALONE = ("hardware.jobs=1", "hardware.threads=1", "hardware.accelerator=cpu")
EVERY = ("train.iterations=6", "train.log_every=1", "train.sample_every=2", "train.checkpoint_minutes=1e-6",
         "train.keep_checkpoints=9")  # fmt: skip
"""A checkpoint after every iteration, all of them kept."""
BOOM = '''
import os, torch
from softdimo.spec import LossSpec
from softdimo_plugins.samplers.one_step import OneStep
if os.environ.get("BOOM") == "import":
    raise RuntimeError("boom")

class Loss(LossSpec):
    """A term that does nothing, or what the environment says at its third call."""
    def build(self, context):
        if os.environ.get("BOOM") == "build":
            raise KeyError("boom")
        return Term()

class Term:
    critic = player = None
    calls = 0
    def generator(self, roll):
        self.calls += 1
        how = os.environ.get("BOOM") if self.calls == 3 else None
        if how == "step":
            raise ZeroDivisionError("boom")
        if how == "memory":
            torch.empty(1 << 50)
        return roll.logits.float().mean() * (float("nan") if how == "nan" else 0.0), {}

class Sampler(OneStep):
    """Draws, or not."""
    def sample(self, net, cond, rng):
        if os.environ.get("BOOM") == "sample":
            raise IndexError("boom")
        return super().sample(net, cond, rng)
'''


@dataclass
class Result:
    """What one fault came to."""

    code: int
    """Exit code of the command that met the fault."""
    message: str
    """What it said on the terminal."""
    intact: bool
    """Whether earlier files (checkpoints, weights, tables) are bit by bit what they were, and no half one is left."""
    recovered: bool | None = None
    """Whether doing what the message says led to the result of a run without faults, to the last bit."""
    tried: int = 1
    """Places or moments that were tried; all had the same exit code."""


@dataclass
class Bench:
    """A folder of tiny recipes and of what commands made of them. Start with `prepare`."""

    root: Path
    started: list[forked.Command] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        """Run folders; they share the cached parts."""
        return self.root / "runs"

    def prepare(self) -> Bench:
        """Recipes, `runs/whole` (all players, never stopped), `runs/killed` (in its sixth checkpoint), `runs/table`."""
        tiny.write(self.root)
        texts = {"boom": "base: terms.yaml\ntrain:\n  terms:\n    - {use: dimo}\n    - {use: boom}\n"}
        rows = tiny.SECTIONS.partition("search:")[0] + "    - {name: drawn, of: student, sampler: {use: boom}}\n"
        texts["drawn"] = tiny.DIMO + rows
        for name, text in texts.items():
            (self.root / f"{name}.yaml").write_text(f"title: {name}\n{text}".replace("title: drawn\n", ""))
        entries = {"softdimo.loss": {"boom": "boom:Loss"}, "softdimo.sampler": {"boom": "boom:Sampler"}}
        distribution(self.root / "site", "softdimo-boom", entries, {"boom": BOOM})
        for name, recipe, prelude in (
            ("whole", "terms", ""),
            ("killed", "terms", at("6.partial/state.pt", "os.kill(os.getpid(), 9)")),
            ("table", "whole", ""),
        ):
            code, said = self.run(recipe, self.runs / name, prelude=prelude)
            assert code == (-9 if prelude else 0), said
        return self

    def start(self, *arguments: object, prelude: str = "", boom: str = "") -> forked.Command:
        """Start a command; `boom` is what the plugin of that name does."""
        place = self.root / "said"
        place.mkdir(exist_ok=True)
        environment = {"PYTHONPATH": f"{self.root / 'site'}:{os.environ.get('PYTHONPATH', '')}", "BOOM": boom,
                       "TMPDIR": str(place)}  # fmt: skip
        self.started.append(forked.start(arguments, place / str(len(self.started)), prelude, environment))
        return self.started[-1]

    def close(self) -> None:
        """End what a failure has left running."""
        for command in self.started:
            if command.code is None:
                command.send(signal.SIGKILL)
                command.wait()

    def command(self, *arguments: object, prelude: str = "", boom: str = "") -> tuple[int, str]:
        """Exit code and output."""
        started = self.start(*arguments, prelude=prelude, boom=boom)
        return started.wait(), started.said

    def arguments(self, recipe: str, run: Path, *more: str) -> tuple[object, ...]:
        """Those of `softdimo run`."""
        every = () if recipe == "whole" else EVERY
        return ("run", self.root / f"{recipe}.yaml", "--out", run, *ALONE, *every, *more)

    def run(self, recipe: str, run: Path, *more: str, prelude: str = "", boom: str = "") -> tuple[int, str]:
        """`softdimo run`."""
        return self.command(*self.arguments(recipe, run, *more), prelude=prelude, boom=boom)

    def copy(self, name: str, to: str) -> Path:
        """A copy of a run beside it."""
        return Path(shutil.copytree(self.runs / name, self.runs / to, dirs_exist_ok=True))

    def apart(self, name: str, to: str) -> Path:
        """A copy of a run with cached parts of its own."""
        shutil.copytree(self.runs / "cache", self.root / to / "cache")
        return Path(shutil.copytree(self.runs / name, self.root / to / name))

    def meet(
        self,
        run: Path,
        arguments: tuple[object, ...],
        mend: Callable[[], object] | None = None,
        prelude: str = "",
        boom: str = "",
        again: tuple[object, ...] = (),
        same: Callable[[], bool] | None = None,
    ) -> Result:
        """Meet a fault; then `mend`, and run the same command with `--resume` (or `again`) up to the `same` result."""
        before = earlier(run)
        code, said = self.command(*arguments, prelude=prelude, boom=boom)
        found = Result(code, self.plain(said), unchanged(before, run))
        if mend is not None:
            mend()
            resumed, said = self.command(*(again or (*arguments, "--resume")))
            found.recovered = resumed == 0 and (not differences(run, self.runs / "whole") if same is None else same())
            assert resumed == 0, said
        return found

    def plain(self, said: str) -> str:
        """A message without the names of this folder, progress left out."""
        text = said[said.find("error: ") :] if "error: " in said else said
        text = " ".join(text.split())
        return re.sub(r"softdimo-\d+-\d+-\w+\.log", "FILE.log", text).replace(f"{self.root}/", "")

    @contextmanager
    def disk(self, run: Path, *options: str) -> Iterator[Path]:
        """`run` on a file system of its own (16 MB, in memory), with what stands there."""
        kept = run.with_name(run.name + ".kept")
        run.rename(kept)
        run.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(run)], check=True)
        shutil.copytree(kept, run, dirs_exist_ok=True)
        try:
            if options:
                subprocess.run(["mount", "-o", ",".join(("remount", *options)), str(run)], check=True)
            yield run
        finally:
            subprocess.run(["umount", str(run)], check=True)


@dataclass(frozen=True)
class Case:
    """A fault and what is expected of it."""

    name: str
    provoke: Callable[[Bench], Result]
    code: int
    says: str
    """A pattern in the message."""
    recovers: bool = True
    """Whether there is something to go on with."""
    mounts: bool = False
    """Whether it needs the right to mount file systems."""
    quick: bool = False
    """Whether it is among those that are tested by default."""


CASES: list[Case] = []


def case(
    name: str, code: int, says: str, recovers: bool = True, mounts: bool = False, quick: bool = False
) -> Callable[[Callable[[Bench], Result]], Callable[[Bench], Result]]:
    """Add a function to `CASES`."""

    def add(function: Callable[[Bench], Result]) -> Callable[[Bench], Result]:
        CASES.append(Case(name, function, code, says, recovers, mounts, quick))
        return function

    return add


def at(path: str, action: str, time: int = 1) -> str:
    """Code that runs `action` when a path that holds `path` is opened or made for the `time`-th time."""
    return (
        "import os, resource, signal, sys\n"
        "seen = [0]\n"
        "def hook(event, args):\n"
        f"    if event in ('open', 'os.mkdir', 'tempfile.mkstemp') and {path!r} in str(args[0]) and not (\n"
        f"        event == 'open' and str(args[0]).endswith({PARTIAL!r})\n"  # mkstemp has told of it
        "    ):\n"
        "        seen[0] += 1\n"
        f"        if seen[0] == {time}:\n"
        f"            {action}\n"
        "sys.addaudithook(hook)\n"
    )


def filled(disk: Path) -> str:
    """An action that leaves no free byte on a disk."""
    return (
        f"h = os.open('{disk}/ballast', os.O_WRONLY | os.O_CREAT)\n"
        "            try:\n"
        "                while os.write(h, b'0' * 4096): pass\n"
        "            except OSError: os.close(h)"
    )


def can_mount(folder: Path) -> bool:
    """Whether file systems can be mounted here."""
    place = folder / "mount"
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, check=False)
    return done.returncode == 0 and subprocess.run(["umount", str(place)], check=True).returncode == 0


def earlier(run: Path) -> dict[str, str]:
    """Hashes of what no fault may change: complete checkpoints, weights and their lock; rows; what is half-written."""
    kept = [p for c in checkpoint.complete(run / "checkpoints") for p in c.iterdir()]
    products = list(run.rglob("*.safetensors"))
    kept += [p for p in (*products, run / "lock.json", run / "search.json") if products and p.is_file()]
    found = {str(p.relative_to(run)): sha256(p) for p in kept}
    half = {str(p.relative_to(run)): "" for p in run.rglob(f".*{PARTIAL}")}
    return found | half | {str(row["name"]): json.dumps(row) for row in rows(run)}


def rows(run: Path) -> list[dict[str, Any]]:
    """Measured rows, where there are some that can be read."""
    try:
        found: list[dict[str, Any]] = json.loads((run / "eval.json").read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError):
        return []
    return found


def unchanged(before: Mapping[str, str], run: Path) -> bool:
    """Whether all that was there is there, and nothing new is half-written."""
    now = earlier(run)
    kept = all(now.get(name) == value for name, value in before.items() if not name.endswith(PARTIAL))
    return kept and all(name in before for name in now if name.endswith(PARTIAL))


def same_table(run: Path, whole: Path) -> bool:
    """Whether two evaluations have the same numbers."""
    one, two = ([row | {"seconds": 0, "by": ""} for row in rows(r)] for r in (run, whole))
    return bool(two) and one == two


def differences(run: Path, whole: Path) -> list[str]:
    """What differs between two trainings: weights, averages, critics, optimizers, streams, the log; to the last bit."""
    pairs = {str(p.relative_to(whole)): [r / p.relative_to(whole) for r in (run, whole)]
             for p in whole.rglob("*.safetensors")}  # fmt: skip
    out = [f"{name} is missing" for name, (mine, _) in pairs.items() if not mine.is_file()]
    for name, (mine, other) in pairs.items():
        out += [f"{name} {k}" for k in unlike(read_weights(mine), read_weights(other))] if mine.is_file() else []
    last = [checkpoint.complete(r / "checkpoints")[-1] for r in (run, whole)]
    for name in ("state.pt", "rank-0.pt"):
        out += [f"{name} {k}" for k in unlike(*(dict(_flat(torch.load(c / name, weights_only=True))) for c in last))]
    logs = [list(csv.DictReader((r / "log.csv").read_text(encoding="utf-8").splitlines())) for r in (run, whole)]
    return sorted(out + (["log.csv"] if logs[0] != logs[1] else []))


def unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Keys whose values (tensors or plain) differ in a bit, or are missing in one."""
    same = [k for k in a if k in b and (torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k])]
    return sorted((a.keys() | b.keys()) - set(same))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{path}/{i}")
    else:
        yield path, value

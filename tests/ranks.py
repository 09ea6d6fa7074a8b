"""Functions and commands in several processes that meet over gloo, as those of torchrun do."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.forked import Command, forks, start


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
    }  # fmt: skip


def srun(rank: int, world: int, port: int) -> dict[str, str]:
    """What srun tells a task; the port is that of the job's number."""
    return {
        "SLURM_JOB_ID": str(port - 15000), "SLURM_JOB_NAME": "softdimo", "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(world), "SLURM_NTASKS_PER_NODE": str(world), "SLURM_NNODES": "1",
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0",
    }  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on, of those that srun's jobs may have."""
    for port in range(15000 + os.getpid() % 5000, 25000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


def run(world: int, function: Callable[..., Any], *arguments: object, seconds: float = 120) -> list[Any]:
    """What `function(*arguments)` returns on each of `world` ranks. It can be imported; errors are raised here."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(world)]
        processes = [
            forks().Process(target=_work, args=(environment(r, world, port), str(files[r]), function, arguments))
            for r in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(seconds)
        late = [process for process in processes if process.exitcode is None]
        for process in late:
            process.kill()
        found = [pickle.loads(file.read_bytes()) if file.exists() else "it was killed" for file in files]
    errors = [f"rank {r}: {each}" for r, each in enumerate(found) if isinstance(each, str)]
    assert not errors, "\n".join(errors)
    assert not late, "still running"
    return [each[0] for each in found]


def _work(told: dict[str, str], file: str, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    os.environ.update(told, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    try:
        found: Any = (function(*arguments),)
    except BaseException:
        found = traceback.format_exc()
    Path(file).write_bytes(pickle.dumps(found))
    sys.stdout.flush()
    os._exit(isinstance(found, str))  # the other rank may be gone; nobody shall wait for it


def commands(
    world: int,
    arguments: Sequence[object],
    folder: Path,
    told: Callable[[int, int, int], dict[str, str]] = environment,
    prelude: str = "",
) -> list[Command]:
    """Start `softdimo ARGUMENTS` on every rank; what rank r prints lands in `folder/said-r`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    return [start(arguments, folder / f"said-{r}", prelude, told(r, world, port)) for r in range(world)]

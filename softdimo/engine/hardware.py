"""Where a run happens: Fabric, threads, memory allocator."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException

from softdimo.engine import sharding
from softdimo.errors import Elsewhere, RecipeError, SoftdimoError
from softdimo.recipe.model import Hardware

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Ask glibc to keep freed buffers: on CPUs, returning large tensors to the kernel costs a third of the time."""
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    except (OSError, AttributeError):
        return  # another C library: only the speed differs


def launch(hardware: Hardware) -> Fabric:
    """Start Fabric (and its ranks) as the recipe says; torchrun and srun decide themselves how many ranks there are.

    RecipeError where this machine has no such device, or Fabric does not know the combination.
    """
    keep_freed_memory()
    devices, nodes = _processes() or (hardware.devices, hardware.num_nodes)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    for harmless in ("Grad strides do not match bucket view strides", "FSDP2-wrapped module .* returned a view tensor"):
        warnings.filterwarnings("ignore", harmless)  # channels-last convolutions; views that nobody writes into
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning_fabric")
        try:
            fabric = Fabric(
                accelerator=hardware.accelerator,
                devices=devices,
                num_nodes=nodes,
                strategy=sharding.strategy(devices * nodes) if hardware.strategy == "fsdp2" else hardware.strategy,
                precision=hardware.precision,
            )
        except (RuntimeError, ValueError, TypeError, MisconfigurationException) as error:
            asked = f"{devices} x {hardware.accelerator}, {hardware.strategy}, {hardware.precision}"
            raise RecipeError(f"hardware: cannot have {asked} here: {error}") from error
        fabric.launch()
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    return fabric


def _processes() -> tuple[int, int] | None:
    """Processes per node and nodes, where torchrun or srun has started them."""
    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    if "SLURM_NTASKS_PER_NODE" in os.environ and SLURMEnvironment.job_name() not in ("bash", "interactive"):
        return int(os.environ["SLURM_NTASKS_PER_NODE"]), int(os.environ["SLURM_NNODES"])
    return None


@contextlib.contextmanager
def one_voice(fabric: Fabric) -> Iterator[None]:
    """Of the ranks of a run, the first that fails says why; in the others every error becomes `Elsewhere`."""
    try:
        yield
    except BaseException as error:
        if fabric.world_size == 1:
            raise
        if _first_to_fail():
            if not _lost(error):
                raise
            raise SoftdimoError(
                "another rank ended without a word: was it killed, was there enough memory? "
                "The same command with --resume goes on"
            ) from error
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(1.0)  # whoever started the ranks ends them all with the first that is gone: let the other speak
        raise Elsewhere("another rank has failed, and said why") from error


def _lost(error: BaseException) -> bool:
    """Whether the ranks' exchange broke off, in the words of its libraries."""
    cause = error.__cause__ or error
    known = any(word in str(cause) for word in ("gloo/transport", "NCCL"))
    return isinstance(cause, torch.distributed.DistError) or (isinstance(cause, RuntimeError) and known)


def _first_to_fail() -> bool:
    """Asked of the store through which the ranks have met, which counts."""
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return int(store.add("softdimo/failed", 1)) == 1
    except (RuntimeError, ValueError):
        return False  # the store is gone with the rank that kept it, which therefore failed earlier

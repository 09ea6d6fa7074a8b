"""Where a run happens: Fabric, threads, memory allocator."""

from __future__ import annotations

import ctypes
import sys
import warnings

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from softdimo.errors import RecipeError
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
    """Start Fabric (and its ranks) as the recipe says; honors torchrun and SLURM as Lightning does.

    RecipeError where this machine has no such device, or Fabric does not know the combination.
    """
    keep_freed_memory()
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning_fabric")
        try:
            fabric = Fabric(
                accelerator=hardware.accelerator,
                devices=hardware.devices,
                num_nodes=hardware.num_nodes,
                strategy=hardware.strategy,
                precision=hardware.precision,
            )
        except (RuntimeError, ValueError, TypeError, MisconfigurationException) as error:
            asked = f"{hardware.devices} x {hardware.accelerator}, {hardware.strategy}, {hardware.precision}"
            raise RecipeError(f"hardware: cannot have {asked} here: {error}") from error
        fabric.launch()
    return fabric

"""Mixed precision: what autocast would round in every pass is rounded once, and nothing is kept twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from softdimo.kinds import Teacher
from softdimo.recipe.model import Hardware

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def lightens(hardware: Hardware) -> bool:
    """Whether a frozen teacher's blocks are kept in bfloat16; FSDP2 wants one type, and casts what it gathers."""
    return hardware.precision == "bf16-mixed" and hardware.strategy != "fsdp2"


def lighten(teacher: Teacher) -> None:
    """Keep the linear layers of a frozen teacher's blocks in bfloat16: half the memory, the same bits under autocast.

    The teacher then computes under autocast only, and must not be copied into a student any more.
    """
    for layer in teacher.layers():
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.bfloat16()


@contextlib.contextmanager
def autocast(fabric: Fabric) -> Iterator[None]:
    """Fabric's autocast; rounded weights live as long as the graph that needs them, not until the block ends."""
    with fabric.autocast():
        kept = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(kept)

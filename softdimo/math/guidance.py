"""Classifier-free guidance, in one convention: z = z_u + s (z_c - z_u). s = 1 is no guidance, s = 0 unconditional.

What published numbers mean in this scale:

| convention           | their formula       | s     | published values                           |
|----------------------|---------------------|-------|--------------------------------------------|
| dimo (and Meissonic) | z_u + s (z_c - z_u) | s     | 2 for MaskGIT, 4 for Meissonic             |
| maskgit (and Halton) | (1 + w) z_c - w z_u | 1 + w | w = 3, `linear` ramp over the steps        |
| maskbit              | z_c + g (z_c - z_u) | 1 + g | g = 7.1, `cosine` ramp with power 3        |
| maskgen              | z_c + g (z_c - z_u) | 1 + g | g = 12, `cosine` ramp from g = 1 (start 2) |
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from softdimo.math.precision import wide
from softdimo.shapes import Embedding, Mask, PerSample
from softdimo.spec import Positive, Settings

if TYPE_CHECKING:
    from softdimo.kinds import Cond, Teacher

Convention = Literal["dimo", "maskgit", "maskbit", "maskgen"]
_OFFSET: dict[Convention, float] = {"dimo": 0.0, "maskgit": 1.0, "maskbit": 1.0, "maskgen": 1.0}


class Guidance(Settings):
    """Guidance scale and how it grows with the progress of sampling."""

    scale: float = 1.0
    """s of z_u + s (z_c - z_u), reached at progress 1. 1 is no guidance."""
    ramp: Literal["constant", "linear", "cosine"] = "constant"
    """`linear`: start + (scale - start) u^power; `cosine`: start + (scale - start) (1 - cos(pi u^power)) / 2."""
    start: float = 1.0
    """s at progress 0 of a ramp."""
    power: Positive = 1.0
    """Exponent of the progress u."""

    @overload
    def at(self, progress: float) -> float: ...
    @overload
    def at(self, progress: PerSample) -> PerSample: ...
    def at(self, progress: float | PerSample) -> float | PerSample:
        """Scale s at progress u in [0, 1]: 0 where everything is masked, 1 at the end.

        A sampler passes i / (steps - 1) (MaskGIT) or i / steps (MaskBit). To guide a training batch by its mask ratios
        pass the u that they were drawn with, `schedules.progress_at(schedule, ratio)`.
        """
        if not isinstance(progress, Tensor):
            return float(self.at(torch.tensor([progress], dtype=torch.float64)))
        if self.ramp == "constant":
            return torch.full_like(progress, self.scale)
        u = progress.pow(self.power)
        grown = u if self.ramp == "linear" else (1 - (math.pi * u).cos()) / 2
        return self.start + (self.scale - self.start) * grown


def to_scale(value: float, convention: Convention) -> float:
    """The scale s that a published guidance number means (table above)."""
    return value + _OFFSET[convention]


def from_scale(scale: float, convention: Convention) -> float:
    """The number that another code base wants for our scale s; inverse of `to_scale`."""
    return scale - _OFFSET[convention]


def guided_logits(
    net: Teacher, e: Embedding, cond: Cond, scale: float | PerSample, at: Mask | None = None
) -> Float[Tensor, "*units V"]:
    """Guided logits z_u + s (z_c - z_u) of one batched pass: [B L G V], or [N V] with `at`, ordered as `at.nonzero()`.

    Conditional and unconditional halves go through `net` as one batch of 2B; when every scale is exactly 1 the
    unconditional half is skipped. Combined in float32 for lower precisions. `scale`: one number, or one per sample [B].
    """
    if (torch.as_tensor(scale) == 1).all():
        return wide(net(e, cond, at=at).logits)
    both = net(torch.cat([e, e]), cond.cat([cond, net.null(cond)]), at=None if at is None else torch.cat([at, at]))
    z_c, z_u = wide(both.logits).chunk(2)
    if isinstance(scale, Tensor):
        scale = _per_unit(scale.to(z_c), at, z_c)
    return torch.lerp(z_u, z_c, scale)


def _per_unit(scale: Tensor, at: Mask | None, logits: Tensor) -> Tensor:
    """Scales [B] in a shape that multiplies logits: [B 1 1 1], or [N 1] where `at` lists N units sample by sample."""
    if at is None:
        return scale.view(-1, *[1] * (logits.ndim - 1))
    return scale.repeat_interleave(at.flatten(1).sum(1), output_size=len(logits))[:, None]

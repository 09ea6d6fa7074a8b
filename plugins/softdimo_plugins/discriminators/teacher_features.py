"""A discriminator on the frozen teacher's features: light heads on several blocks (Soft-Di[M]O, after LADD)."""

from __future__ import annotations

from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from softdimo.errors import PluginError
from softdimo.kinds import Cond, Context, Discriminator, Teacher
from softdimo.shapes import PerSample
from softdimo.spec import NetworkSpec


class TeacherFeatures(NetworkSpec):
    """Per block: LayerNorm, linear, add an embedding of the mask ratio, SiLU, linear per token, mean over tokens."""

    space: ClassVar[str] = "embedding"
    trunk: ClassVar[bool] = True
    """It runs the frozen backbone."""
    blocks: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Block indices (negative from the end); null spreads six heads, or one per block of a shallower teacher."""
    hidden: Annotated[int, Field(ge=1)] = 256
    """Width of each head."""

    def build(self, context: Context) -> TeacherFeatureHeads:
        """The heads around the context's frozen teacher."""
        if context.teacher is None:
            raise PluginError("the discriminator `teacher_features` needs a `teacher:` section in the recipe")
        depth = context.teacher.depth
        if self.blocks is None:
            n = min(6, depth)
            blocks = tuple((i + 1) * depth // n - 1 for i in range(n))
        else:
            bad = [b for b in self.blocks if not -depth <= b < depth]
            if bad:
                raise PluginError(f"discriminator.blocks: {bad} not in this teacher, which has blocks 0 to {depth - 1}")
            blocks = tuple(b % depth for b in self.blocks)
        return TeacherFeatureHeads(context.teacher, blocks, self.hidden)


class Head(nn.Module):
    """Scores one block's features [B L D] -> [B]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, hidden)
        self.ratio = nn.Linear(8, hidden)
        self.outer = nn.Linear(hidden, 1)

    def forward(self, h: Tensor, r: Tensor) -> Tensor:
        """Mean over tokens of the per-token scores, in the precision of the head's weights."""
        h, r = h.to(self.inner.weight.dtype), r.to(self.inner.weight.dtype)
        x = self.inner(self.norm(h)) + self.ratio(r)[:, None]
        return cast(Tensor, self.outer(nn.functional.silu(x)).mean((1, 2)))


class TeacherFeatureHeads(Discriminator):
    """Heads are its parameters; the frozen teacher is held, not registered."""

    def __init__(self, teacher: Teacher, blocks: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self._trunk = (teacher,)  # a tuple, so that the teacher's weights are neither trained nor saved with the heads
        self.blocks = blocks
        self.heads = nn.ModuleList(Head(teacher.width, hidden) for _ in blocks)

    def forward(self, x: Tensor, ratio: PerSample, cond: Cond) -> Tensor:
        """[B L D] -> [B heads]; gradients flow through the trunk to x, never into its weights."""
        teacher = self._trunk[0]
        nothing = torch.zeros(len(x), teacher.shape.L, teacher.shape.G, dtype=torch.bool, device=x.device)
        x = x.to(next(teacher.parameters()).dtype)  # a strategy may have brought it to the precision of the heads
        features = teacher(x, cond, at=nothing, features=self.blocks).features
        angles = ratio[:, None] * torch.pi * torch.tensor([0.5, 1.0, 2.0, 4.0], device=x.device)
        r = torch.cat([angles.sin(), angles.cos()], -1)
        return torch.stack([head(h, r) for head, h in zip(self.heads, features, strict=True)], -1)

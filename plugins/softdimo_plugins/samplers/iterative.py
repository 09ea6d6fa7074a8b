"""What samplers of several steps share: the reveal schedule, guidance over the steps, a first step without waste."""

from __future__ import annotations

from typing import Annotated, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from softdimo.kinds import Cond, Teacher
from softdimo.math.guidance import Guidance, guided_logits
from softdimo.math.rollout import categorical
from softdimo.math.schedules import Schedule, reveal_counts
from softdimo.shapes import Tokens
from softdimo.spec import Positive, Spec


class Iterative(Spec):
    """From all [M] to tokens in `steps` steps. Units are the L * G places; groups are revealed independently."""

    steps: Annotated[int, Field(ge=1)] = 16
    """Steps; a guided step costs two network passes."""
    schedule: Schedule = "arccos"
    """How many units each step commits."""
    guidance: Guidance = Guidance()
    """Scale over the steps: step i has progress i / (steps - 1), a single step has progress 1."""
    temperature: Positive = 1.0
    """Divides the (guided) logits before tokens are drawn."""

    def smoke(self) -> Self:
        """Two steps."""
        return self.model_copy(update={"steps": min(2, self.steps)})

    def scale(self, step: int) -> float:
        """Guidance scale of a step."""
        return self.guidance.at(self.progress(step))

    def progress(self, step: int) -> float:
        """0 at the first step, 1 at the last and at an only one."""
        return step / (self.steps - 1) if self.steps > 1 else 1.0

    def passes(self) -> float:
        """Network passes per sample: 2 for a guided step, 1 where the scale is exactly 1.

        The first step counts in full, although its passes are shared by the samples of one condition (see `predict`).
        """
        return float(sum(1 if self.scale(step) == 1 else 2 for step in range(self.steps)))

    def counts(self, net: Teacher) -> list[int]:
        """Units committed at each step. Raises RecipeError where there are more steps than units."""
        return reveal_counts(self.schedule, self.steps, net.shape.units)

    def predict(
        self, net: Teacher, tokens: Int[Tensor, "B units"], cond: Cond, at: Bool[Tensor, "B units"], step: int
    ) -> Float[Tensor, "B n V"]:
        """Guided logits over the temperature at the n units per sample that `at` marks (n is the same for all).

        Before the first step every sequence is all [M], so samples of one class share one pass: the network runs on the
        distinct labels only. Conditions that carry prompts or encodings, and networks in training mode, are not merged.
        """
        B, V = len(cond), net.shape.V
        if step == 0 and not (cond.prompts or cond.tensors or net.training):
            labels, which = torch.unique(cond.labels, return_inverse=True)
            x = tokens[:1].expand(len(labels), -1).view(len(labels), net.shape.L, net.shape.G)
            z = guided_logits(net, net.embed(x), Cond(labels), self.scale(step)).flatten(1, 2)
            sample, unit = at.nonzero(as_tuple=True)
            z = z[which[sample], unit]
        else:
            x = tokens.view(B, net.shape.L, net.shape.G)
            z = guided_logits(net, net.embed(x), cond, self.scale(step), at=at.view_as(x))
        return z[..., :V].reshape(B, -1, V) / self.temperature  # never the mask, where a network has it as a class

    @torch.no_grad()
    def in_order(self, net: Teacher, cond: Cond, order: Int[Tensor, "B units"], rng: torch.Generator) -> Tokens:
        """Tokens [B L G] in [0, V), units revealed in this order. The head runs where a step reveals, nowhere else."""
        tokens = blank(net, cond)
        first = 0
        for step, n in enumerate(self.counts(net)):
            if n == 0:
                continue
            unit = order[:, first : first + n].sort(1).values
            at = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, unit, True)
            tokens.scatter_(1, unit, categorical(self.predict(net, tokens, cond, at, step), rng))
            first += n
        return tokens.view(len(cond), net.shape.L, net.shape.G)


def blank(net: Teacher, cond: Cond) -> Int[Tensor, "B units"]:
    """All [M]: ids V as [B units]."""
    return torch.full((len(cond), net.shape.units), net.shape.V, device=cond.labels.device)

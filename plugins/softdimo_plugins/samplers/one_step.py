"""The student's sampler: x_init, one forward, categorical tokens (Di[M]O, arXiv 2503.15457)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from softdimo.errors import PluginError
from softdimo.kinds import Cond, Context, Teacher
from softdimo.math.init import Init
from softdimo.math.rollout import categorical, start
from softdimo.shapes import Logits, Probs, Tokens
from softdimo.spec import Positive, Spec
from softdimo_plugins.samplers.truncate import truncate


class OneStep(Spec):
    """One network pass from the hybrid initialization, unguided; every token drawn independently."""

    init: Init | None = None
    """Token initialization; when null, that of the recipe that the student was trained by."""
    temperature: Positive = 1.0
    """Divides the logits. Tune it per metric (the paper's best FID for MaskGIT is near 7) and state it."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Draw among the k most probable classes only."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw among the most probable classes that together hold this probability."""

    def build(self, context: Context) -> OneStep:
        """These settings, with the recipe's initialization filled in."""
        return self if self.init is not None else self.model_copy(update={"init": context.init})

    def passes(self) -> float:
        """Network passes per sample: 1."""
        return 1.0

    def logits(self, net: Teacher, cond: Cond, rng: torch.Generator) -> Logits:
        """z_theta(x_init) after temperature and truncation, float32 [B L G V].

        Raises PluginError where no initialization is known.
        """
        if self.init is None:
            raise PluginError("the sampler `one_step` has no `init`: set it, or give the recipe an `init:` section")
        with torch.no_grad():
            _, e = start(net, cond, self.init, rng)
            return truncate(net(e, cond).logits.float() / self.temperature, self.top_k, self.top_p)

    def probs(self, net: Teacher, cond: Cond, rng: torch.Generator) -> Probs:
        """What a soft decode shows instead of tokens: softmax of `logits`."""
        return self.logits(net, cond, rng).softmax(-1)

    def sample(self, net: Teacher, cond: Cond, rng: torch.Generator) -> Tokens:
        """Hard tokens [B L G]."""
        return categorical(self.logits(net, cond, rng), rng)

"""The GAN term of Soft-Di[M]O (arXiv 2509.22925): soft embeddings against real tokens, re-masked at one ratio."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from softdimo.errors import DataError, PluginError
from softdimo.kinds import Batch, Cond, Context, Discriminator, Logs, Teacher, Tokenizer
from softdimo.math.masking import apply_mask, exact_count_mask
from softdimo.math.precision import wide
from softdimo.math.ranks import mean_over_ranks
from softdimo.math.rollout import Roll
from softdimo.shapes import Mask, PerSample, Probs
from softdimo.spec import Fraction, LossSpec, NetworkSpec, NonNegative, Optimizer, Player, component

EQUATIONS = {
    "embedding": ("E_r", "e_r, r, c", ",  e = E^T p_theta"),
    "pixels": ("E", "x, c", ",  x = Dec(E_dec^T p_theta)"),
}
"""Space -> what is averaged over, what D sees, and what that is."""


class GAN(LossSpec):
    """A discriminator tells relaxed samples from real ones: soft embeddings under the same mask, or decoded images."""

    equation: ClassVar[str] = "E_r[softplus(-D(x, r, c))]"
    source: ClassVar[str] = "Soft-Di[M]O (arXiv 2509.22925), Algorithm 1"

    discriminator: Annotated[NetworkSpec, component("discriminator")]
    """The discriminator component."""
    loss: Literal["non_saturating", "hinge"] = "non_saturating"
    """Softplus of minus the score, or the hinge."""
    ratio: tuple[Fraction, Fraction] = (0.0, 0.95)
    """Range of the mask ratio r ~ U, shared by real and generated (embedding-space discriminators)."""
    r1: NonNegative = 0.0
    """Weight of the approximate R1 penalty |D(x + noise) - D(x)|^2 on real inputs; 0 is off."""
    r1_noise: NonNegative = 0.1
    """Its noise, in units of the input's RMS."""
    player: Player = Player(optimizer=Optimizer(lr=1e-4, betas=(0.0, 0.99)))
    """How the discriminator trains."""

    def objective(self) -> tuple[str, str]:
        """In the space that the discriminator's settings name; where they name none, x is left open."""
        space: str = getattr(self.discriminator, "space", "")
        mean, seen, where = EQUATIONS.get(space, ("E_r", "x, r, c", ""))
        value = f"softplus(-D({seen}))" if self.loss == "non_saturating" else f"-D({seen})"
        return f"{mean}[{value}]{where}", self.source + (", on decoded images" if space == "pixels" else "")

    def passes(self) -> dict[str, float]:
        """A discriminator with a frozen trunk: there and back for the student, real and generated for the heads."""
        if not getattr(self.discriminator, "trunk", False):
            return {}
        return {"frozen trunk, student's turn": 2.0, "frozen trunk, critic's turn": 2.0 / self.player.every}

    def build(self, context: Context) -> GANTerm:
        """The term, owning its discriminator."""
        if context.teacher is None or context.tokenizer is None:
            raise PluginError("the loss `gan` needs a `teacher:` and a `tokenizer:` section in the recipe")
        return GANTerm(self, context.make(self.discriminator), context.teacher, context.tokenizer)


class GANTerm:
    """L_GAN and the discriminator that it owns."""

    def __init__(self, spec: GAN, discriminator: Discriminator, teacher: Teacher, tokenizer: Tokenizer) -> None:
        self.spec, self.teacher, self.tokenizer, self.player = spec, teacher, tokenizer, spec.player
        self.critic: nn.Module | None = discriminator
        self.pixels = discriminator.space == "pixels"

    def _mask(self, n: int, roll: Roll) -> tuple[PerSample, Mask]:
        """A mask ratio per sample and its exact-count mask; ratio 0 masks nothing."""
        low, high = (0.0, 0.0) if self.pixels else self.spec.ratio
        device = roll.tokens.device
        ratio = low + (high - low) * torch.rand(n, generator=roll.rng, device=device)
        return ratio, exact_count_mask(ratio, self.teacher.shape, roll.rng) & (ratio > 0)[:, None, None]

    def _generated(self, probs: Probs, roll: Roll, mask: Mask) -> Tensor:
        return roll.images if self.pixels else self.teacher.soften(probs, mask)

    def _real(self, real: Batch, cond: Cond, mask: Mask) -> Tensor:
        if real.tokens is None:
            raise DataError(
                "the loss `gan` needs real tokens, but this data gives none; use data with images, or `tokens`"
            )
        if self.pixels:
            return self.tokenizer.decode(real.tokens, cond)
        return self.teacher.embed(apply_mask(real.tokens, mask, self.teacher.shape.V))

    def generator(self, roll: Roll) -> tuple[Tensor, Logs]:
        """-log D on the re-masked soft embeddings (or minus the score, for hinge)."""
        assert self.critic is not None
        ratio, mask = self._mask(len(roll.tokens), roll)
        score = wide(self.critic(self._generated(roll.probs, roll, mask), ratio, roll.cond))
        loss = softplus(-score).mean() if self.spec.loss == "non_saturating" else -score.mean()
        return loss, {"generator": loss.detach()}

    def critic_loss(self, roll: Roll, real: Batch) -> tuple[Tensor, Logs]:
        """D's loss; real and generated share each sample's ratio and mask, heads are averaged after the loss."""
        assert self.critic is not None
        ratio, mask = self._mask(len(roll.tokens), roll)
        with torch.no_grad():
            x_fake, x_real = self._generated(roll.probs, roll, mask), self._real(real, real.cond, mask)
        x = torch.cat([x_real, x_fake])
        scores = wide(self.critic(x, torch.cat([ratio, ratio]), Cond.cat([real.cond, roll.cond])))
        on_real, on_fake = scores.chunk(2)
        if self.spec.loss == "non_saturating":
            loss = softplus(-on_real).mean() + softplus(on_fake).mean()
        else:
            loss = relu(1 - on_real).mean() + relu(1 + on_fake).mean()
        logs: Logs = {
            "real": on_real.detach().sigmoid().mean(),
            "fake": on_fake.detach().sigmoid().mean(),
            "discriminator": loss.detach(),
        }
        if self.spec.r1:
            rms = mean_over_ranks(x_real.square().mean()).sqrt()
            noise = torch.empty_like(x_real).normal_(generator=roll.rng) * rms * self.spec.r1_noise
            penalty = (wide(self.critic(x_real + noise, ratio, real.cond)) - on_real).square().mean()
            loss = loss + self.spec.r1 * penalty
            logs["r1"] = penalty.detach()
        return loss, logs

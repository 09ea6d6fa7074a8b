"""A trained generator for use from Python: `g = softdimo.load(folder); images = g(labels=["cat", 3], seed=0)`.

One that draws for prompts takes `g(prompts=["a red cube"], seed=0)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from softdimo.errors import DataError
from softdimo.inputs.encodings import Encodings
from softdimo.kinds import NULL_LABEL, Cond, ImageShape, Sampler, Teacher, Tokenizer, TokenShape
from softdimo.math.init import Init
from softdimo.math.rollout import categorical, start
from softdimo.shapes import Image, Logits, Tokens

Labels = Sequence[int | str]
"""Class numbers or class names."""
Prompts = Sequence[str]
"""What images shall show."""


@dataclass(frozen=True)
class Generator:
    """A student (one network pass) or a teacher with its sampler, and the tokenizer that decodes its tokens."""

    net: Teacher
    tokenizer: Tokenizer
    init: Init
    classes: tuple[str, ...]
    """Names, one per label."""
    image: ImageShape
    device: torch.device
    sampler: Sampler | None = None
    """How a teacher draws; None for a student, which takes one step."""
    text: Encodings | None = None
    """What encodes prompts; None where there are only classes."""

    @property
    def shape(self) -> TokenShape:
        """Shape of the token sequence."""
        return self.net.shape

    @property
    def passes(self) -> float:
        """Network passes per image, guidance counted."""
        return 1.0 if self.sampler is None else self.sampler.passes()

    @torch.inference_mode()
    def __call__(
        self,
        labels: Labels | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        decode: Literal["hard", "soft"] = "hard",
        prompts: Prompts | None = None,
    ) -> Image:
        """Images [B C H W] in [0, 1], one per label (one per class by default), or one per prompt.

        `seed` fixes every random number. `decode="soft"` decodes the student's expected codes instead of sampled ones;
        `temperature` divides the student's logits. Raises DataError for an unknown label, for prompts where there is no
        text encoder, and for labels or nothing where there is one.
        """
        cond = self.condition(labels, prompts)
        if decode == "soft":
            if self.sampler is not None:
                raise DataError("a soft decode needs a one-step student; this generator samples in several steps")
            return self.tokenizer.decode_soft((self._logits(cond, seed) / temperature).softmax(-1), cond).clamp(0, 1)
        return self.tokenizer.decode(self._tokens(cond, seed, temperature), cond).clamp(0, 1)

    @torch.inference_mode()
    def tokens(
        self, labels: Labels | None = None, seed: int = 0, temperature: float = 1.0, prompts: Prompts | None = None
    ) -> Tokens:
        """Sampled tokens [B L G], one sequence per label or prompt."""
        return self._tokens(self.condition(labels, prompts), seed, temperature)

    @torch.inference_mode()
    def logits(self, labels: Labels | None = None, seed: int = 0, prompts: Prompts | None = None) -> Logits:
        """The network's logits [B L G V] at x_init, in float32: one pass."""
        return self._logits(self.condition(labels, prompts), seed)

    def _tokens(self, cond: Cond, seed: int, temperature: float) -> Tokens:
        rng = self._rng(seed)
        if self.sampler is not None:
            return self.sampler.sample(self.net, cond, rng)
        _, e = start(self.net, cond, self.init, rng)
        return categorical(self.net(e, cond).logits.float() / temperature, rng)

    def _logits(self, cond: Cond, seed: int) -> Logits:
        _, e = start(self.net, cond, self.init, self._rng(seed))
        logits: Logits = self.net(e, cond).logits
        return logits.float()

    def condition(self, labels: Labels | None = None, prompts: Prompts | None = None) -> Cond:
        """Class numbers and names, or prompts with their encodings, as a batch of conditions."""
        if self.text is not None:
            if labels is not None or not prompts or isinstance(prompts, str):
                raise DataError('this generator draws for prompts: give `prompts=["a red cube", ...]`, one or more')
            return self.text.ready(Cond(torch.full((len(prompts),), NULL_LABEL), tuple(prompts))).to(self.device)
        if prompts is not None:
            raise DataError("this generator has no text encoder, so it knows no prompts; give `labels=`")
        chosen = range(len(self.classes)) if labels is None else labels
        return Cond(torch.tensor([label_of(x, self.classes) for x in chosen], dtype=torch.long, device=self.device))

    def to(self, device: torch.device | str) -> Generator:
        """The same generator with its networks on `device`."""
        place = torch.device(device)
        text = None if self.text is None else self.text.to(place)
        return replace(self, net=self.net.to(place), tokenizer=self.tokenizer.to(place), device=place, text=text)

    def _rng(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)


def label_of(label: int | str, classes: Sequence[str]) -> int:
    """Number of a class that is given by number or name. DataError where there is no such class."""
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if not isinstance(label, str) and 0 <= int(label) < len(classes):
        return int(label)
    known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    raise DataError(f"no class is called {label!r}; give numbers below {len(classes)}, or names: {known}")


def place(device: str | torch.device) -> torch.device:
    """A device; `auto` is a GPU if there is one."""
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

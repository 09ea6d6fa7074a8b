"""What each kind of component gives. A plugin depends on this file, `spec`, `shapes` and the pure mathematics only.

Images are [B C H W] in [0, 1] with C = 1 or 3; rewards always receive C = 3. Randomness comes from the generator passed
in, never from torch's global one. Trainable state is registered as parameters or buffers, nothing else is.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softdimo.batch import NULL as NULL
from softdimo.batch import NULL_LABEL as NULL_LABEL
from softdimo.batch import Batch as Batch
from softdimo.batch import Cond as Cond
from softdimo.batch import Found as Found
from softdimo.batch import ImageShape as ImageShape
from softdimo.batch import Logs as Logs
from softdimo.batch import TokenShape as TokenShape
from softdimo.errors import PluginError
from softdimo.metric import Metric as Metric
from softdimo.shapes import Embedding, Image, Mask, PerSample, Probs, Tokens

if TYPE_CHECKING:
    from softdimo.math.init import Init
    from softdimo.math.rollout import Roll
    from softdimo.math.schedules import Schedule
    from softdimo.spec import Player, Spec


@dataclass(frozen=True)
class Context:
    """What a component may know when it is built. `make` builds a nested component and loads its weights (cached)."""

    image: ImageShape
    classes: tuple[str, ...]
    """Class names, one per label; also the prompts' words."""
    make: Callable[[Spec], Any]
    tokens: TokenShape | None = None
    teacher: Teacher | None = None
    tokenizer: Tokenizer | None = None
    init: Init | None = None
    """The recipe's token initialization, shared by training and one-step sampling."""
    schedule: Schedule = "arccos"
    """The teacher's mask schedule (see `softdimo.math.schedules`)."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rows: int | None = None
    """Images (one per start and condition) that a search has in memory at once; all of a batch when null."""

    def copy_teacher(self) -> Teacher:
        """A trainable copy of the teacher (student and auxiliary start as one); what it keeps frozen needs no grad."""
        if self.teacher is None:
            raise ValueError("there is no teacher to copy")
        net = copy.deepcopy(self.teacher)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(not name.startswith(net.frozen()))
        return net


class Output(NamedTuple):
    """What a teacher returns: logits [B L G V] (or [N V] with `at`) and one [B l D] per requested block.

    l is L, unless the blocks see a coarser grid.
    """

    logits: Tensor
    features: tuple[Embedding, ...] = ()


class Teacher(nn.Module, ABC):
    """A masked backbone. Student and auxiliary are copies of it.

    The mask id V is an input only. Everything with weights that turns tokens into the first [B L D] sequence is the
    input embedding; positions and the condition are added inside `forward`, after the embedding noise.
    """

    shape: TokenShape
    width: int
    """D."""
    depth: int
    """Blocks; `features` are indices in [0, depth), the output of that block."""
    linear: bool = True
    """Whether `soften` is linear in the probabilities; False where mixtures are normalized."""

    @abstractmethod
    def embed(self, tokens: Tokens) -> Embedding:
        """Input embedding of token ids in [0, V]."""

    @abstractmethod
    def soften(self, probs: Probs, mask: Mask | None = None) -> Embedding:
        """Soft embedding E^T p (Soft-Di[M]O); masked units get the mask embedding. Equals `embed` at one-hot."""

    @abstractmethod
    def forward(self, e: Embedding, cond: Cond, at: Mask | None = None, features: Sequence[int] = ()) -> Output:
        """One network pass. With `at`, logits are computed at those units only: [N V], ordered as `at.nonzero()`.

        An `at` without any True skips the head; blocks after the last requested feature may then be skipped too.
        """

    @abstractmethod
    def table_rms(self) -> Tensor:
        """Root mean square of the input embedding table (scalar): the unit of embedding noise and of TTEO's steps."""

    def meet(self, tokenizer: Tokenizer) -> None:
        """Called with the recipe's tokenizer before a teacher with fresh weights is trained to predict its tokens.

        Must do the same on every rank: it has no random stream.
        """

    def null(self, cond: Cond) -> Cond:
        """The unconditional (or negative) branch of classifier-free guidance: no label, the encoding `null.<name>`."""
        return replace(
            cond,
            labels=torch.full_like(cond.labels, NULL_LABEL),
            tensors={name: cond.tensors.get(f"{NULL}{name}", t) for name, t in cond.tensors.items()},
        )

    def frozen(self) -> tuple[str, ...]:
        """Prefixes of the parameters that student and auxiliary keep from the teacher (embedding tables, biases)."""
        return ()

    def layers(self) -> Sequence[nn.Module]:
        """The repeated blocks, in the order in which `forward` calls them; without any, the network is one block.

        Each is compiled, recomputed in the backward pass, or sharded by itself; `forward` calls them as modules.
        """
        return ()


class Tokenizer(nn.Module, ABC):
    """Codes <-> pixels; `decode` and `decode_soft` agree at one-hot and are differentiable."""

    shape: TokenShape

    @abstractmethod
    def encode(self, img: Image) -> Tokens:
        """Token ids in [0, V)."""

    @abstractmethod
    def decode_soft(self, probs: Probs, cond: Cond | None = None) -> Image:
        """Decode the expected code sum_v p_v C_v; differentiable in `probs`."""

    @abstractmethod
    def decode(self, tokens: Tokens, cond: Cond | None = None) -> Image:
        """Decode token ids."""

    def loss(self, img: Image, rng: torch.Generator, progress: float) -> tuple[Tensor, Logs]:
        """Training loss of this tokenizer at `progress` in [0, 1] of its run."""
        raise NotImplementedError(f"{type(self).__name__} cannot be trained here; give it weights")


class TextEncoder(nn.Module, ABC):
    """Prompts -> what teachers and tokenizers are conditioned on. Always frozen.

    Encodings are kept on the disk as it gives them (in float16 they take half of the room); networks get float32.
    """

    negative: str = ""
    """The prompt of guidance's unconditional branch. Settings with a field of that name say it before it is built."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """Named tensors [B ...], on its device; each prompt's do not depend on the others', nor do their shapes."""


class Features(nn.Module, ABC):
    """A network on images, for metrics, judges and classifier rewards."""

    width: int

    @abstractmethod
    def forward(self, img: Image) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B K"]]:
        """Features [B F] and class logits [B K]."""

    def settings(self) -> dict[str, str]:
        """What its output depends on beside its weights (how images are quantized, resized), for provenance."""
        return {}

    def loss(self, img: Image, cond: Cond, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """Training loss: cross-entropy of the labels. Override to augment."""
        logits = self(img)[1]
        loss = nn.functional.cross_entropy(logits, cond.labels)
        return loss, {"accuracy": (logits.argmax(-1) == cond.labels).float().mean()}


@runtime_checkable
class Reward(Protocol):
    """One number per image, higher is better. Never mixes samples of a batch."""

    differentiable: bool

    def __call__(self, img: Image, cond: Cond) -> PerSample:
        """Score images [B 3 H W] in [0, 1]."""
        ...


def rated(reward: Reward, img: Image, cond: Cond) -> PerSample:
    """Scores [B] of images [B C H W], gray ones as three equal channels; PluginError where they are not one each."""
    scores = reward(img.expand(-1, 3, -1, -1) if img.shape[1] == 1 else img, cond)
    if scores.shape != (len(img),):
        name = type(reward).__name__
        raise PluginError(f"the reward {name} gives {list(scores.shape)} for {len(img)} images; give one number each")
    return scores


class Discriminator(nn.Module, ABC):
    """Scores for real against generated. Its parameters are its trainable ones; a frozen trunk is not registered."""

    space: ClassVar[str] = "embedding"
    """`embedding`: x is [B L D] in the teacher's input space, re-masked at `ratio`. `pixels`: x is [B C H W].

    Its settings say the same (`space: ClassVar[str]`), for `explain` and the report, which build nothing."""

    @abstractmethod
    def forward(self, x: Tensor, ratio: PerSample, cond: Cond) -> Float[Tensor, "B heads"]:
        """Logits, one per head; positive means real."""


class Sampler(Protocol):
    """Teacher or student -> tokens."""

    def passes(self) -> float:
        """Network passes per sample, guidance counted (a guided step is 2)."""
        ...

    def sample(self, net: Teacher, cond: Cond, rng: torch.Generator) -> Tokens:
        """Draw one token sequence per condition."""
        ...


class Term(Protocol):
    """A term of L_gen. It sees the student through `roll.logits` only: the engine back-propagates once from there."""

    critic: nn.Module | None
    """What its critic player trains, or None."""
    player: Player | None
    """How the critic trains."""

    def generator(self, roll: Roll) -> tuple[Tensor, Logs]:
        """Scalar loss for the student (before the weight) and scalars for the log."""
        ...

    def critic_loss(self, roll: Roll, real: Batch) -> tuple[Tensor, Logs]:
        """Scalar loss for the critic; `roll` is detached."""
        ...


class Search(Protocol):
    """Test-time optimization of e_in with frozen weights.

    Where it has a method `passes() -> float`, that says what a condition costs at most, before anything is run.
    """

    decode: Literal["argmax", "soft"]
    """The image that is scored and given: of the most probable tokens (gradient of the soft decode), or soft itself."""

    def run(
        self,
        generator: Callable[[Embedding, Cond], Image],
        score: Callable[[Image, Cond], PerSample],
        start: Callable[[Cond, torch.Generator], Embedding],
        cond: Cond,
        rng: torch.Generator,
    ) -> Found:
        """Search each condition independently; never returns worse than its first start."""
        ...


class Source(Protocol):
    """A map-style split of a data set."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """The samples at `index`."""
        ...


class Cursor(Iterator[Batch], Protocol):
    """An endless stream of training batches whose position can be saved."""

    def state_dict(self) -> dict[str, Any]:
        """Position, as plain numbers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved position."""
        ...


class Data(ABC):
    """A data set: splits `train` and `held_out`, a stream of batches, and conditions to generate for."""

    image: ImageShape
    classes: tuple[str, ...]
    has_images: bool = True
    """Whether samples carry images; where they are labels or tokens alone, metrics need statistics of their own."""

    def meet(self, tokenizer: Tokenizer) -> None:  # noqa: B027
        """Called with the recipe's tokenizer before tokens are asked for; raises DataError where they are another's."""

    @abstractmethod
    def source(self, split: str) -> Source:
        """The split `train` or `held_out`."""

    def reference(self) -> Source:
        """Real images that metrics compare with: `train` without augmented copies, which come last in it."""
        return self.source("train")

    def stream(self, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Cursor:
        """Shuffled batches of the training split, the same for the same seed; each rank gets its share."""
        from softdimo.inputs.cursor import Shuffled

        return Shuffled(self.source("train"), batch_size, seed, rank, world)

    def conditions(self, n: int) -> Cond:
        """`n` conditions, balanced over the classes, in a fixed order; `ready` before a network sees them."""
        return Cond(torch.arange(n) % len(self.classes))

    def ready(self, cond: Cond) -> Cond:
        """Conditions with all that networks need: prompts get their encodings. What splits give is ready."""
        return cond

    def fingerprint(self) -> str:
        """Identifies the data's content (a hash), for provenance and caches."""
        return f"{type(self).__name__}:{len(self.source('train'))}"

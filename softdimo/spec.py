"""`Spec`: a component's validated settings, and the small settings that several kinds share. Imports no torch.

A stateless component *is* its Spec; a stateful one is a Spec whose `build(context)` returns it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from softdimo.kinds import Context


class Settings(BaseModel):
    """Frozen settings: unknown keys are errors, the docstring below a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Spec(Settings):
    """Settings of one component, found by the name that the recipe writes after `use:`."""

    use: str = ""
    """Entry-point name (`name`, or `distribution:name` where two distributions claim it)."""

    def build(self, context: Context) -> Any:
        """The component itself. Stateless components are their own settings."""
        return self


class RecipeRef(Settings):
    """Weights that another recipe makes. It is run once, and its result is cached by content."""

    recipe: str
    """Path of the other recipe, relative to the file that names it."""


Weights = str | RecipeRef
"""A path (file, or run folder), `hf://owner/repo/file`, or `{recipe: other.yaml}`."""


class NetworkSpec(Spec):
    """A component with parameters. `build` returns the module with fresh weights; the core then loads `weights`."""

    weights: Weights | None = None
    """Where its weights come from; fresh (seeded) when null."""


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Optimizer(Settings):
    """An optimizer and its learning-rate schedule."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive = 1e-5
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Adam's decay rates. (0, 0.99) is the stable choice for players that chase each other."""
    momentum: Fraction = 0.0
    """Momentum of `sgd`."""
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    warmup: Annotated[int, Field(ge=0)] = 0
    """Iterations of linear warm-up."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after warm-up, over the run's iterations."""
    final: Fraction = 0.0
    """Fraction of the peak that `cosine` and `linear` end at."""


class Player(Settings):
    """One player of Algorithm 1: who trains, with which optimizer, how often."""

    optimizer: Optimizer = Optimizer()
    clip: Positive | None = 1.0
    """Global gradient norm above which gradients are scaled down; null turns clipping off."""
    every: Annotated[int, Field(ge=1)] = 1
    """Take a turn every n-th iteration."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Turns whose gradients are averaged into one optimizer step."""


class GradientRatio(Settings):
    """A weight set so that the term's gradient at the student's logits has `ratio` times the norm of another term's."""

    ratio: Positive
    """Target |w g| / |w_of g_of|, norms over the batch's logits, smoothed over iterations."""
    of: str = "dimo"
    """Name of the reference term; its weight must be a constant."""
    smoothing: Fraction = 0.95
    """Decay of the running mean of the norms."""


class LossSpec(Spec):
    """A term of L_gen, perhaps with a critic of its own."""

    equation: ClassVar[str] = ""
    """What the generator minimizes (right-hand side), for `softdimo explain` and the report: `-E_r[log D(e_r, r)]`.

    `_` and `^` make scripts, braces group, Greek letters and `sum` are spelled out, `;` separates lines.
    """
    source: ClassVar[str] = ""
    """Where the equation comes from, as `Soft-Di[M]O, Algorithm 1`."""
    name: str = ""
    """Name in logs and references; the entry-point name when empty."""
    weight: float | GradientRatio = 1.0
    """Constant, or `{ratio: 0.3, of: dimo}`."""

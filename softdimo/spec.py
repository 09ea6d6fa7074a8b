"""`Spec`: a component's validated settings, and the small settings that several kinds share. Imports no torch.

A stateless component *is* its Spec; a stateful one is a Spec whose `build(context)` returns it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from softdimo.errors import PluginError

if TYPE_CHECKING:
    from softdimo.kinds import Context


class Settings(BaseModel):
    """Frozen settings: unknown keys are errors, the docstring below a field is its documentation.

    Numbers, text and true/false are never turned into one another, and a mapping that is given for a field whose
    default is settings changes the keys that it names and keeps the rest of that default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _read(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        default = cls.model_fields[info.field_name or ""].default
        out = handler(_over(default, value))
        wanted = _coerced(value, out)
        if wanted:
            raise PydanticCustomError("coerced", "must be {wanted}", {"wanted": wanted})
        return out


def _over(default: Any, value: Any) -> Any:
    """`value` written over `default`, where both are settings (of the same component)."""
    if not isinstance(default, Settings) or not isinstance(value, Mapping):
        return value
    if isinstance(default, Spec) and value.get("use") != default.use:
        return value
    kept = {f.alias or name: getattr(default, name) for name, f in type(default).model_fields.items()}
    return {**kept, **{key: _over(kept.get(key), v) for key, v in value.items()}}


def _coerced(value: Any, out: Any) -> str:
    """What should have been written, where pydantic turned one scalar type into another."""
    if isinstance(value, list | tuple) and isinstance(out, list | tuple):
        return next(filter(None, map(_coerced, value, out)), "")
    if isinstance(out, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(out, int | float) and isinstance(value, str | bool):
        return "a whole number" if isinstance(out, int) else "a number"
    return ""


class Written(str):
    """Text of a recipe that remembers the folder of the file it was written in."""

    folder: Path


def _absolute(value: Any) -> Any:
    if not isinstance(value, Written):
        return value
    if not value.strip() or "\0" in value:
        raise PydanticCustomError("path", "is not a path")
    return value if "://" in value else os.path.normpath(value.folder / os.path.expanduser(value))


LocalPath = Annotated[str, BeforeValidator(_absolute)]
"""A path. In a recipe a relative one starts at the folder of the file that names it; `scheme://` is left alone."""


class Spec(Settings):
    """Settings of one component, found by the name that the recipe writes after `use:`."""

    use: str = ""
    """Entry-point name (`name`, or `distribution:name` where two distributions claim it)."""

    def build(self, context: Context) -> Any:
        """The component itself. Stateless components are their own settings."""
        return self

    def content(self) -> str:
        """Hash of the files that it reads beside its settings; empty where nobody can change them (pinned packages)."""
        return ""

    def smoke(self) -> Self:
        """A smaller version for a run of seconds (`softdimo run --smoke`): fewer steps, blocks, samples."""
        return self


class component:  # noqa: N801 (an annotation, read as a word)
    """Annotation of a field that holds a component of one kind: `Annotated[NetworkSpec, component("discriminator")]`.

    A recipe writes `{use: name, ...}` there; the name is looked up among the installed plugins of that kind, and the
    settings are validated by the class found. A `Spec` that is already made passes.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        base = source if isinstance(source, type) and issubclass(source, Spec) else Spec
        return core_schema.no_info_plain_validator_function(
            lambda value: self._validate(value, base),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda spec, info: spec.model_dump(mode=info.mode, by_alias=info.by_alias), info_arg=True
            ),
            metadata={"softdimo_component": self.kind},
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"component": self.kind}

    def _validate(self, value: Any, base: type[Spec]) -> Spec:
        from softdimo import registry

        if isinstance(value, Mapping):
            use = value.get("use")
            if "use" not in value:
                raise self._fault("missing_use", f"names no {self.kind}: add `use: <name>`", value)
            if not isinstance(use, str):
                raise self._fault("use", f"must be the name of a {self.kind}", use, "use")
            try:
                cls = registry.find(self.kind, str(use))
            except PluginError as error:
                raise self._fault("plugin", str(error), use, "use") from error
            if not issubclass(cls, base):
                message = f"the {self.kind} `{use}` must subclass softdimo.spec.{base.__name__}; tell its author"
                raise self._fault("plugin", message, use, "use")
            try:
                return cls.model_validate(value)
            except ValidationError:
                raise
            except Exception as error:
                message = f"the {self.kind} `{use}` fails on these settings ({type(error).__name__}: {error})"
                raise self._fault("plugin", message, value) from error
        if isinstance(value, base):
            return value
        raise PydanticCustomError("component", "must be a {kind}: a mapping with `use: <name>`", {"kind": self.kind})

    def _fault(self, code: str, message: str, value: Any, *loc: str) -> ValidationError:
        error = PydanticCustomError(code, "{message}", {"message": message})
        return ValidationError.from_exception_data(self.kind, [InitErrorDetails(type=error, loc=loc, input=value)])


def _dotted_paths(value: Any) -> Any:
    """Make `./x` and `../x` absolute, at any depth."""
    if isinstance(value, Mapping):
        return {key: _dotted_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_dotted_paths(item) for item in value]
    return _absolute(value) if isinstance(value, Written) and value.startswith(("./", "../")) else value


def _as_yaml(value: Any) -> str:
    """One line of YAML (JSON whose strings escape what YAML would fold)."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)


Argv = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_dotted_paths)]
"""A program and its arguments, as they are started, without a shell. One that is a path relative to the recipe's file
begins with `./` or `../`."""


class RecipeRef(Settings):
    """Weights that another recipe makes. It is run once, and its result is cached by content."""

    recipe: LocalPath
    """Path of the other recipe, relative to the file that names it."""
    set: Annotated[dict[str, Any], BeforeValidator(_dotted_paths)] = Field(default_factory=dict)
    """Overrides of that recipe, `key.path: value`, as on the command line: `{seed: 1}`. A path that is relative to this
    file begins with `./` or `../`."""
    same_data: bool = False
    """Run it on this recipe's data set instead of its own."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """`set` as the command line would say it."""
        return tuple(f"{key}={_as_yaml(value)}" for key, value in self.set.items())

    @property
    def key(self) -> str:
        """Path and overrides: what tells two references apart."""
        return " ".join((self.recipe, *self.overrides))


Weights = LocalPath | RecipeRef
"""A path (file, run folder, or folder as on the hub), `hf://owner/repo/file`, or `{recipe: other.yaml}`."""


class NetworkSpec(Spec):
    """A component with parameters. `build` returns the module with fresh weights; the core then loads `weights`."""

    weights: Weights | None = None
    """Where its weights come from; fresh (seeded) when null."""

    def ready(self) -> bool:
        """Whether it can be used without training: weights are named, or (override) the settings determine them."""
        return self.weights is not None


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Optimizer(Settings):
    """An optimizer and its learning-rate schedule."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Update rule; `adamw` decouples the weight decay."""
    lr: Positive = 1e-5
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Adam's decay rates. (0, 0.99) is the stable choice for players that chase each other."""
    momentum: Fraction = 0.0
    """Momentum of `sgd`."""
    eps: Positive = 1e-8
    """Adam's epsilon."""
    weight_decay: NonNegative = 0.0
    """Weight decay."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Iterations of linear warm-up."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after warm-up, over the run's iterations."""
    final: Fraction = 0.0
    """Fraction of the peak that `cosine` and `linear` end at."""


class Player(Settings):
    """One player of Algorithm 1: who trains, with which optimizer, how often."""

    optimizer: Optimizer = Optimizer()
    """Its optimizer and learning rate."""
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
    real: ClassVar[bool] = True
    """Whether its critic looks at real tokens. Where no term of a recipe does, the data is not encoded."""
    name: str = ""
    """Name in logs and references; the entry-point name when empty."""
    weight: float | GradientRatio = 1.0
    """Constant, or `{ratio: 0.3, of: dimo}`."""

    def objective(self) -> tuple[str, str]:
        """Equation and source of these settings; those of the class unless overridden."""
        return self.equation, self.source

    def passes(self) -> dict[str, float]:
        """Passes of a backbone per sample and iteration, by what they are for; empty where none are known.

        A forward counts 1, its backward 2, or 1 through frozen weights. The student's own pass is not a term's.
        """
        return {}

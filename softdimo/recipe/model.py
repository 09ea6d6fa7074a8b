"""What a recipe may say. `softdimo run` does what the sections present ask for: `train`, `eval`, `search`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from softdimo.math.init import Init
from softdimo.math.schedules import Schedule
from softdimo.math.soft import Relaxation
from softdimo.recipe.checks import faults
from softdimo.spec import (
    Fraction,
    LossSpec,
    NetworkSpec,
    NonNegative,
    Player,
    Positive,
    Settings,
    Spec,
    Weights,
    component,
)

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(min_length=1, pattern=r"^[^/\\\x00-\x1f]+$")]
"""A name that can be a file name and a column of a table."""


class Ema(Settings):
    """Exponential moving averages of the trained network."""

    half_lives: tuple[Positive, ...] = (70.0,)
    """Half-lives in iterations; the first average is evaluated and exported. Empty: the live weights are."""
    warmup: bool = True
    """Shorter half-lives at first, so that the random start is forgotten."""


class Start(Settings):
    """Where training starts from, if not from the teacher."""

    from_: Weights | None = Field(default=None, alias="from")
    """An earlier run of the same network: a run folder, a weights file, or another recipe."""
    critics: bool = True
    """Take the critics of that run too, for the terms that have the same name there."""
    lead: Annotated[int, Field(ge=0)] = 0
    """Iterations in which the critics train alone before the generator takes its first turn."""


class Train(Settings):
    """Training of one network; the student is distilled from the teacher by the terms of L_gen."""

    network: Literal["student", "teacher", "tokenizer", "features"] = "student"
    """Which network is trained."""
    iterations: Count
    """Iterations: one turn of every player that is due."""
    batch_size: Count
    """Samples per iteration and device."""
    player: Player = Player()
    """How the trained network (the generator, for a student) learns."""
    ema: Ema = Ema()
    """Averages of its weights."""
    relaxation: Relaxation = Relaxation()
    """How the student's tokens become differentiable for embeddings and decoders."""
    terms: tuple[Annotated[LossSpec, component("loss")], ...] = ()
    """Terms of L_gen, summed with their weights. Student only."""
    dropout: bool = False
    """The student's dropout acts while it trains, as in the public Di[M]O code. Student only: what is trained on data
    always has it."""
    start: Start = Start()
    """An earlier run to start from."""
    sampler: Annotated[Spec, component("sampler")] | None = None
    """How the teacher draws its row of the sample sheets; no such row when null. Teacher and student only."""
    label_smoothing: Fraction = 0.0
    """Label smoothing of the teacher's cross-entropy. Teacher only."""
    label_drop: Fraction = 0.1
    """Probability of dropping the condition, which trains the unconditional branch. Teacher only."""
    log_every: Count = 10
    """Iterations between rows of log.csv."""
    sample_every: Count = 100
    """Iterations between sample sheets."""
    checkpoint_minutes: Positive = 3.0
    """Minutes between checkpoints."""
    keep_checkpoints: Count = 2
    """Checkpoints to keep, newest first."""

    @field_validator("terms", mode="after")
    @classmethod
    def _named(cls, terms: tuple[LossSpec, ...]) -> tuple[LossSpec, ...]:
        return tuple(t if t.name else t.model_copy(update={"name": t.use.rpartition(":")[2]}) for t in terms)


class Row(Settings):
    """One row of the table of metrics."""

    name: Name
    """Name of the row."""
    of: Literal["real", "reconstruction", "teacher", "student"]
    """Held-out real images, their reconstructions by the tokenizer, or samples of a network."""
    weights: Weights | None = None
    """Weights of that network; the recipe's teacher, or the student just trained, when null."""
    sampler: Annotated[Spec, component("sampler")] | None = None
    """How to sample; a student takes one step when null."""
    decode: Literal["hard", "soft"] = "hard"
    """Decode sampled codes, or the student's expected codes."""
    split: Literal["train", "held_out"] = "held_out"
    """Whose images a reconstruction decodes; training images are more, and flatter the tokenizer."""
    sweep: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """One setting of the sampler and its values, `{temperature: [1, 2, 3]}`: a row for each, `<name>, temperature 2`.
    All of them stand in the table; none is chosen."""

    @model_validator(mode="before")
    @classmethod
    def _students_take_one_step(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("of") == "student" and value.get("sampler") is None:
            return value | {"sampler": {"use": "one_step"}}
        return value

    def swept(self) -> tuple[Row, ...]:
        """The rows of the table: this one, or one for each value of the sweep."""
        return tuple(
            self.model_copy(update={"name": f"{self.name}, {key} {_shown(v)}", "sampler": self.sampled(key, v)})
            for key, values in self.sweep.items()
            for v in values
        ) or (self,)

    def sampled(self, key: str, value: Any) -> Spec:
        """The sampler with another value of one setting. Raises ValidationError where it does not take that."""
        assert self.sampler is not None
        cls = type(self.sampler)
        settings = {field.alias or name: getattr(self.sampler, name) for name, field in cls.model_fields.items()}
        return cls.model_validate(settings | {key: value})


def _shown(value: Any) -> str:
    """A swept value in the name of its row."""
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if value is None else str(value)


class Eval(Settings):
    """Metrics with error bars over seeds."""

    samples: Count
    """Images per row, an equal share for each seed."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of sampling. The table gives the metrics of all images, and the standard deviation of the seeds' own."""
    reference: Count | None = None
    """Training images that rows are compared with, drawn once; all of them when null."""
    batch_size: Count = 100
    """Images per batch."""
    metrics: Annotated[tuple[Annotated[Spec, component("metric")], ...], Field(min_length=1)]
    """Metrics of every row."""
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    """What is measured."""


class HeldOut(Settings):
    """A reward that is watched, never optimized."""

    name: Name
    """Name in the table."""
    reward: Annotated[Spec, component("reward")]
    """The reward."""


class Scored(Settings):
    """One of several rewards that are optimized together."""

    name: str = ""
    """Name in tables and traces; the component's name when empty."""
    reward: Annotated[Spec, component("reward")]
    """The reward."""
    weight: float = 1.0
    """Its weight in the sum."""


class Method(Settings):
    """One way of searching."""

    name: Name
    """Name in the table."""
    search: Annotated[Spec, component("search")]
    """The search."""


def _form(score: Any) -> str:
    return "several" if isinstance(score, list | tuple) else "one"


class SearchSection(Settings):
    """Test-time optimization of the student's input embedding, methods side by side."""

    conditions: Count = 100
    """Conditions (labels or prompts) of the data that methods are compared on."""
    batch_size: Count = 16
    """Conditions per batch."""
    rows: Count | None = None
    """Images, one per start and condition, that go through student, decoder and reward at once, which bounds memory and
    does not change results; all starts of a batch when null."""
    checkpoint: bool = False
    """Compute anew in the backward pass what decoder and rewards would keep for it: less memory, more time."""
    weights: Weights | None = None
    """The student's weights; the student just trained when null."""
    score: Annotated[
        Annotated[Spec, component("reward"), Tag("one")]
        | Annotated[tuple[Scored, ...], Field(min_length=1), Tag("several")],
        Discriminator(_form),
    ]
    """The reward that is optimized, or a list of `{reward: ..., weight: 1}` whose weighted sum is."""
    pool: Annotated[int, Field(ge=2)] | None = 8
    """Where there are several rewards, each is measured in standard deviations from its mean over so many random starts
    of the same condition, drawn beforehand at one forward-equivalent each. Null: rewards are summed as they are."""
    held_out: tuple[HeldOut, ...] = ()
    """Rewards that are only measured: when they part from the score, the score is being hacked."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    """What is compared; a search for conditions of your own takes the first."""

    def rewards(self) -> tuple[Scored, ...]:
        """The rewards that are optimized, with their names."""
        several = self.score if isinstance(self.score, tuple) else (Scored(reward=self.score),)
        return tuple(r if r.name else r.model_copy(update={"name": r.reward.use.rpartition(":")[2]}) for r in several)


class Hardware(Settings):
    """Where and how precisely to compute."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` takes a GPU if there is one."""
    devices: Count = 1
    """Devices per node; torchrun and srun decide it where they start the processes."""
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """`ddp`: one replica per device, gradients averaged; `auto` takes it when there are several devices. `fsdp2`:
    weights, gradients and optimizer states in pieces, one per device, each layer put together while it computes."""
    num_nodes: Count = 1
    """Machines; see `devices`."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "64-true"] = "32-true"
    """Precision of the networks; divergences are computed in float32 regardless."""
    threads: Count | None = None
    """CPU threads; torch's choice when null."""
    jobs: Count | None = None
    """Processes that share the work on a CPU (other recipes' trainings, rows of the table); one per core, at most 4,
    when null. On a GPU all runs in one."""
    text_cache_gb: NonNegative = 16.0
    """Room for the encodings of prompts in `runs/cache/encodings`, where later runs find them, in GB (10^9 bytes) for
    each text encoder; 0 keeps none. A full cache is read, and not added to."""
    compile: bool = False
    """Compile the networks of a distillation with torch.compile, block by block."""
    activation_checkpointing: bool = False
    """Of the layers of what is trained (teacher, or student and auxiliary), keep the inputs alone for the backward pass
    and compute the rest anew there: less memory, about a third more time."""


class Recipe(Settings):
    """A run, whole: networks, data, and what to do with them."""

    title: str
    """One line for people."""
    seed: Seed = 0
    """Seed of everything that is random."""
    schedule: Schedule = "arccos"
    """Mask schedule of the teacher: its training, and the mask ratios of Di[M]O's auxiliary."""
    init: Init = Init()
    """Token initialization of the student."""
    data: Annotated[Spec, component("data")]
    """The data set."""
    tokenizer: Annotated[NetworkSpec, component("tokenizer")] | None = None
    """Codes <-> pixels."""
    text_encoder: Annotated[NetworkSpec, component("text_encoder")] | None = None
    """What turns prompts into what the teacher is conditioned on."""
    teacher: Annotated[NetworkSpec, component("teacher")] | None = None
    """The masked diffusion model that is distilled."""
    features: Annotated[NetworkSpec, component("features")] | None = None
    """A network on images; only when it is what is trained."""
    train: Train | None = None
    """Train a network."""
    eval: Eval | None = None
    """Measure."""
    search: SearchSection | None = None
    """Search at test time."""
    hardware: Hardware = Hardware()
    """Devices and precision."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        details = [
            InitErrorDetails(type=PydanticCustomError("recipe", "{what}", {"what": what}), loc=path, input=None)
            for path, what in faults(self)
        ]
        if details:
            raise ValidationError.from_exception_data("Recipe", details)
        return self

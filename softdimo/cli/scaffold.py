"""`softdimo new`: a pip-installable plugin whose contract test passes as it is written."""

from __future__ import annotations

import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from string import Template

from softdimo import API_VERSION, __version__, registry
from softdimo.errors import PluginError

_PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.24"]
build-backend = "hatchling.build"

[project]
name = "$dist"
version = "0.1.0"
description = "$kind `$name` for softdimo"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["softdimo>=$version"]

[project.entry-points."softdimo.$kind"]
$name = "$package.$kind:$cls"

[project.entry-points."softdimo.api"]
$api = "$package"

[tool.hatch.build.targets.wheel]
packages = ["$package"]

[tool.pytest.ini_options]
pythonpath = ["."]
testpaths = ["tests"]
"""

_README = """\
# $dist

The $kind `$name` for softdimo.

    pip install -e .
    pytest
    softdimo plugins doctor $kind

In a recipe:

$usage"""

_TEST = """\
from softdimo.testing import check_$kind, context

from $package import $kind


def test_contract() -> None:
    here = context()
    check_$kind($kind.$cls().build(here)$extra)
"""

_REWARD = '''\
"""The reward `$name`."""

from typing import ClassVar

from softdimo.kinds import Cond
from softdimo.shapes import Image, PerSample
from softdimo.spec import Spec


class $cls(Spec):
    """Mean brightness; put in its place what you want more of."""

    scale: float = 1.0
    """Factor of the score."""
    differentiable: ClassVar[bool] = True

    def __call__(self, img: Image, cond: Cond) -> PerSample:
        """Images [B 3 H W] in [0, 1] and their conditions -> one score per image [B], higher is better."""
        return self.scale * img.mean((1, 2, 3))
'''

_LOSS = '''\
"""The loss `$name`."""

from typing import ClassVar

from softdimo.kinds import Batch, Context, Logs
from softdimo.math.rollout import Roll
from softdimo.spec import LossSpec, Player
from torch import Tensor, nn


class $cls(LossSpec):
    """Minus the mean entropy of the student's tokens: keeps them diverse. Put your own term in its place."""

    equation: ClassVar[str] = "-E[H(p_theta)]"
    source: ClassVar[str] = "$dist"
    real: ClassVar[bool] = False  # True where a critic looks at real tokens

    def build(self, context: Context) -> "${cls}Term":
        """The term."""
        return ${cls}Term()


class ${cls}Term:
    """What the engine calls. A term that owns a trainable network puts it in `critic`, and its `Player` in `player`."""

    critic: nn.Module | None = None
    player: Player | None = None

    def generator(self, roll: Roll) -> tuple[Tensor, Logs]:
        """Scalar loss for the student, before the term's weight, and scalars for the log."""
        logp = roll.logits.log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1).mean()
        return -entropy, {"entropy": entropy.detach()}

    def critic_loss(self, roll: Roll, real: Batch) -> tuple[Tensor, Logs]:
        """Never called without a critic."""
        raise NotImplementedError
'''

_TEACHER = '''\
"""The teacher `$name`."""

from collections.abc import Sequence

import torch
from softdimo.kinds import Cond, Context, Output, Teacher, TokenShape
from softdimo.shapes import Embedding, Mask, Probs, Tokens
from softdimo.spec import NetworkSpec
from torch import Tensor, nn


class $cls(NetworkSpec):
    """A small bidirectional transformer; put your masked backbone in its place."""

    width: int = 64
    """Width D."""
    depth: int = 2
    """Blocks."""
    heads: int = 4
    """Attention heads; a divisor of the width."""

    def build(self, context: Context) -> "${cls}Net":
        """Fresh weights; softdimo then loads `weights`."""
        assert context.tokens is not None, "a teacher needs a tokenizer"
        return ${cls}Net(context.tokens, len(context.classes), self)


class ${cls}Net(Teacher):
    """Tokens [B L G] in [0, V], mask id V -> logits [B L G V]."""

    def __init__(self, shape: TokenShape, classes: int, spec: $cls) -> None:
        super().__init__()
        self.shape, self.width, self.depth = shape, spec.width, spec.depth
        self.table = nn.Parameter(0.5 * torch.randn(shape.G, shape.V + 1, spec.width))
        self.position = nn.Parameter(0.5 * torch.randn(shape.L, spec.width))
        self.label = nn.Embedding(classes + 1, spec.width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(spec.width, spec.heads, 4 * spec.width, 0.0, batch_first=True, norm_first=True)
            for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(spec.width)
        self.head = nn.Linear(spec.width, shape.G * shape.V)

    def embed(self, tokens: Tokens) -> Embedding:
        """Sum of the groups' rows of the table."""
        return self.table[torch.arange(self.shape.G, device=tokens.device), tokens].sum(2)

    def soften(self, probs: Probs, mask: Mask | None = None) -> Embedding:
        """E^T p; masked units get the mask row."""
        rows = torch.einsum("blgv,gvd->blgd", probs, self.table[:, :-1])
        if mask is not None:
            rows = torch.where(mask[..., None], self.table[:, -1], rows)
        return rows.sum(2)

    def forward(self, e: Embedding, cond: Cond, at: Mask | None = None, features: Sequence[int] = ()) -> Output:
        """One pass. With `at`, logits at those units only."""
        labels = torch.where(cond.labels < 0, self.label.num_embeddings - 1, cond.labels)
        x, kept = e + self.position + self.label(labels)[:, None], []
        for block in self.blocks:
            x = block(x)
            kept.append(x)
        out = tuple(kept[i] for i in features)
        if at is not None and not at.any():
            return Output(x.new_zeros(0, self.shape.V), out)
        logits = self.head(self.norm(x)).unflatten(-1, (self.shape.G, self.shape.V))
        return Output(logits if at is None else logits[at], out)

    def table_rms(self) -> Tensor:
        """Root mean square of the table."""
        return self.table.detach().square().mean().sqrt()

    def layers(self) -> Sequence[nn.Module]:
        """The blocks."""
        return tuple(self.blocks)
'''

_TEXT_ENCODER = '''\
"""The text encoder `$name`."""

from collections.abc import Sequence

import torch
from softdimo.kinds import Context, TextEncoder
from softdimo.spec import NetworkSpec
from torch import Tensor, nn


class $cls(NetworkSpec):
    """A table of bytes and a layer; put your text encoder in its place."""

    width: int = 64
    """Width of states and of the pooled vector."""
    length: int = 77
    """Bytes that are read."""
    negative: str = ""
    """The prompt of the unconditional branch of guidance."""

    def ready(self) -> bool:
        """Its weights are random ones of the recipe's seed; remove this when yours come from a file."""
        return True

    def build(self, context: Context) -> "${cls}Net":
        """Fresh weights; softdimo then loads `weights`."""
        return ${cls}Net(self)


class ${cls}Net(TextEncoder):
    """Prompts -> `states` [B length width] and `pooled` [B width]; the teacher finds them in `cond.tensors`."""

    def __init__(self, spec: $cls) -> None:
        super().__init__()
        self.negative, self.length = spec.negative, spec.length
        self.table = nn.Embedding(257, spec.width)
        self.layer = nn.Linear(spec.width, spec.width)

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Encodings of prompts, cut off or filled up to the same length; each prompt's depend on it alone."""
        cut = [list(prompt.encode()[: self.length]) for prompt in prompts]
        ids = torch.tensor([row + [256] * (self.length - len(row)) for row in cut], device=self.table.weight.device)
        states = torch.tanh(self.layer(self.table(ids)))
        return {"states": states, "pooled": states.mean(1)}
'''

_BODY = {"reward": _REWARD, "loss": _LOSS, "teacher": _TEACHER, "text_encoder": _TEXT_ENCODER}
_USAGE = {
    "reward": "    train:\n      terms:\n        - {use: reward, rewards: [{reward: {use: $name}}]}\n",
    "loss": "    train:\n      terms:\n        - use: $name\n          weight: 0.1\n",
    "teacher": "    teacher:\n      use: $name\n",
    "text_encoder": "    text_encoder:\n      use: $name\n",
}
_EXTRA = {"reward": "", "loss": ", here", "teacher": "", "text_encoder": ""}


def scaffold(kind: str, name: str, out: Path | None = None) -> Path:
    """Write a plugin package for one of the kinds in `_BODY` and return its folder, `softdimo-<name>` by default.

    Raises PluginError for a name that is not an identifier or that is taken, and for a folder that is not empty.
    """
    if kind not in _BODY:
        raise PluginError(f"`softdimo new` writes {', '.join(_BODY)}, not `{kind}`")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise PluginError(f"`{name}` cannot be a component's name: use lower-case letters, digits and `_`")
    owners = [registry.distribution(e) for e in registry.installed(kind) if e.name == name]
    if owners:
        raise PluginError(f"{owners[0]} has a {kind} called `{name}` already; choose another name")
    dist = f"softdimo-{name.strip('_').replace('_', '-')}"
    package = f"softdimo_{name.strip('_')}"
    if find_spec(package) is not None:
        raise PluginError(f"there is a package {package} already; choose another name than `{name}`")
    cls = "".join(part.capitalize() for part in name.split("_"))
    if re.search(rf"\b{cls}\b", _BODY[kind]):  # the module imports something of that name
        cls += kind.title().replace("_", "")
    folder = out if out is not None else Path(dist)
    values = {
        "kind": kind,
        "name": name,
        "dist": dist,
        "package": package,
        "cls": cls,
        "extra": _EXTRA[kind],
        "api": str(API_VERSION),
        "version": __version__,
    }
    values["usage"] = Template(_USAGE[kind]).substitute(values)
    files = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"{values['package']}/__init__.py": '"""The $kind `$name` for softdimo."""\n',
        f"{values['package']}/{kind}.py": _BODY[kind],
        "tests/test_contract.py": _TEST,
    }
    try:
        if folder.exists() and any(folder.iterdir()):
            raise PluginError(f"{folder} is not empty; choose another --out")
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(text).substitute(values), encoding="utf-8")
    except OSError as error:
        raise PluginError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder

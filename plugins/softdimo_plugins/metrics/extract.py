"""What metrics share: one pass of the feature network per batch, however many metrics read it, and its provenance."""

from __future__ import annotations

import hashlib
import weakref
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from softdimo.kinds import Cond, Context, Features, Metric
from softdimo.math.digest import digest_module, tensor_bytes
from softdimo.shapes import Image, Labels
from softdimo.spec import NetworkSpec, Spec, component
from softdimo_plugins.metrics.reference import digest


class FeatureMetricSpec(Spec):
    """Settings of a metric that looks at images through a network."""

    features: Annotated[NetworkSpec, component("features")]
    """The network. Metrics with equal settings share one module and one pass per batch. It must have had no part in
    training (as a discriminator, a reward or a teacher)."""
    name: str = ""
    """Prefix of the numbers' names (`<name>/fd`), for recipes that measure one thing through several networks."""

    def network(self, context: Context) -> Features:
        """The feature network, built and loaded by the core, in evaluation mode."""
        net: Features = context.make(self.features)
        return net.eval()


class _Memo(NamedTuple):
    image: weakref.ref[Tensor]
    version: tuple[int, ...]
    out: tuple[Tensor, Tensor]


_LAST: weakref.WeakKeyDictionary[Features, _Memo] = weakref.WeakKeyDictionary()


def extract(net: Features, img: Image) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B K"]]:
    """Features and logits, no gradient. Each network remembers its last batch (the tensor itself, if unchanged)."""
    version = (
        () if img.is_inference() else (img._version, *(p._version for p in net.parameters() if not p.is_inference()))
    )
    memo = _LAST.get(net)
    if memo is not None and version and memo.image() is img and memo.version == version:
        return memo.out
    with torch.no_grad():
        features, logits = net(img)
    out = features.detach().flatten(1), logits.detach()
    _LAST[net] = _Memo(weakref.ref(img), version, out)
    return out


class Seen(NamedTuple):
    """What feature metrics keep of a batch."""

    features: Float[Tensor, "B F"]
    logits: Float[Tensor, "B K"]
    labels: Labels


class FeatureMetric(Metric):
    """A metric over a feature network: hashes its reference images and says what its numbers depend on."""

    formula: str
    """Name and version of the formula; change it with every change of the numbers."""
    seen_type = Seen

    def __init__(self, net: Features, name: str = "", file: Path | None = None) -> None:
        self.net, self.name, self.file = net, name, file
        self.compares_with = "data" if file is None else "file"
        self.reference_size: int | str = 0
        self._reference_sha = hashlib.sha256()

    def reference(self, img: Image, cond: Cond) -> None:
        """Add real images [B C H W]; a metric with a file has its reference, and leaves them."""
        if self.file is not None:
            return
        assert isinstance(self.reference_size, int)
        self._reference_sha.update(tensor_bytes(img))
        self.reference_size += len(img)
        self._reference(img)

    def _reference(self, img: Image) -> None:
        """What the metric keeps of real images; nothing by default."""

    def look(self, img: Image, cond: Cond) -> Seen:
        """Features and logits of a batch of images."""
        return Seen(*extract(self.net, img), cond.labels)

    @abstractmethod
    def add(self, seen: Seen) -> None:
        """Add generated images."""

    def update(self, img: Image, cond: Cond) -> None:
        """Add generated images [B C H W]."""
        self.add(self.look(img, cond))

    def result(self) -> dict[str, float]:
        """The numbers of the images since `reset`."""
        prefix = f"{self.name}/" if self.name else ""
        return {prefix + key: float(value) for key, value in self._result().items()}

    @abstractmethod
    def _result(self) -> dict[str, float]: ...

    def fingerprint(self) -> dict[str, str | int | float]:
        """Formula, its settings, SHA-256 of the network's weights, size and SHA-256 of the reference images."""
        return {
            "formula": self.formula,
            "features": digest_module(self.net),
            **self.net.settings(),
            "reference_size": self.reference_size,
            "reference": self._reference_sha.hexdigest() if self.file is None else digest(self.file),
            **self._settings(),
        }

    def _settings(self) -> dict[str, Any]:
        return {}

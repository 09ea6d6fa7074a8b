"""What several families need: networks of the recorded sizes with the recorded weights, and the published classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softdimo.kinds import Cond, Context, ImageShape, Output, Teacher, TokenShape
from softdimo_plugins.public import PublicSpec

from .case import Case


def known(config: Mapping[str, Any], names: Sequence[str], **only: Any) -> None:
    """ValueError for a switch that is not listed, or that is not set as `only` says."""
    other = set(config) - set(names) - set(only) - {"seed"}
    if other:
        raise ValueError(f"settings that this check does not know: {', '.join(sorted(other))}")
    for name, value in only.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name}: {config[name]} is not supported, only {value}")


def context(image: ImageShape, tokens: TokenShape | None = None, classes: int = 1, **others: Any) -> Context:
    """A context without nested components."""

    def make(spec: Any) -> Any:
        raise ValueError(f"unexpected component {spec}")

    return Context(image, tuple(map(str, range(classes))), make, tokens, **others)


def load(spec: PublicSpec, made_in: Context, case: Case) -> Any:
    """The network of `spec` with the case's weights, read as a recipe's are; frozen, in evaluation mode."""
    net: nn.Module = spec.build(made_in)
    spec.load_weights(net, case.weights)
    return net.requires_grad_(False).eval()


class Published(Teacher):
    """A teacher as it was published: the mask id K is a class too, and one that is drawn stays as it is.

    So there are K + 1 classes, and its own mask id is K + 1, which the network sees as K.
    """

    def __init__(self, net: Teacher) -> None:
        super().__init__()
        self.net, self.width, self.depth = net, net.width, net.depth
        self.shape = net.shape._replace(V=net.shape.V + 1)
        outputs: Any = net
        outputs.outputs = self.shape.V

    def embed(self, tokens: Tensor) -> Tensor:
        """Both mask ids are the network's one."""
        return self.net.embed(tokens.clamp(max=self.net.shape.V))

    def soften(self, probs: Tensor, mask: Tensor | None = None) -> Tensor:
        """The expected embedding over K + 1 classes: that over K, and the mask's in proportion to its probability."""
        codes, masked = probs[..., :-1], probs[..., -1]
        everywhere = torch.ones_like(masked, dtype=torch.bool)
        return self.net.soften(codes) + masked * self.net.soften(torch.zeros_like(codes), everywhere)

    def forward(self, e: Tensor, cond: Cond, at: Tensor | None = None, features: Sequence[int] = ()) -> Output:
        """K + 1 logits."""
        out: Output = self.net(e, cond, at, features)
        return out

    def table_rms(self) -> Tensor:
        """The network's."""
        return self.net.table_rms()

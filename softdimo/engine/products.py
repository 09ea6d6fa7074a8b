"""Linear layers on CPUs whose BLAS leaves half of the processor unused.

torch computes float32 products with MKL, which on AMD processors stays with 256-bit vectors. oneDNN, which torch uses
for convolutions, takes AVX-512 there: as a 1 x 1 convolution over the rows a linear layer is up to twice as fast. The
numbers are the same up to the order of summation.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

ROWS = 64
"""Fewer rows are not worth the call."""


@cache
def worthwhile() -> bool:
    """Whether this processor has AVX-512, MKL does not use it, and oneDNN is there to use it."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    try:
        amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


def quicken(net: nn.Module) -> None:
    """Turn the linear layers of a network, in place, into those of this file; parameters and their names stay."""
    for module in net.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class Linear(nn.Linear):
    """x W^T + b: [... K] -> [... N]. Float32 on a CPU goes through oneDNN, all else as in `nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output."""
        x = input
        plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not plain or x.numel() < ROWS * self.in_features or _elsewhere():
            return linear(x, self.weight, self.bias)
        out: Tensor = _Product.apply(x, self.weight, self.bias)
        return out


def _elsewhere() -> bool:
    """Under autocast products are in bf16, and a compiler makes its own."""
    return torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()


class _Product(torch.autograd.Function):
    """`product` with a backward pass of products; differentiable twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + b. Where W is frozen, its gradient's x is not kept."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """g W, g^T x, and the sum of g over rows, where they are asked for."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = g.flatten(0, -2)
        return (
            times(g, weight) if of_x else None,
            of_rows(rows, x.flatten(0, -2)) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def product(
    x: Float[Tensor, "*rows K"], weight: Float[Tensor, "N K"], bias: Float[Tensor, "N"] | None = None
) -> Float[Tensor, "*rows N"]:
    """x W^T + b by oneDNN: rows become the places of an image of K channels, side by side in memory."""
    kernel = weight.contiguous()[:, :, None, None]
    out = torch.mkldnn_convolution(_places(x), kernel, bias, (0, 0), (1, 1), (1, 1), 1)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def times(x: Float[Tensor, "*rows K"], weight: Float[Tensor, "K N"]) -> Float[Tensor, "*rows N"]:
    """x W by oneDNN: a transposed convolution, whose kernel is W as it lies in memory."""
    if not _transposes(x):
        return product(x, weight.T)
    out = _transposed(_places(x), weight)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[1])


def of_rows(g: Float[Tensor, "R N"], x: Float[Tensor, "R K"]) -> Float[Tensor, "N K"]:
    """g^T x by oneDNN, neither of them copied: rows are the channels of an image whose places are the columns of x."""
    if not _transposes(x):
        return product(g.T.contiguous(), x.T)  # else the result would lie in memory as its transpose
    return _transposed(x[None, :, None, :], g).reshape(g.shape[1], x.shape[1])


def _places(x: Float[Tensor, "*rows K"]) -> Float[Tensor, "1 K 1 R"]:
    return x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def _transposed(image: Float[Tensor, "1 K 1 P"], kernel: Float[Tensor, "K N"]) -> Float[Tensor, "1 N 1 P"]:
    one, none = (1, 1), (0, 0)
    return torch.convolution(image, kernel.contiguous()[:, :, None, None], None, one, none, one, True, none, 1)


def _transposes(x: Tensor) -> bool:
    """Whether torch gives a transposed convolution to oneDNN: not with one thread, nor where it is small."""
    return torch.get_num_threads() > 1 and x.numel() > 20480

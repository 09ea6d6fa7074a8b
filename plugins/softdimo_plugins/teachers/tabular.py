"""A masked model as a table, for tokens so few that every input and every output can be enumerated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, Output, Teacher, TokenShape
from softdimo.math.init import Init
from softdimo.math.masking import exact_count_mask
from softdimo.math.precision import wide
from softdimo.shapes import Embedding, Mask, Probs, Tokens
from softdimo.spec import NetworkSpec
from softdimo_plugins.data.coupled import Joint

STATES = 2**16
"""Most rows of a table."""


class Tabular(NetworkSpec):
    """Logits looked up in a table of all (V + 1)^(L G) inputs, mask included; between them it is multilinear.

    The embedding of a token is its one-hot vector, so a soft embedding, too, is looked up without approximation: the
    average of the rows' logits under its probabilities. There is one table for all conditions.
    """

    joint: Joint | None = None
    """Probabilities of the V^(L G) sequences, in the order of their digits (00, 01, 10, 11). The table then holds the
    exact conditionals; when null it is 0 and wants training."""

    def ready(self) -> bool:
        """A joint distribution is as good as weights."""
        return self.joint is not None or self.weights is not None

    def build(self, context: Context) -> TabularTeacher:
        """The network for the tokens of `context`; RecipeError where they are too many, or are not those of `joint`."""
        shape = context.tokens
        if shape is None:
            raise RecipeError("a tabular teacher needs a tokenizer; add a `tokenizer:` section")
        if (states := (shape.V + 1) ** shape.units) > STATES:
            raise RecipeError(f"a table of ({shape.V} + 1)^{shape.units} = {states:.3g} inputs; it can have {STATES}")
        if self.joint is not None and len(self.joint) != shape.V**shape.units:
            n = len(self.joint)
            raise RecipeError(f"joint: has {n} probabilities; these tokens make {shape.V}^{shape.units} sequences")
        return TabularTeacher(shape, self.joint)


def conditionals(joint: Float[Tensor, "sequences"], shape: TokenShape) -> Float[Tensor, "states units V"]:
    """p(x_i | the visible ones among the other units) for every unit i of every input state in {0..V}^units.

    A masked diffusion model is asked at masked units alone; at a visible one this ignores its own token too, so that a
    one-step student does not start as a copy of its input. Uniform where the visible tokens have probability 0.
    """
    n, V = shape.units, shape.V
    digits = torch.arange(V + 1, device=joint.device)
    sequences = torch.cartesian_prod(*[digits[:V]] * n).view(-1, n)
    states = torch.cartesian_prod(*[digits] * n).view(-1, n)
    fits = (states[:, None] == V) | (states[:, None] == sequences)
    rows = []
    for i in range(n):
        others = torch.cat([fits[..., :i], fits[..., i + 1 :]], -1).all(-1)
        rows.append((others * joint) @ functional.one_hot(sequences[:, i], V).to(joint.dtype))
    p = torch.stack(rows, 1).clamp_min(torch.finfo(torch.float32).tiny)
    return p / p.sum(-1, keepdim=True)


class TabularTeacher(Teacher):
    """The network of `Tabular`: z = sum_s table[s] prod_i e_i[s_i] over the states s of all units i."""

    def __init__(self, shape: TokenShape, joint: Sequence[float] | None = None) -> None:
        super().__init__()
        self.shape, self.width, self.depth = shape, shape.G * (shape.V + 1), 1
        states = (shape.V + 1) ** shape.units
        self.table = nn.Parameter(torch.zeros(states, shape.units, shape.V))
        if joint is not None:
            p = conditionals(torch.tensor(joint, dtype=torch.float64, device="cpu"), shape)
            self.table.data.copy_(p.log())

    def embed(self, tokens: Tokens) -> Embedding:
        """One-hot over V + 1, the groups of a position side by side."""
        return functional.one_hot(tokens, self.shape.V + 1).to(self.table.dtype).flatten(2)

    def soften(self, probs: Probs, mask: Mask | None = None) -> Embedding:
        """The probabilities themselves; a masked unit has all of it on the mask."""
        e = functional.pad(probs.to(self.table.dtype), (0, 1))
        if mask is not None:
            masked = functional.one_hot(torch.tensor(self.shape.V, device=e.device), self.shape.V + 1).to(e.dtype)
            e = torch.where(mask[..., None], masked, e)
        return e.flatten(2)

    def forward(self, e: Embedding, cond: Cond, at: Mask | None = None, features: Sequence[int] = ()) -> Output:
        """Logits; the one feature, 0, is the input itself."""
        if any(i != 0 for i in features):
            raise ValueError(f"features {tuple(features)}: a table has the block 0 only, its input")
        units = e.reshape(len(e), self.shape.units, self.shape.V + 1)
        z = self.table.flatten().expand(len(e), -1)
        for i in range(self.shape.units):
            z = torch.einsum("bk,bkr->br", units[:, i], z.reshape(len(e), self.shape.V + 1, -1))
        logits = wide(z).view(-1, self.shape.L, self.shape.G, self.shape.V)
        return Output(logits if at is None else logits[at], (e,) * len(features))

    def table_rms(self) -> Tensor:
        """Root mean square of the visual rows of the one-hot table: (V + 1)^(-1/2)."""
        return self.table.new_tensor(self.shape.V + 1).rsqrt()


@torch.no_grad()
def one_step_joint(net: Teacher, init: Init, cond: Cond, nodes: int = 7) -> Float[Tensor, "sequences"]:
    """Probabilities of all V^(L G) sequences under one step of a network: no sample is drawn, everything is summed.

    E over x_init (every set of masks, every choice of tokens) and the embedding noise of prod_i p(x_i | x_init), in the
    order of `Joint`. The noise is integrated by Gauss-Hermite quadrature with `nodes` per number of the embedding, and
    is exact up to that. `cond` is one condition, for tokens that are few.
    """
    shape = net.shape
    starts = _starts(init, shape)
    noise, weights = _noise(shape.L * net.width, nodes if init.sigma else 1)
    total = torch.zeros(shape.V**shape.units, dtype=torch.float64)
    for x_init in starts:
        e = net.embed(x_init[None]).double()
        if init.sigma:
            unit = float(net.table_rms()) if init.noise_rms == "table" else 1.0
            e = math.sqrt(1 - init.sigma**2) * e + init.sigma * unit * noise.view(-1, shape.L, net.width)
        p = net(e.to(net.table_rms().dtype), cond.repeat(len(e))).logits.double().softmax(-1).flatten(1, 2)
        joint = weights[:, None]
        for i in range(shape.units):
            joint = (joint[..., None] * p[:, i, None]).flatten(1)
        total += joint.sum(0) / len(starts)
    return total


def _starts(init: Init, shape: TokenShape) -> Tokens:
    """Every x_init [n L G], all equally probable."""
    ratio = torch.tensor([init.r_init])
    count = int(exact_count_mask(ratio, shape, torch.Generator()).sum())
    found = []
    for masked in itertools.combinations(range(shape.units), count):
        choices = [[shape.V] if i in masked else range(shape.V) for i in range(shape.units)]
        found += list(itertools.product(*choices))
    return torch.tensor(found).view(-1, shape.L, shape.G)


def _noise(numbers: int, nodes: int) -> tuple[Float[Tensor, "n numbers"], Float[Tensor, "n"]]:
    """Points and weights of a quadrature of the standard normal in as many dimensions."""
    x, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    points, weights = (torch.cartesian_prod(*[a] * numbers).view(-1, numbers) for a in (x, w / w.sum()))
    return points, weights.prod(-1)

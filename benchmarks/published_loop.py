"""The yardstick of `speed.py`: Di[M]O's published training loop, written plainly from its description.

What costs: the auxiliary is trained on samples that are drawn anew after the student's step (10 network passes),
attention returns its weights, logits and every temporary are [B L V + 1] in float32, the loss is the squared distance
to a pseudo-target, Adam is not fused, the EMA goes parameter by parameter. In bf16 it runs under autocast, with float32
weights, and clips the generator's gradients; in fp32 it does not clip. It keeps dropout active in all three networks,
the teacher's too; here that is a switch, off by default: without it the mathematics is that of softdimo's step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from softdimo_plugins.teachers.maskgit import MaskGit, MaskGitTeacher


class Layer(nn.Module):
    """x + attention(norm(x)), x + feed-forward(norm(x)): [B L+1 D] -> [B L+1 D]."""

    def __init__(self, spec: MaskGit) -> None:
        super().__init__()
        width = spec.width
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mha = nn.MultiheadAttention(width, spec.heads, dropout=spec.dropout, batch_first=True)
        self.net = nn.Sequential(
            nn.Linear(width, spec.mlp), nn.GELU(), nn.Dropout(spec.dropout),
            nn.Linear(spec.mlp, width), nn.Dropout(spec.dropout),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """One layer; the attention's weights are computed, averaged over heads, and dropped."""
        h = self.norms[0](x)
        attended, _ = self.mha(h, h, h, need_weights=True)
        x = x + attended
        out: Tensor = x + self.net(self.norms[1](x))
        return out


class Network(nn.Module):
    """The transformer of `maskgit` with the mask as one class more: V + 1 logits. Its memory is that of `like`."""

    def __init__(self, like: MaskGitTeacher, spec: MaskGit) -> None:
        super().__init__()
        self.L, self.V, self.classes, width = like.shape.L, like.shape.V, like.classes, like.width
        ids = self.V + self.classes + 2
        self.table = nn.Embedding(ids, width)
        self.positions = nn.Parameter(torch.empty(1, self.L + 1, width))
        self.bias = nn.Parameter(torch.empty(self.L + 1, ids))
        self.first = copy.deepcopy(like.first_layer)
        self.layers = nn.Sequential(*(Layer(spec) for _ in range(spec.depth)))
        self.last = copy.deepcopy(like.last_layer)
        self.load_state_dict({renamed(k): v.detach() for k, v in like.state_dict().items()}, assign=True)

    def forward(self, e: Tensor, labels: Tensor) -> Tensor:
        """Logits [B L V + 1] of embedded tokens [B L D] and labels [B] (-1: none): all ids' logits, then a slice."""
        label = self.table(self.V + 1 + labels % (self.classes + 1))
        x = self.last(self.layers(self.first(torch.cat([e, label[:, None]], 1) + self.positions)))
        logits: Tensor = functional.linear(x, self.table.weight) + self.bias
        return logits[:, : self.L, : self.V + 1]

    def trainable(self) -> Network:
        """A copy whose table, positions and output bias stay as they are."""
        net = copy.deepcopy(self).requires_grad_(True)
        for frozen in (net.table.weight, net.positions, net.bias):
            frozen.requires_grad_(False)
        return net


def renamed(key: str) -> str:
    """A weight's name in this file."""
    for old, new in (
        ("tok_emb.", "table."),
        ("pos_emb", "positions"),
        ("first_layer.", "first."),
        ("last_layer.", "last."),
        ("transformer.layers.", "layers."),
        (".0.norm.", ".norms.0."),
        (".1.norm.", ".norms.1."),
        (".0.fn.mha.in_proj.", ".mha.in_proj_"),
        (".0.fn.mha.", ".mha."),
        (".1.fn.net.", ".net."),
    ):
        key = key.replace(old, new)
    return key


class PublishedLoop:
    """theta, psi, their optimizers and theta's EMA; `step` is one iteration."""

    def __init__(
        self, like: MaskGitTeacher, spec: MaskGit, batch: int, lr: float, decay: float, scale: float = 2.0,
        r_init: float = 0.6, sigma: float = 0.1, beta: float = 0.0, label_smoothing: float = 0.1, bf16: bool = False,
    ) -> None:  # fmt: skip
        self.batch, self.decay, self.scale, self.r_init, self.sigma = batch, decay, scale, r_init, sigma
        self.beta, self.label_smoothing, self.updates, self.bf16 = beta, label_smoothing, 0, bf16
        self.teacher = Network(like, spec).requires_grad_(False)
        self.student, self.auxiliary = self.teacher.trainable(), self.teacher.trainable()
        self.ema = copy.deepcopy(self.student).requires_grad_(False)
        self.dropout(False)
        self.optimizers = [torch.optim.Adam(_free(net), lr=lr) for net in (self.student, self.auxiliary)]

    def dropout(self, active: bool) -> None:
        """In all three networks."""
        for net in (self.teacher, self.student, self.auxiliary):
            net.train(active)

    def step(self) -> tuple[float, float]:
        """The student's update, then the auxiliary's on fresh samples; returns both losses."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return self._step()

    def _step(self) -> tuple[float, float]:
        labels = self.draw_labels()
        z = self.generate(labels)
        kept = ~z.detach().isnan().flatten(1).any(1)
        z, labels = z[kept], labels[kept]
        x_t, mask = self.remask(self.sample(z.detach()))
        with torch.no_grad():
            z_psi = self.auxiliary(self.auxiliary.table(x_t), labels)
            z_phi = self.guided(x_t, labels)
            g = self.gradient(z_psi, z_phi)
        loss = self.distance(z, g, mask)
        self.update(0, loss)
        self.average()

        labels = self.draw_labels()
        with torch.no_grad():
            x = self.sample(self.generate(labels))
        x_t, mask = self.remask(x)
        fit = self.cross_entropy(self.auxiliary(self.auxiliary.table(x_t), labels), x, mask)
        self.update(1, fit)
        return loss.item(), fit.item()

    def draw_labels(self) -> Tensor:
        """Uniform class labels [B]."""
        return torch.randint(self.student.classes, (self.batch,))

    def generate(self, labels: Tensor) -> Tensor:
        """z_theta(x_init): r_init masks, random tokens elsewhere, noise on the embedding."""
        drawn = torch.randint(self.student.V, (len(labels), self.student.L))
        e = self.student.table(self.masked(drawn, torch.full((len(labels),), self.r_init))[0])
        e = math.sqrt(1 - self.sigma**2) * e + self.sigma * torch.randn_like(e)
        return self.student(e, labels)  # type: ignore[no-any-return]

    def sample(self, z: Tensor) -> Tensor:
        """Tokens [B L] in [0, V]."""
        return torch.distributions.Categorical(logits=z, validate_args=False).sample()

    def remask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and its mask, the ratio arccos(u) / (pi / 2)."""
        return self.masked(x, torch.rand(len(x)).arccos() / (math.pi / 2))

    def masked(self, x: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """x with max(1, round(ratio L)) masks per sample at random places, and the mask [B L]."""
        count = (ratio * self.student.L).round().clamp(min=1)
        mask = torch.rand(x.shape).argsort(1) < count[:, None]
        return torch.where(mask, self.student.V, x), mask

    def guided(self, x_t: Tensor, labels: Tensor) -> Tensor:
        """z_u + s (z_c - z_u) of one pass over 2B."""
        e = self.teacher.table(torch.cat([x_t, x_t]))
        z_c, z_u = self.teacher(e, torch.cat([labels, torch.full_like(labels, -1)])).chunk(2)
        return z_u + self.scale * (z_c - z_u)  # type: ignore[no-any-return]

    def gradient(self, z_psi: Tensor, z_phi: Tensor) -> Tensor:
        """Gradient of (1 - beta) KL(phi, psi) + beta KL(psi, phi) in psi's logits, at all positions."""
        z_psi, z_phi = z_psi.float(), z_phi.float()
        p, q = z_psi.softmax(-1), z_phi.softmax(-1)
        a = z_psi.log_softmax(-1) - z_phi.log_softmax(-1)
        return (1 - self.beta) * (p - q) + self.beta * p * (a - (p * a).sum(-1, keepdim=True))

    def distance(self, z: Tensor, g: Tensor, mask: Tensor) -> Tensor:
        """Half the squared distance of z to its pseudo-target z - g, summed over masked positions, over B."""
        target = (z.float() - g).detach()
        return 0.5 * (functional.mse_loss(z.float(), target, reduction="none") * mask[..., None]).sum() / len(z)

    def cross_entropy(self, z: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """Mean over the batch's masked positions."""
        wanted = x.masked_fill(~mask, -100).flatten()
        return functional.cross_entropy(z.float().flatten(0, 1), wanted, label_smoothing=self.label_smoothing)

    def update(self, player: int, loss: Tensor) -> None:
        """Backward, repair the gradients, Adam."""
        self.optimizers[player].zero_grad()
        self.backward(loss)
        for group in self.optimizers[player].param_groups:
            for p in group["params"]:
                p.grad.nan_to_num_(nan=0.0, posinf=1e5, neginf=-1e5)
        if self.bf16 and player == 0:
            nn.utils.clip_grad_norm_(list(_free(self.student)), 1.0)
        self.optimizers[player].step()

    def backward(self, loss: Tensor) -> None:
        """Gradients of one player."""
        loss.backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def average(self) -> None:
        """EMA, decay min(decay, (1 + k) / (10 + k))."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for mean, p in zip(self.ema.parameters(), self.student.parameters(), strict=True):
            if p.requires_grad:
                mean.sub_((1 - decay) * (mean - p))
            else:
                mean.copy_(p)


def _free(net: nn.Module) -> Iterable[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]

"""MaskGit-PyTorch v1.0: the network, its sampler step by step, and the gradients of Di[M]O."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor

from softdimo.kinds import Cond, Output, Teacher
from softdimo.math.divergence import Divergence
from softdimo.math.guidance import Guidance, guided_logits, to_scale
from softdimo.math.masking import apply_mask, exact_count_mask
from softdimo.math.rollout import Roll
from softdimo.math.soft import Relaxation
from softdimo_plugins.losses import dimo
from softdimo_plugins.samplers import maskgit as sampling
from softdimo_plugins.teachers.maskgit import MaskGit

from .case import GUIDED, RELATIVE, Case, Check
from .class_conditional import check_logits, sequence, tokens_and_classes
from .networks import Published, known, load

SMOOTHING = 0.1
"""Of the labels, in the training of the teacher and of psi."""
SIZES = ("grid", "hidden_dim", "depth", "heads", "mlp_dim", "codebook_size", "nclass", "sigma", "dropout")


def network(case: Case) -> Published:
    """The recorded network."""
    c = case.config
    known(c, SIZES)
    spec = MaskGit(width=c["hidden_dim"], depth=c["depth"], heads=c["heads"], mlp=c["mlp_dim"], classes=c["nclass"])
    return Published(load(spec, tokens_and_classes(c), case))


def check_model(case: Case) -> None:
    """Logits, soft inputs, losses."""
    check_logits(case, network(case), SMOOTHING)


def check_trace(case: Case) -> None:
    """A run of the sampler with the recorded draws: guided logits, and every id at every step."""
    s = case.info["settings"]
    known(s, ("T", "sm_temp", "w", "r_temp", "sched"), B=len(case["labels"]))
    net, cond, K = network(case.origin), Cond(case["labels"]), case.origin.config["codebook_size"]
    states: list[Tensor] = []
    masks: list[Tensor] = []
    guided: list[Tensor] = []

    class Watched(sampling.MaskGIT):
        """The sampler, its states written down, with the logits of all positions (its own at the masked ones)."""

        def predict(self, net: Teacher, tokens: Tensor, cond: Cond, at: Tensor, step: int) -> Tensor:
            z = super().predict(net, tokens, cond, at, step)
            everywhere = guided_logits(net, net.embed(tokens[..., None]), cond, self.scale(step))[:, :, 0]
            everywhere[at] = z.flatten(0, 1) * self.temperature
            states.append(tokens.clamp(max=K))
            masks.append(at)
            guided.append(everywhere)
            return z

    def recorded(name: str) -> mock.Mock:
        """A function that gives the draws of the present step, at the units that the sampler asks for."""
        return mock.Mock(side_effect=lambda *_: case[name][len(masks) - 1][masks[-1]].view(len(masks[-1]), -1))

    sampler = Watched(
        steps=s["T"], schedule=s["sched"], temperature=1 / s["sm_temp"], choice_temperature=s["r_temp"],
        guidance=Guidance(scale=to_scale(s["w"], "maskgit"), ramp="linear"),
    )  # fmt: skip
    with (
        mock.patch.object(sampling, "categorical", recorded("draws")),
        mock.patch.object(sampling, "gumbel", recorded("gumbel")),
    ):
        final = sampler.sample(net, cond, torch.Generator())[..., 0]
    case.equal("n_reveal", sampler.counts(net))
    case.near("cfg_scale", torch.tensor([sampler.scale(i) for i in range(s["T"])], dtype=torch.float64), 1e-9)
    case.near("guided_logits", torch.stack(guided), GUIDED)
    case.equal("codes_in", torch.stack(states))
    case.equal("still_masked", torch.stack([*masks[1:], torch.zeros_like(masks[0])]))
    case.equal("final_codes", final.clamp(max=K - 1))


class Given(Teacher):
    """A psi whose logits are recorded."""

    def __init__(self, net: Teacher, logits: Tensor) -> None:
        super().__init__()
        self.shape, self.width, self.depth, self.logits = net.shape, net.width, net.depth, logits

    def embed(self, tokens: Tensor) -> Tensor:
        """Nothing looks at it."""
        return tokens.float()

    def soften(self, probs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Nothing asks for it."""
        raise NotImplementedError

    def table_rms(self) -> Tensor:
        """Nothing asks for it."""
        raise NotImplementedError

    def forward(self, e: Tensor, cond: Cond, at: Tensor | None = None, features: Any = ()) -> Output:
        """The recorded logits."""
        return Output(self.logits if at is None else self.logits[at])


def divergence(kind: str) -> Divergence:
    """The divergence of a recorded kind: FKL, RKL, Jeffreys_<beta>. Nothing is clamped in the public code."""
    name, _, beta = kind.lower().partition("_")
    return Divergence(name=name, beta=float(beta or 0), clamp=1e6)


def check_dimo(case: Case) -> None:
    """The loss `dimo` on recorded student samples, masks and psi; the teacher's logits are computed."""
    s = case.info["settings"]
    known(s, ("true_cfg", "kinds"), B=len(case["labels"]), true_temp=1.0, fake_temp=1.0,
          reduction="sum over everything, divided by batch")  # fmt: skip
    net, cond, batch = network(case.origin), Cond(case["labels"]), s["B"]
    codes, mask = sequence(case["codes"]), sequence(case["mask"])
    x_t = apply_mask(codes, mask, net.shape.V)
    case.equal("masked_codes", x_t.clamp(max=net.net.shape.V).view_as(case["masked_codes"]))
    drawn = exact_count_mask(case["mask_ratio"], net.shape, torch.Generator())
    case.equal("masked units", mask.sum((1, 2)), drawn.sum((1, 2)))
    guided = guided_logits(net, net.embed(x_t), cond, s["true_cfg"])[:, :, 0]
    case.near("teacher_guided_logits", guided, GUIDED)
    psi = Given(net, case["fake_logits"][:, :, None])
    for kind in s["kinds"]:
        spec = dimo.DiMO(divergence=divergence(kind), guidance=Guidance(scale=s["true_cfg"]))
        term = dimo.DiMOTerm(spec, net, psi, "arccos")
        z = case["student_logits"][:, :, None].clone().requires_grad_()
        roll = Roll(cond, x_t, net.embed(x_t), z, codes, torch.Generator(), Relaxation(), mock.Mock())
        with mock.patch.object(dimo, "remask", return_value=(mask, x_t)):
            loss, _ = term.generator(roll)
        (gradient,) = torch.autograd.grad(loss, z)
        g = gradient[:, :, 0] * batch
        case.near(f"dloss_dstudent_{kind}", gradient[:, :, 0], RELATIVE, relative=True)
        case.near(f"grad_{kind}", g, RELATIVE, relative=True)
        case.near(f"loss_{kind}", g.square().sum() / (2 * batch), RELATIVE, relative=True)


CHECKS: dict[tuple[str, str], Check] = {
    ("maskgit", "model"): check_model,
    ("maskgit", "trace"): check_trace,
    ("maskgit", "dimo"): check_dimo,
}

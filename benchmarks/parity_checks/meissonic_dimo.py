"""Di[M]O on Meissonic, piece by piece: the one-step student, masks, guided teacher, gradients, psi's loss, noise."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from softdimo.kinds import Cond
from softdimo.math.divergence import Divergence
from softdimo.math.guidance import Guidance, guided_logits
from softdimo.math.init import Init, Warmup
from softdimo.math.masking import apply_mask, exact_count_mask
from softdimo.math.mdm import remask, unit_cross_entropy
from softdimo.math.rollout import Roll
from softdimo.math.schedules import Schedule, mask_ratio
from softdimo.math.soft import Relaxation
from softdimo_plugins.losses import dimo
from softdimo_plugins.teachers.meissonic import MeissonicTeacher

from .case import RELATIVE, Case, Check
from .class_conditional import perturbed, sequence
from .maskgit import Given, divergence
from .meissonic import ATOL, GUIDED, condition, network, origin, ours, sequence_of, theirs

SCHEDULE: Schedule = "cosine"
"""Of t, in the public script."""
UNIFORM = {"cosine": lambda r: r, "arccos": lambda r: r, "linear": lambda r: 1 - r}
"""Progress u of the uniform r that a ratio is recorded of; `square`, r^2, is no schedule here."""
SHAPES = {"linear": "linear", "cos": "cosine", "exp": "exponential"}
"""Names of the growing noise, theirs and ours."""


def numbers(case: Case, key: str, pattern: str) -> tuple[float, ...]:
    """Numbers that the description of an entry tells, at the groups of `pattern`. ValueError where it tells none."""
    found = re.search(pattern, case.info["keys"][key])
    if found is None:
        raise ValueError(f"the description of {key} has no {pattern}: {case.info['keys'][key]}")
    return tuple(map(float, found.groups()))


def check_dimo(case: Case) -> None:
    """All of it; of the conditions only the recorded times are theirs."""
    side = int(case.info["grid"])
    net = network(origin(case), (side, side))
    places = net.pos_embed(case["in.img_ids"])
    case.near("in.img_ids", net.rotation(0, torch.device("cpu"))[0], 0.0, expected=places[0])

    def told(timestep: Tensor) -> Cond:
        return condition(
            case["in.cond_tokens"], case["in.cond_pooled"], case["in.micro_conds"], timestep,
            case["in.neg_tokens"], case["in.neg_pooled"],
        )  # fmt: skip

    check_noise(case)
    check_student(case, net, told(case["gen.timestep_arg"]))
    drawn = sequence(case["gen.sampled_ids"])
    for name in [k.split(".")[1] for k in case.tensors if k.startswith("mask.") and k.endswith(".mask")]:
        check_mask(case, net, name, drawn)
    check_matching(case, net, told(case["teacher.timestep_arg"]), drawn)


def check_noise(case: Case) -> None:
    """sigma over the iterations."""
    steps = [int(n) for n in case.info["keys"]["pert_schedule"].removeprefix("at steps ").split(",")]
    for name in [k for k in case.tensors if k.startswith("pert_schedule.")]:
        words = name.removeprefix("pert_schedule.").split("_")
        if words[0] == "fix":
            init = Init(sigma=float(words[1]))
        else:
            init = Init(sigma=1.0, warmup=Warmup(shape=SHAPES[words[1]], over=int(words[2])))
        case.near(name, torch.tensor([init.at(k).sigma for k in steps]), 1e-6)


def check_student(case: Case, net: MeissonicTeacher, cond: Cond) -> None:
    """x_init, its noise, and the logits."""
    (sigma,) = numbers(case, "gen", r"sigma ([\d.]+)")
    if "half of the tokens masked" not in case.info["keys"]["gen"]:
        raise ValueError(f"the description of gen tells no ratio of masks: {case.info['keys']['gen']}")
    x = ours(case["gen.init_ids"], net)
    masks = (Init(r_init=0.5).tokens(len(x), net.shape, torch.Generator(), "cpu") == net.shape.V).sum((1, 2))
    case.equal("gen.init_ids masked", (x == net.shape.V).sum((1, 2)), masks)
    e = perturbed(net.embed(x), sequence_of(case["gen.noise"]), sigma)
    case.near("gen.logits", net(e, cond).logits[:, :, 0], ATOL)


def check_mask(case: Case, net: MeissonicTeacher, name: str, drawn: Tensor) -> None:
    """Ratio, mask and masked tokens of one schedule, from the recorded numbers."""
    r, scores, low_high = case[f"mask.{name}.r"], case[f"mask.{name}.scores"], r"\[([\d.]+),([\d.]+)\]"
    low, high = numbers(case, "mask", low_high)
    ratio = case[f"mask.{name}.ratio"]
    if name in UNIFORM:
        u = UNIFORM[name](r)
        case.near(f"mask.{name}.ratio", mask_ratio(name, u).clamp(low, high), 1e-6)  # type: ignore[arg-type]
        with mock.patch.object(torch, "rand", side_effect=[u, scores]):
            mask, x_t = remask(drawn, net, name, torch.Generator(), (low, high))  # type: ignore[arg-type]
    else:
        case.near(f"mask.{name}.ratio", r.square().clamp(low, high), 1e-6)
        with mock.patch.object(torch, "rand", return_value=scores):
            mask = exact_count_mask(ratio, net.shape, torch.Generator())
        x_t = apply_mask(drawn, mask, net.shape.V)
    case.equal(f"mask.{name}.mask", mask, sequence(case[f"mask.{name}.mask"].bool()))
    case.equal(f"mask.{name}.ids", theirs(x_t, net, case[f"mask.{name}.ids"].shape[1:]))


def check_matching(case: Case, net: MeissonicTeacher, cond: Cond, drawn: Tensor) -> None:
    """The loss `dimo` with the recorded psi, and psi's own losses."""
    (scale,) = numbers(case, "teacher", r"CFG ([\d.]+)")
    (smoothing,) = numbers(case, "aux", r"label smoothing ([\d.]+)")
    mask = sequence(case[f"mask.{SCHEDULE}.mask"].bool())
    x_t, batch = apply_mask(drawn, mask, net.shape.V), len(drawn)
    guided = guided_logits(net, net.embed(x_t), cond, scale)[:, :, 0]
    case.near("teacher.logits", guided, GUIDED)
    aux, student = case["aux.logits"][:, :, None], case["gen.logits"][:, :, None]
    case.near("aux.loss_hard", unit_cross_entropy(aux[mask], drawn[mask], smoothing))
    soft = Divergence(clamp=1e6).value(aux[mask], student[mask]).mean() / net.shape.V
    case.near("aux.loss_soft", soft)
    psi, recorded = Given(net, aux), case["teacher.logits"][:, :, None][mask]

    def teacher(*args: Any, **at: Any) -> Tensor:
        """What the term asks of the teacher: ours is compared, and the recorded answer is given."""
        case.near(f"{kind} teacher", guided_logits(*args, **at), GUIDED, expected=recorded)
        return recorded

    for kind in sorted({k.split(".grad_signal")[0] for k in case.tensors if k.endswith(".grad_signal")}):
        spec = dimo.DiMO(divergence=divergence(kind.removeprefix("dm.")), guidance=Guidance(scale=scale))
        term = dimo.DiMOTerm(spec, net, psi, SCHEDULE)
        z = student.clone().requires_grad_()
        roll = Roll(cond, x_t, net.embed(x_t), z, drawn, torch.Generator(), Relaxation(), mock.Mock())
        with (
            mock.patch.object(dimo, "remask", return_value=(mask, x_t)),
            mock.patch.object(dimo, "guided_logits", teacher),
        ):
            loss, _ = term.generator(roll)
        (gradient,) = torch.autograd.grad(loss, z)
        g = gradient[:, :, 0] * batch
        case.near(f"{kind}.grad_signal", g, RELATIVE, relative=True)
        case.near(f"{kind}.loss_sum", g.square().sum() / (2 * batch), RELATIVE, relative=True)
        case.near(f"{kind}.loss_mean", g.square().mean() / 2, RELATIVE, relative=True)
        if f"{kind}.dloss_dlogits_sum" in case:
            case.near(f"{kind}.dloss_dlogits_sum", gradient[:, :, 0], RELATIVE, relative=True)


CHECKS: dict[tuple[str, str], Check] = {("meissonic", "dimo"): check_dimo}

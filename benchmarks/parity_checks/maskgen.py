"""MaskGen (VQ): the network, soft inputs with their gradients, the loss of its training, its sampler step by step."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from softdimo.kinds import NULL, Cond, ImageShape, Teacher, TokenShape
from softdimo.math.guidance import Guidance, to_scale
from softdimo.math.masking import apply_mask, exact_count_mask
from softdimo.math.schedules import Schedule, mask_ratio
from softdimo_plugins.samplers import maskgen as own
from softdimo_plugins.teachers.maskgen import MaskGen, MaskGenTeacher, score_code

from .case import RELATIVE, Case, Check
from .class_conditional import sequence
from .networks import context, known, load

SMOOTHING, VISIBLE = 0.1, 0.1
"""Of the labels, and the weight of units that are not masked, in the training of the teacher."""
CODES = ("codebook_size", "num_latent_tokens", "text_embed_dim")
TOKENIZER = (
    "quantize_mode", "token_size", "use_l2_norm", "commitment_cost", "clustering_vq", "vit_enc_model_size",
    "vit_dec_model_size", "vit_enc_patch_size", "vit_dec_patch_size", "finetune_decoder", "is_legacy",
    "text_context_length",
)  # fmt: skip
"""Settings of the tokenizer, which say nothing of the network."""
SIZES = (
    "decoder_embed_dim", "decoder_depth", "decoder_num_heads", "micro_condition", "micro_condition_embed_dim",
    "text_drop_prob", "condition_num_classes", "sample_aesthetic_score", "weight_tying", "mask_schedule_strategy",
    "cfg", "num_iter", "temperature",
)  # fmt: skip
SAMPLING = (
    "guidance_scale", "randomize_temperature", "num_sample_steps", "guidance_decay", "guidance_decay_scale_pow",
    "softmax_temperature_annealing", "prob_sorting", "sample_aesthetic_score",
)  # fmt: skip


def schedule(case: Case) -> Schedule:
    """Of masking, in training and sampling."""
    name: Schedule = case.config["model"]["maskgen"].get("mask_schedule_strategy", "arccos")
    return name


def network(case: Case) -> MaskGenTeacher:
    """The recorded network."""
    codes, c = (case.config["model"][part] for part in ("vq_model", "maskgen"))
    known(codes, (*CODES, *TOKENIZER))
    known(c, SIZES)
    spec = MaskGen(
        width=c["decoder_embed_dim"], depth=c["decoder_depth"], heads=c["decoder_num_heads"],
        text_width=codes.get("text_embed_dim", 768), classes=c["condition_num_classes"],
        score_width=c["micro_condition_embed_dim"] if c["micro_condition"] else 0,
        aesthetic=float(c.get("sample_aesthetic_score", 6.0)), tied=c.get("weight_tying", True),
    )  # fmt: skip
    shape = TokenShape(1, codes["num_latent_tokens"], 1, codes["codebook_size"])
    net: MaskGenTeacher = load(spec, context(ImageShape(3, 1, 1), shape), case)
    return net


def encoded(states: Tensor, pooled: Tensor, null: tuple[Tensor, Tensor] | None = None) -> Cond:
    """Conditions of these encodings, and of the unconditional prompt's."""
    tensors = {"states": states, "pooled": pooled.flatten(1)}
    if null is not None:
        tensors |= {
            f"{NULL}states": null[0].expand_as(states),
            f"{NULL}pooled": null[1].flatten(1).expand(len(states), -1),
        }
    return Cond(torch.full((len(states),), -1), tensors=tensors)


class Scored:
    """The network, asked for an aesthetic score for each sample: they go one by one, with the outputs put together."""

    def __init__(self, net: MaskGenTeacher, scores: Tensor, cond: Cond) -> None:
        self.net, self.scores, self.cond = net, scores, cond

    def __call__(self, e: Tensor) -> Tensor:
        """Logits [B L V]."""
        logits = []
        for i, score in enumerate(self.scores.tolist()):
            self.net.aesthetic = score
            logits.append(self.net(e[i : i + 1], self.cond[i : i + 1]).logits[:, :, 0])
        return torch.cat(logits)


def check_model(case: Case) -> None:
    """Everything that is recorded of one network."""
    net = network(case)
    cond = encoded(case["in.cond_tokens"], case["in.cond_pooled"])
    asked = Scored(net, case["in.aesthetic"] if "in.aesthetic" in case else torch.zeros(len(cond)), cond)
    check_logits(case, net, asked)
    check_soft(case, net, asked)
    if "train.loss" in case:
        check_training(case, net, asked)
    for name, settings in case.info.get("sampler_runs", {}).items():
        check_run(case, name, settings)


def check_logits(case: Case, net: MaskGenTeacher, asked: Scored) -> None:
    """Logits everywhere and at masked units, and what the parts of the network give on the way."""
    ids = sequence(case["in.ids"])
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str, *outputs: str) -> Any:
        def hook(_: Any, args: Any, out: Any) -> None:
            for key, value in zip(outputs or (name,), out if outputs else (out,), strict=True):
                if value is not None:
                    seen.setdefault(f"mid.{key}", []).append(value)

        return net.get_submodule(name).register_forward_hook(hook)

    hooks = [watch(name) for name in ("text_embed_proj", "cond_pooled_proj", "norm")]
    hooks += [watch(f"blocks.{i}", f"blocks.{i}.0", f"blocks.{i}.1") for i in range(net.depth)]
    case.near("logits", asked(net.embed(ids)))
    for hook in hooks:
        hook.remove()
    parts = {name: torch.cat(values) for name, values in seen.items()}
    parts["mid.embeddings"] = net.embed(ids)
    if net.score_width:
        parts["mid.micro_encoding"] = score_code(asked.scores, net.score_width)
    for name, value in parts.items():
        if name in case:
            case.near(name, value.view_as(case[name]))
    masked = ids == net.shape.V
    case.equal("in.mask", masked[..., 0].byte())
    net.aesthetic = asked.scores[0].item()
    at = net(net.embed(ids[:1]), asked.cond[:1], at=masked[:1]).logits
    case.near("logits at masked units", at, expected=case["logits"][:1][masked[:1, :, 0]])


def check_soft(case: Case, net: MaskGenTeacher, asked: Scored) -> None:
    """Expected embeddings at every position, and at those that are not masked."""
    masked = case["in.mask"].bool()[..., None]
    for name, mask in (("all", None), ("mix", masked)):
        if f"soft.{name}.logits" not in case:
            continue
        probs = case["soft.probs"].clone().requires_grad_()
        logits = asked(net.soften(probs[:, :, None], mask))
        case.near(f"soft.{name}.logits", logits)
        (gradient,) = torch.autograd.grad((logits * case["soft.cotangent"]).sum(), probs)
        case.near(f"soft.{name}.grad_probs", gradient, RELATIVE, relative=True)


def check_training(case: Case, net: MaskGenTeacher, asked: Scored) -> None:
    """Masks from the recorded draws, logits, and the loss: a mean over all units, those not masked at a lesser one."""
    tokens = sequence(case["train.tokens"])
    with mock.patch.object(torch, "rand", return_value=case["train.scores"]):
        mask = exact_count_mask(mask_ratio(schedule(case), case["train.u"]), net.shape, torch.Generator())
    case.equal("train.masks", mask[..., 0].byte())
    logits = asked(net.embed(apply_mask(tokens, mask, net.shape.V)))
    case.near("train.logits", logits)
    losses = functional.cross_entropy(
        logits.flatten(0, 1), tokens.flatten(), label_smoothing=SMOOTHING, reduction="none"
    )
    weights = torch.where(mask, 1.0, VISIBLE).flatten()
    case.near("train.loss", (losses * weights).sum() / (weights.sum() + 1e-8))


def guidance(settings: dict[str, Any]) -> Guidance:
    """What the settings of a recorded run mean in our scale."""
    g, decay = settings.get("guidance_scale", 12.0), settings.get("guidance_decay", "cosine")
    power = float(settings.get("guidance_decay_scale_pow", 1.0))
    scale, least = to_scale(g, "maskgen"), to_scale(1.0, "maskgen")
    if decay == "flippedcosine":
        middle, swing = least, (scale - least) / 2
        return Guidance(scale=middle - swing, start=middle + swing, ramp="cosine", power=power)
    if decay == "none":
        return Guidance(scale=scale)
    if decay not in ("cosine", "linear"):
        raise ValueError(f"guidance_decay: {decay} is not supported")
    return Guidance(scale=scale, start=least, ramp=decay, power=power if decay == "cosine" else 1.0)


def gumbel_of(u: Tensor) -> Tensor:
    """The noise that the public code makes of uniform numbers."""
    return -(-u.clamp(min=1e-20).log()).clamp(min=1e-20).log()


def check_run(case: Case, name: str, settings: dict[str, Any]) -> None:
    """A run of the sampler with the recorded draws: both branches' logits, and every id at every step."""
    known(settings, SAMPLING)
    net = network(case)
    cond = encoded(case["gen.cond_tokens"], case["gen.cond_pooled"], (case["gen.null_tokens"], case["gen.null_pooled"]))
    steps = settings.get("num_sample_steps", 16)
    states: dict[int, Tensor] = {}
    masks: list[Tensor] = []

    class Watched(own.MaskGen):
        """The sampler, its states written down."""

        def predict(self, net: Teacher, tokens: Tensor, cond: Cond, at: Tensor, step: int) -> Tensor:
            states[step] = tokens.clone()
            masks.append(at)
            return super().predict(net, tokens, cond, at, step)

    def recorded(like: Tensor, rng: torch.Generator) -> Tensor:
        """The noise of the present step at the units that the sampler asks for: of tokens, or of scores."""
        u = case[f"gen.{name}.s{max(states)}.{'u_token' if like.ndim == 3 else 'u_conf'}"]
        return gumbel_of(u)[masks[-1]].view_as(like)

    sampler = Watched(
        steps=steps, schedule=schedule(case), guidance=guidance(settings),
        choice_temperature=settings.get("randomize_temperature", 1.5),
        annealing=settings.get("softmax_temperature_annealing", True), score_noise=settings.get("prob_sorting", True),
    )  # fmt: skip
    with mock.patch.object(own, "gumbel", recorded):
        final = sampler.sample(net, cond, torch.Generator())
    case.equal(f"gen.{name}.out_ids", final[..., 0])
    before = [states[min(seen for seen in states if seen >= step)] for step in range(steps)]  # idle steps are left out
    case.equal(f"gen.{name}.masked_per_step", torch.stack([(ids == net.shape.V).sum(1) for ids in before]))
    for step, ids in enumerate(before):
        key = f"gen.{name}.s{step}"
        case.equal(f"{key}.ids_in", ids)
        for draws in ("u_token", "u_conf"):  # the last step, and idle ones, need none
            if f"{key}.{draws}" in case:
                case[f"{key}.{draws}"]
        for branch, of in (("cond", cond), ("null", net.null(cond))):
            case.near(f"{key}.logits_{branch}", net(net.embed(ids[..., None]), of).logits[:, :, 0])


CHECKS: dict[tuple[str, str], Check] = {("maskgen", "model"): check_model}

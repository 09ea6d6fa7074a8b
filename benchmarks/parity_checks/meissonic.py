"""Meissonic: the network with everything inside it, its tokenizer, and its sampler step by step."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from softdimo.kinds import NULL, Cond, ImageShape, Teacher, TokenShape
from softdimo.math.guidance import Guidance, guided_logits, to_scale
from softdimo.math.mdm import unit_cross_entropy
from softdimo_plugins.samplers import maskgit as loop
from softdimo_plugins.samplers.meissonic import Meissonic as Sampler
from softdimo_plugins.teachers.meissonic import Meissonic, MeissonicTeacher
from softdimo_plugins.tokenizers.meissonic import MeissonicVQ

from .case import RELATIVE, TINY, Case, Check
from .class_conditional import perturbed, sequence
from .networks import context, known, load

ATOL, GUIDED = 2e-5, 1e-4
"""Logits; guided ones."""
SIZES = (
    "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
    "axes_dims_rope", "vocab_size", "codebook_size", "downsample", "patch_size", "in_channels",
)  # fmt: skip


def network(case: Case, grid: tuple[int, int], **settings: Any) -> MeissonicTeacher:
    """The recorded network for so many rows and columns of tokens."""
    c = case.config
    D = c["attention_head_dim"] * c["num_attention_heads"]
    known(c, SIZES, pooled_projection_dim=D, guidance_embeds=False, upsample=c["downsample"])
    if case.info["mask_token_id"] != c["vocab_size"] - 1:
        raise ValueError(f"mask_token_id: {case.info['mask_token_id']} is not the last row of the table")
    spec = Meissonic(
        width=D, joint=c["num_layers"], single=c["num_single_layers"], heads=c["num_attention_heads"],
        axes=tuple(c["axes_dims_rope"]), text_width=c["joint_attention_dim"],
        spare=c["vocab_size"] - c["codebook_size"], halve=c["downsample"], **settings,
    )  # fmt: skip
    tokens = TokenShape(*grid, 1, c["codebook_size"])
    net: MeissonicTeacher = load(spec, context(ImageShape(3, 16 * grid[0], 16 * grid[1]), tokens), case)
    return net


def origin(case: Case) -> Case:
    """The model that a recording was made of: of the same variant, or the one that its description names."""
    words = [w for w in case.path.stem.removesuffix(TINY).split("_") if w not in ("sampler", "dimo")]
    names = ["_".join(words) + TINY, *re.findall(rf"\w+{TINY}", case.info["what"])]
    for name in names:
        path = case.path.with_name(f"{name}.json")
        if path.is_file():
            found = Case.load(path)
            if found.config == case.config:
                return found
    raise ValueError(f"no model of the same sizes beside it: {', '.join(names)}")


def ours(ids: Tensor, net: MeissonicTeacher) -> Tensor:
    """Our tokens [B L 1] of a grid [B rows cols] of theirs, whose mask is the last row of the table."""
    return sequence(ids).clamp(max=net.shape.V)


def theirs(tokens: Tensor, net: MeissonicTeacher, grid: tuple[int, ...]) -> Tensor:
    """A grid of their ids of our tokens."""
    return tokens.masked_fill(tokens == net.shape.V, net.shape.V + net.spec.spare - 1).view(-1, *grid)


def first(z: Tensor, rows: int) -> Tensor:
    """Logits [B V rows cols] of ours [B L 1 V]."""
    return z[:, :, 0].transpose(1, 2).unflatten(2, (rows, -1))  # type: ignore[no-untyped-call]


def condition(states: Tensor, pooled: Tensor, micro: Tensor, timestep: Tensor, *null: Tensor) -> Cond:
    """Encodings of prompts, what the network is told beside them, and the encodings of the negative prompt."""
    n = len(states)
    tensors = {"states": states, "pooled": pooled, "micro": micro, "timestep": timestep.expand(n)}
    return Cond(
        torch.full((n,), -1),
        tensors=tensors | {f"{NULL}{k}": t for k, t in zip(("states", "pooled"), null, strict=False)},
    )


@contextlib.contextmanager
def watched(net: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Outputs of the modules inside, by name; of several tensors as `name.0`, `name.1`."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def see(_: nn.Module, args: Any, out: Any) -> None:
            several = out if isinstance(out, tuple) else (out,)
            seen.update({f"{name}.{i}" if isinstance(out, tuple) else name: t for i, t in enumerate(several)})

        return see

    handles = [module.register_forward_hook(hook(name)) for name, module in net.named_modules()]
    yield seen
    for handle in handles:
        handle.remove()


def check_inside(case: Case, seen: dict[str, Tensor], e: Tensor, grid: tuple[int, int]) -> None:
    """Every recorded output of a module inside; a time that is the same for all is coded once, here and perhaps there.

    Blocks that neither halve nor double give what they are given.
    """
    seen["embed"] = e.transpose(1, 2).unflatten(2, grid)  # type: ignore[no-untyped-call]
    for name in [k for k in case.tensors if k.startswith("t0.mid.")]:
        inner, expected = name.removeprefix("t0.mid."), case[name]
        if re.fullmatch(r"single_transformer_blocks\.\d+", inner):
            value = torch.cat([seen[f"{inner}.0"], seen[f"{inner}.1"]], 1)  # theirs are not taken apart
        elif inner == "down_block":
            value = seen.get("down_block.downsample", seen["embed"])
        elif inner == "up_block":
            same = seen["project_from_hidden"].transpose(1, 2)
            value = seen["up_block.upsample"] if "up_block.upsample" in seen else same.reshape(expected.shape)
        else:
            value = seen[inner]
        if inner.endswith(("time_proj", "timestep_embedder")):
            value, expected = torch.broadcast_tensors(value, expected)  # type: ignore[no-untyped-call]
        case.near(name, value, ATOL, expected=expected)


def check_model(case: Case) -> None:
    """Logits at several times and from the recorded codes of these times, what is inside, noise, soft tokens, loss."""
    ids = case["in.ids"]
    grid = (int(ids.shape[1]), int(ids.shape[2]))
    net = network(case, grid)
    x = ours(ids, net)
    places = net.rotation(len(case["in.txt_ids"]), x.device)
    turned = net.pos_embed(torch.cat([case["in.txt_ids"], case["in.img_ids"]]))
    case.near("in.img_ids", torch.stack(places), 0.0, expected=torch.stack(turned))

    def told(timestep: Tensor) -> Cond:
        return condition(case["in.encoder_hidden_states"], case["in.pooled"], case["in.micro_conds"], timestep)

    def logits(e: Tensor, timestep: Tensor) -> Tensor:
        return first(net(e, told(timestep)).logits, grid[0])

    e, zero = net.embed(x), case["t0.timestep"]
    with watched(net) as seen:
        case.near("t0.logits", logits(e, zero), ATOL)
    if any(k.startswith("t0.mid.") for k in case.tensors):
        seen["time_text_embed"] = net.modulation(told(zero), e)
        check_inside(case, seen, e, grid)
    for call in [k.removesuffix(".timestep") for k in case.tensors if k.endswith(".timestep") and k != "t0.timestep"]:
        t, code = case[f"{call}.timestep"], f"{call}.mid.time_proj"
        case.near(f"{call}.logits", logits(e, t), float(case.info["tolerance_atol"].get(call, ATOL)))
        if code in case:  # the sines of times that, multiplied by 1000, float32 knows roughly
            distinct = {float(time): each for time, each in zip(t, case[code], strict=True)}
            codes = torch.stack([distinct[time] for time in sorted(distinct)])
            with mock.patch.object(net.time_text_embed.time_proj, "forward", return_value=codes):
                case.near(f"{call}.logits from {code}", logits(e, t), ATOL, expected=case[f"{call}.logits"])
    noisy = perturbed(e, sequence_of(case["pert.noise"]), float(case["pert.sigma"]))
    case.near("pert.logits", logits(noisy, zero), ATOL)
    check_soft(case, grid, told(zero))
    mask = sequence(case["in.mask"].bool())
    target = sequence(case["loss.labels"])
    case.equal("loss.labels", mask, target != -100)
    case.near("loss.ce", unit_cross_entropy(net(e, told(zero), at=mask).logits, target[mask]), ATOL)


def sequence_of(channels_first: Tensor) -> Tensor:
    """[B L D] of [B D rows cols]."""
    return channels_first.flatten(2).transpose(1, 2)


def check_soft(case: Case, grid: tuple[int, int], cond: Cond) -> None:
    """Soft tokens before and after the stem, with gradients to the probabilities."""
    probs, cotangent = case["soft.probs"].flatten(1, 2)[:, :, None], case["soft.cotangent"]
    mask = sequence(case["in.mask"].bool())
    before, after = (network(case, grid, mixing=mixing) for mixing in ("before", "after"))
    for name, net, where in (
        ("all", before, None),
        ("mix", before, mask),
        ("postembed_all", after, None),
    ):
        p = probs.clone().requires_grad_()
        z = first(net(net.soften(p, where), cond).logits, grid[0])
        case.near(f"soft.{name}.logits", z, ATOL)
        if f"soft.{name}.grad_probs" in case:
            (g,) = torch.autograd.grad((z * cotangent).sum(), p)
            case.near(f"soft.{name}.grad_probs", g.view_as(case[f"soft.{name}.grad_probs"]), RELATIVE, relative=True)


def check_tokenizer(case: Case) -> None:
    """Latents, ids, pixels of hard and soft codes, and the gradient to the probabilities."""
    c, pixels, ids = case.config, case["encode.pixels"], case["in.ids"]
    levels = len(c["block_out_channels"])
    known(
        c,
        ("block_out_channels", "in_channels", "latent_channels", "vq_embed_dim", "layers_per_block", "norm_num_groups",
         "num_vq_embeddings", "mid_block_add_attention", "sample_size", "force_upcast", "scaling_factor"),
        act_fn="silu", out_channels=c["in_channels"], lookup_from_codebook=True, norm_type="group",
        down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
    )  # fmt: skip
    spec = MeissonicVQ(
        codebook=c["num_vq_embeddings"], latent=c["latent_channels"],
        dim=c.get("vq_embed_dim") or c["latent_channels"], widths=tuple(c["block_out_channels"]),
        blocks=c["layers_per_block"], norm_groups=c["norm_num_groups"],
        attention=c.get("mid_block_add_attention", True),
    )  # fmt: skip
    net = load(spec, context(ImageShape(c["in_channels"], pixels.shape[2], pixels.shape[3])), case)
    z = net.latents(pixels)
    case.near("encode.latents", z.transpose(1, 2).view_as(case["encode.latents"]))
    case.equal("encode.ids", net.encode(pixels).view_as(case["encode.ids"]))
    case.near("decode.raw", net.pixels(net.codes()[sequence(ids)[..., 0]]))
    case.near("decode.clipped", net.decode(sequence(ids)))
    p = case["soft.probs"].flatten(1, 2)[:, :, None].requires_grad_()
    raw = net.pixels(net.expected(p))
    case.near("soft.raw", raw)
    (g,) = torch.autograd.grad((raw * case["soft.cotangent"]).sum(), p)
    case.near("soft.grad_probs", g.view_as(case["soft.grad_probs"]), RELATIVE, relative=True)


def check_sampler(case: Case) -> None:
    """A run of the sampler with the recorded draws: guided logits, and every id at every step."""
    steps, side, scale = case.info["steps"], case.info["latent_side"], to_scale(case.info["guidance_scale"], "dimo")
    net = network(origin(case), (side, side))
    n = len(case["in.prompt_embeds"])
    cond = condition(
        case["in.encoder_hidden_states"], case["in.prompt_embeds"], case["in.micro_conds"][-n:], torch.tensor([-1.0]),
        case["in.negative_encoder_hidden_states"], case["in.negative_prompt_embeds"],
    )  # fmt: skip
    case.near("in.img_ids", net.rotation(0, torch.device("cpu"))[0], 0.0, expected=net.pos_embed(case["in.img_ids"])[0])
    states: list[Tensor] = []
    masks: list[Tensor] = []
    told: list[Cond] = []
    times: list[Tensor] = []
    at_step: list[int] = []
    net.register_forward_pre_hook(lambda _, args: told.append(args[1]))

    class Watched(Sampler):
        """The sampler, its states written down, with the logits of all positions (its own at the masked ones)."""

        def predict(self, net: Teacher, tokens: Tensor, cond: Cond, at: Tensor, step: int) -> Tensor:
            z = super().predict(net, tokens, cond, at, step)
            times.append(told[-1].tensors["timestep"][0])
            now = replace(cond, tensors={**cond.tensors, "timestep": times[-1].expand(n)})
            everywhere = guided_logits(net, net.embed(tokens[..., None]), now, self.scale(step))
            everywhere[at[..., None]] = z.flatten(0, 1) * self.temperature
            case.near(f"s{step}.cfg_logits", first(everywhere, side), GUIDED)
            states.append(tokens.clone())
            masks.append(at)
            at_step.append(step)
            return z

    def recorded(name: str, change: Any = None) -> mock.Mock:
        """A function that gives the draws of the present step, at the units that the sampler asks for."""

        def draws(*_: Any) -> Tensor:
            values = case[f"s{at_step[-1]}.{name}"][masks[-1]].view(n, -1)
            return values if change is None else change(values)  # type: ignore[no-any-return]

        return mock.Mock(side_effect=draws)

    a = case.info["temperature"]
    first_last = a if isinstance(a, list) else [a, 0.01]
    sampler = Watched(
        steps=steps, guidance=Guidance(scale=scale), choice_temperature=first_last[0],
        last_choice_temperature=first_last[1],
    )  # fmt: skip
    case.near("temperatures", torch.tensor([sampler.noise(i) for i in range(steps)]), 1e-6)
    with (
        mock.patch.object(loop, "categorical", recorded("sampled")),
        mock.patch.object(loop, "gumbel", recorded("uniform", gumbel_of)),
    ):
        final = sampler.sample(net, cond, torch.Generator())
    case.equal("steps with a pass", at_step, list(range(steps)))
    case.equal("timesteps", torch.stack(times).long())
    for i, after in enumerate([*states[1:], final[..., 0]]):
        shape = case[f"s{i}.ids_in"].shape[1:]
        case.equal(f"s{i}.timestep_arg", times[i][None].long())
        case.equal(f"s{i}.ids_in", theirs(states[i], net, shape))
        drawn = torch.where(masks[i], case[f"s{i}.sampled"], states[i])
        case.equal(f"s{i}.pred_original", drawn.view_as(case[f"s{i}.pred_original"]))
        case.equal(f"s{i}.ids_out", theirs(after, net, shape))
    case.equal("out.ids", theirs(final, net, case["out.ids"].shape[1:]))


def gumbel_of(u: Tensor) -> Tensor:
    """-log(-log u), as the public code guards it."""
    return -(-u.clamp(min=1e-20).log()).clamp(min=1e-20).log()


CHECKS: dict[tuple[str, str], Check] = {
    ("meissonic", "model"): check_model,
    ("meissonic", "sampler"): check_sampler,
    ("meissonic_vqvae", "model"): check_tokenizer,
}

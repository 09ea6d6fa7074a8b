"""MaskBit: the network, its tokenizer, and its sampler step by step."""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor

from softdimo.kinds import Cond, ImageShape, Teacher, TokenShape
from softdimo.math.guidance import Guidance, to_scale
from softdimo.math.mdm import unit_cross_entropy
from softdimo_plugins.samplers import maskgit as loop
from softdimo_plugins.samplers.maskbit import MaskBit as Sampler
from softdimo_plugins.teachers.maskbit import MaskBit, MaskBitTeacher
from softdimo_plugins.tokenizers.maskbit import MaskBitLFQ, MaskBitTokenizer

from .case import TINY, Case, Check
from .networks import context, known, load

SMOOTHING = 0.1
"""Of the labels, in the training of the teacher."""
SIZES = ("bits", "splits", "grid", "hidden_dim", "depth", "heads", "mlp_dim", "nclass", "use_prenorm", "dropout")
SAMPLING = (
    "N", "softmax_temperature", "randomize_temperature", "guidance_scale", "annealing", "scale_pow", "schedule",
)  # fmt: skip
TOKENIZER_SIZES = (
    "num_channels", "hidden_channels", "channel_mult", "num_res_blocks", "sample_with_conv", "token_size",
)  # fmt: skip


def network(case: Case) -> MaskBitTeacher:
    """The recorded network."""
    c = case.config
    known(c, SIZES)
    spec = MaskBit(
        width=c["hidden_dim"], depth=c["depth"], heads=c["heads"], mlp=c["mlp_dim"], classes=c["nclass"],
        pre_norm=c["use_prenorm"],
    )  # fmt: skip
    shape = TokenShape(c["grid"], c["grid"], c["splits"], 2 ** (c["bits"] // c["splits"]))
    net: MaskBitTeacher = load(spec, context(ImageShape(3, c["grid"], c["grid"]), shape, c["nclass"]), case)
    return net


def tokenizer(case: Case, grid: tuple[int, int]) -> MaskBitTokenizer:
    """The recorded tokenizer, for so many tokens; in two groups, if its bits can be halved."""
    c = case.config
    known(c, TOKENIZER_SIZES, num_resolutions=len(c["channel_mult"]))
    spec = MaskBitLFQ(
        bits=c["token_size"], groups=2 - c["token_size"] % 2, width=c["hidden_channels"],
        multipliers=tuple(c["channel_mult"]), blocks=c["num_res_blocks"], resample=c["sample_with_conv"],
    )  # fmt: skip
    patch = 2 ** (len(c["channel_mult"]) - 1)
    image = ImageShape(c["num_channels"], grid[0] * patch, grid[1] * patch)
    net: MaskBitTokenizer = load(spec, context(image), case)
    return net


def split(ids: Tensor, shape: TokenShape) -> Tensor:
    """Our [B L G] of whole tokens [B L]: group 0 has the lowest bits."""
    return ids[..., None] // shape.V ** torch.arange(shape.G) % shape.V


def whole(tokens: Tensor, V: int) -> Tensor:
    """Whole tokens [B L] of ours [B L G]."""
    return (tokens * V ** torch.arange(tokens.shape[-1])).sum(-1)


def check_model(case: Case) -> None:
    """Input bits, logits with and without the label, soft inputs, the losses of training."""
    net, labels = network(case), case["labels"]
    bits: list[Tensor] = []
    net.input_proj.register_forward_pre_hook(lambda _, args: bits.append(args[0]))
    conds = {
        "cond": Cond(labels),
        "uncond": net.null(Cond(labels)),
        "mixed": Cond(torch.where(case["drop_mixed"], -1, labels)),
    }
    tokens, x_t, mask = case["tokens"], case["masked_tokens"], case["loss_mask"]
    case.equal("full_tokens", whole(tokens, net.shape.V))
    case.equal("loss_mask", x_t == net.shape.V)
    for name, cond in conds.items():
        case.near(f"logits_{name}", net(net.embed(x_t), cond).logits)
    case.near("bits_input", bits[-1])
    soft = net.soften(case["soft_probs"], case["soft_mask"])
    case.near("expected_bits", bits[-1])
    case.near("logits_soft", net(soft, conds["mixed"]).logits)
    logits = net(net.embed(x_t), conds["cond"]).logits
    case.near("loss_all_positions", unit_cross_entropy(logits.flatten(0, 2), tokens.flatten(), SMOOTHING))
    case.near("loss_masked_only", unit_cross_entropy(logits[mask], tokens[mask], SMOOTHING))


def check_tokenizer(case: Case) -> None:
    """Latents, ids, and pixels of hard and soft codes, not clamped."""
    images, ids = case["images"], case["encode_ids"]
    net = tokenizer(case, (ids.shape[1], ids.shape[2]))
    seen: list[Tensor] = []
    net.encoder.register_forward_hook(lambda _, args, z: seen.append(z))
    net.decoder.register_forward_hook(lambda _, args, pixels: seen.append(pixels))
    case.equal("encode_ids", whole(net.encode(images), net.shape.V).view_as(ids))
    case.near("encoder_z", seen.pop())
    for name, tokens in (("decode_encode_ids", ids.flatten(1)), ("decode_ids", case["ids"])):
        net.decode(split(tokens, net.shape))
        case.near(name, seen.pop())
    case.near("codes", net.codes[split(case["ids"], net.shape)].flatten(2))
    beta = case["expected_bits"].flatten(2).transpose(1, 2)
    probs = ((1 + beta.unflatten(2, (net.shape.G, 1, -1)) * net.codes) / 2).prod(-1)  # of independent bits
    net.decode_soft(probs)
    case.near("decode_soft", seen.pop())
    case.near("odd_encoder_z", net.encoder(case["odd_images"]))


def check_trace(case: Case) -> None:
    """A run of the sampler with the recorded draws: logits, and every id at every step."""
    s = case.info["settings"]
    ramp = {"cosine": "cosine", "linear": "linear", "none": "constant"}[s["annealing"]]
    known(s, SAMPLING, B=len(case["labels"]))
    net, cond = network(case.origin), Cond(case["labels"])
    states: list[Tensor] = []
    masks: list[Tensor] = []

    class Watched(Sampler):
        """The sampler, its states written down."""

        def predict(self, net: Teacher, tokens: Tensor, cond: Cond, at: Tensor, step: int) -> Tensor:
            states.append(tokens.clone())
            masks.append(at)
            return super().predict(net, tokens, cond, at, step)

    def recorded(name: str) -> mock.Mock:
        """A function that gives the draws of the present step, at the units that the sampler asks for."""
        return mock.Mock(side_effect=lambda *_: case[name][len(masks) - 1].flatten(1)[masks[-1]].view(len(cond), -1))

    guidance = Guidance(
        scale=to_scale(s["guidance_scale"], "maskbit"), ramp=ramp, power=s["scale_pow"] if ramp == "cosine" else 1.0
    )
    sampler = Watched(
        steps=s["N"], schedule=s["schedule"], temperature=s["softmax_temperature"],
        choice_temperature=s["randomize_temperature"], guidance=guidance,
    )  # fmt: skip
    with (
        mock.patch.object(loop, "categorical", recorded("draws")),
        mock.patch.object(loop, "gumbel", recorded("gumbel")),
    ):
        final = sampler.sample(net, cond, torch.Generator())
    scales = torch.tensor([sampler.scale(i) for i in range(s["N"])], dtype=torch.float64)
    case.near("guidance", scales - to_scale(0.0, "maskbit"), 1e-9)
    case.equal("tokens_in", torch.stack(states).view_as(case["tokens_in"]))
    for name, branch in (("cond", cond), ("uncond", net.null(cond))):
        z = [net(net.embed(x), branch).logits for x in case["tokens_in"]]
        case.near(f"logits_{name}", torch.stack(z))
    drawn = [torch.where(at, draws.flatten(1), x) for at, draws, x in zip(masks, case["draws"], states, strict=True)]
    case.equal("predicted", torch.stack(drawn).view_as(case["predicted"]))
    left = [at.sum(1) for at in masks[1:]]
    case.equal(
        "masked_after", torch.stack([*left, torch.ones_like(masks[0].sum(1))])
    )  # theirs masks one at the end too
    case.equal("final_ids", whole(final, net.shape.V))
    variant = case.info["trace_of"].removeprefix("maskbit")
    paths = [case.path.with_name(f"maskbit_tokenizer{v}{TINY}.json") for v in (variant, "")]
    decoder = tokenizer(Case.load(next(path for path in paths if path.is_file())), net.shape[:2])
    case.near("final_pixels", decoder.pixels(decoder.codes[split(whole(final, net.shape.V), decoder.shape)].flatten(2)))


CHECKS: dict[tuple[str, str], Check] = {
    ("maskbit", "model"): check_model,
    ("maskbit", "trace"): check_trace,
    ("maskbit_tokenizer", "model"): check_tokenizer,
}

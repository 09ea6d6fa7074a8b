"""TA-TiTok (VQ), the tokenizer of MaskGen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softdimo.kinds import Cond, ImageShape
from softdimo_plugins.tokenizers.tatitok import TEXT, TATiTok, TATiTokTokenizer, Tower

from .case import RELATIVE, Case, Check
from .class_conditional import sequence
from .networks import context, known, load

SIZES = (
    "codebook_size", "token_size", "num_latent_tokens", "vit_enc_model_size", "vit_dec_model_size",
    "vit_enc_patch_size", "vit_dec_patch_size", "text_context_length", "text_embed_dim", "commitment_cost",
    "clustering_vq",
)  # fmt: skip
PUBLIC = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, layers and heads by the public names of sizes."""


def tower(case: Case, side: str) -> Tower:
    """The recorded sizes of `enc` or `dec`: those written out, or those of the name."""
    c = case.config["model"]["vq_model"]
    written = case.config.get("resolved", {}).get(side)
    if written is None:
        width, depth, heads = PUBLIC[c[f"vit_{side}_model_size"]]
    else:
        width, depth, heads = (written[key] for key in ("width", "layers", "heads"))
    return Tower(width=width, depth=depth, heads=heads, patch=c[f"vit_{side}_patch_size"])


def tokenizer(case: Case) -> TATiTokTokenizer:
    """The recorded tokenizer."""
    c = case.config["model"]["vq_model"]
    known(c, SIZES, quantize_mode="vq", use_l2_norm=False, finetune_decoder=False, is_legacy=False)
    spec = TATiTok(
        encoder=tower(case, "enc"), decoder=tower(case, "dec"), tokens=c["num_latent_tokens"],
        codebook=c["codebook_size"], dim=c["token_size"], text_width=c.get("text_embed_dim", 768),
        text_length=c.get("text_context_length", 77),
    )  # fmt: skip
    side = case.config["dataset"]["preprocessing"]["crop_size"]
    net: TATiTokTokenizer = load(spec, context(ImageShape(3, side, side)), case)
    return net


def check_model(case: Case) -> None:
    """Latents, ids, and pixels of hard and soft codes, not clamped and clamped, with the gradient of the latter."""
    net = tokenizer(case)
    cond, ids = Cond(torch.full((len(case["in.ids"]),), -1), tensors={TEXT: case["in.text"]}), sequence(case["in.ids"])
    codes = net.quantize.embedding.weight
    case.near("decode.codebook_vectors", codes[ids[..., 0]].view_as(case["decode.codebook_vectors"]))
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_: Any, args: Any, out: Tensor) -> None:
            seen[f"decode.mid.decoder.{name}"] = out

        return net.decoder.get_submodule(name).register_forward_hook(hook)

    hooks = [watch(name) for name in ("ln_pre", "ln_post", "ffn")]
    case.near("decode.raw", net.pixels(codes[ids[..., 0]], cond))
    for hook in hooks:
        hook.remove()
    for name, value in seen.items():
        if name in case:
            case.near(name, value)
    case.near("decode.clipped", net.decode(ids, cond))
    pixels, recorded = case["encode.pixels"], case["encode.z"]
    case.near("encode.z", net.latents(pixels).transpose(1, 2).view_as(recorded))
    found = net.encode(pixels)
    case.equal("encode.ids", found.view_as(case["encode.ids"]))
    case.near("encode.z_quantized", codes[found[..., 0]].transpose(1, 2).view_as(recorded))
    probs = case["soft.probs"].clone().requires_grad_()
    raw = net.pixels(net.expected(probs[:, :, None]), cond)
    case.near("soft.raw", raw)
    (gradient,) = torch.autograd.grad((raw * case["soft.cotangent"]).sum(), probs)
    case.near("soft.grad_probs", gradient, RELATIVE, relative=True)


CHECKS: dict[tuple[str, str], Check] = {("tatitok", "model"): check_model}

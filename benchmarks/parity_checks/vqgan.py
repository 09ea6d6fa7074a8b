"""The tokenizer of the public MaskGIT."""

from __future__ import annotations

from typing import Any

from softdimo.kinds import ImageShape
from softdimo_plugins.tokenizers.vqgan import VQGAN

from .case import Case, Check
from .class_conditional import sequence
from .networks import context, known, load


def check_model(case: Case) -> None:
    """Latents, ids, and pixels of hard and soft codes, on another grid too."""
    c = case.config
    known(
        c,
        ("z_channels", "resolution", "in_channels", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout",
         "n_embed", "embed_dim"),
        double_z=False, out_ch=c["in_channels"],
    )  # fmt: skip
    spec = VQGAN(
        codebook=c["n_embed"], dim=c["embed_dim"], latent=c["z_channels"], width=c["ch"],
        multipliers=tuple(c["ch_mult"]), blocks=c["num_res_blocks"], resolution=c["resolution"],
        attention=tuple(c["attn_resolutions"]),
    )  # fmt: skip

    def build(height: int, width: int) -> Any:
        return load(spec, context(ImageShape(c["in_channels"], height, width)), case)

    images = case["images"]
    net = build(*images.shape[2:])
    z = net.latents(images)
    case.near("encoder_z", z.transpose(1, 2).reshape(case["encoder_z"].shape))
    ids = net.encode((images + 1) / 2)
    case.equal("encode_ids", ids.view_as(case["encode_ids"]))
    case.near("decode_encode_ids", net.pixels(net.codes()[ids[..., 0]]))
    case.near("decode_ids", net.pixels(net.codes()[sequence(case["ids"])[..., 0]]))
    soft = net.expected(case["soft_probs"].flatten(1, 2)[:, :, None])
    case.near("soft_latent", soft.transpose(1, 2).reshape(case["soft_latent"].shape))
    case.near("decode_soft", net.pixels(soft))
    if "wide_ids" in case:
        height, width = case["decode_wide_ids"].shape[2:]
        other = build(height, width)
        case.near("decode_wide_ids", other.pixels(other.codes()[sequence(case["wide_ids"])[..., 0]]))


CHECKS: dict[tuple[str, str], Check] = {("vqgan", "model"): check_model}

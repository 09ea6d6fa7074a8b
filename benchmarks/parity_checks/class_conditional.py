"""What a recording of a class-conditional MaskGIT holds, whatever its architecture."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor

from softdimo.kinds import Cond, Context, ImageShape, TokenShape
from softdimo.math.init import Init
from softdimo.math.mdm import mdm_loss

from .case import Case
from .networks import Published, context


def tokens_and_classes(config: dict[str, Any]) -> Context:
    """The context of a square grid of tokens and numbered classes."""
    grid = int(config["grid"])
    return context(ImageShape(3, grid, grid), TokenShape(grid, grid, 1, config["codebook_size"]), config["nclass"])


def sequence(tokens: Tensor) -> Tensor:
    """Our [B L 1] of a grid [B rows cols] or a sequence [B L]."""
    return tokens.flatten(1)[..., None]


def check_logits(case: Case, net: Published, smoothing: float) -> None:
    """Logits with and without the label, under noise, of soft tokens, and the losses of training."""
    x, labels, drop = sequence(case["tokens"]), case["labels"], case["drop_mixed"]
    conds = {"cond": Cond(labels), "uncond": net.null(Cond(labels)), "mixed": Cond(torch.where(drop, -1, labels))}
    for name, cond in conds.items():
        case.near(f"logits_{name}", net(net.embed(x), cond).logits[:, :, 0])
    soft = net.soften(case["soft_probs"][:, :, None])
    case.near("logits_soft", net(soft, conds["mixed"]).logits[:, :, 0])
    if "noise" in case:
        e = perturbed(net.embed(x), case["noise"], float(case.config["sigma"]))
        case.near("logits_noise", net(e, conds["cond"]).logits[:, :, 0])
    target = sequence(case["loss_targets"])
    everywhere = torch.ones_like(x, dtype=torch.bool)
    case.near("loss_all_positions", mdm_loss(net, x, target, everywhere, conds["cond"], smoothing)[0])
    if "loss_mask" in case:
        masked = sequence(case["loss_mask"])
        case.near("loss_masked_only", mdm_loss(net, x, target, masked, conds["cond"], smoothing)[0])


def perturbed(e: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """`Init.perturb` with this noise in place of its own draw; rows beyond the tokens are not used."""
    with mock.patch.object(torch, "randn", return_value=noise[:, : e.shape[1]]):
        return Init(sigma=sigma, noise_rms="unit").perturb(e, 1.0, torch.Generator())

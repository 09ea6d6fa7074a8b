"""The text tower that MaskGen is conditioned on, as open_clip runs it, and its file in open_clip's keys."""

from __future__ import annotations

from typing import Any

from softdimo_plugins.text_encoders.clip import Clip, ClipEncoder
from softdimo_plugins.text_encoders.words import Words

from .case import Case, Check
from .networks import known

SIZES = (
    "width", "heads", "layers", "projection", "vocab", "context", "quick_gelu", "sot_id", "eot_id", "pad_id",
)  # fmt: skip


class Ids(Words):
    """Words of another vocabulary, of which only the ids are known."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.size, self.length = config["vocab"], config["context"]
        self.start, self.end, self.pad = config["sot_id"], config["eot_id"], config["pad_id"]


def encoder(case: Case) -> ClipEncoder:
    """The recorded tower."""
    c = case.config
    known(c, SIZES)
    spec = Clip(
        width=c["width"], depth=c["layers"], heads=c["heads"], projection=c["projection"],
        activation="quick_gelu" if c["quick_gelu"] else "gelu", decoder_states=True, fresh=True,
    )  # fmt: skip
    net = ClipEncoder(spec, Ids(c))
    spec.load_weights(net, case.weights)
    return net.requires_grad_(False).eval()


def check_model(case: Case) -> None:
    """The three features of the recorded ids."""
    found = encoder(case).features(case["in.ids"])
    case.near("penultimate", found["states"])
    case.near("pooled", found["pooled"][:, None])
    case.near("last_ln", found["decoder_states"])


CHECKS: dict[tuple[str, str], Check] = {("maskgen_text", "model"): check_model}

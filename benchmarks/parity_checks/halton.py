"""The newer network of Halton-MaskGIT."""

from __future__ import annotations

from softdimo_plugins.teachers.halton import Halton, gated_width

from .case import Case, Check
from .class_conditional import check_logits, tokens_and_classes
from .networks import Published, known, load

SIZES = ("grid", "hidden_dim", "depth", "heads", "mlp_dim", "codebook_size", "nclass", "register", "dropout", "sigma")


def network(case: Case) -> Published:
    """The recorded network."""
    c = case.config
    known(c, SIZES, proj=1)
    spec = Halton(
        width=c["hidden_dim"], depth=c["depth"], heads=c["heads"], hidden=gated_width(c["mlp_dim"]),
        classes=c["nclass"], registers=c["register"],
    )  # fmt: skip
    return Published(load(spec, tokens_and_classes(c), case))


def check_model(case: Case) -> None:
    """Logits, soft inputs, the loss of training, which smooths no labels."""
    check_logits(case, network(case), smoothing=0.0)


CHECKS: dict[tuple[str, str], Check] = {("halton", "model"): check_model}

"""Names of classes: a list, `imagenet`, or a number of classes whose names are their numbers."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

from pydantic import Field

Classes = Annotated[int, Field(ge=1)] | Literal["imagenet"] | Annotated[tuple[str, ...], Field(min_length=1)]
IMAGENET = 1000
"""Classes of ImageNet-1k, in the order of their WordNet ids, which is the order of its folders."""
log = logging.getLogger(__name__)


def class_names(classes: Classes) -> tuple[str, ...]:
    """One name a class. Those of ImageNet come with torchvision; without it they are numbers, with a warning."""
    if isinstance(classes, tuple):
        return classes
    if classes != "imagenet":
        return tuple(map(str, range(classes)))
    try:
        from torchvision.models import ResNet18_Weights
    except ImportError:
        log.warning("the names of ImageNet's classes need torchvision: pip install 'softdimo[timm]'; numbers stand in")
        return tuple(map(str, range(IMAGENET)))
    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])

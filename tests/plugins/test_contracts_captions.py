"""Components that read captions keep the contracts of their kinds, under captions and on composed images."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from softdimo import testing
from softdimo.kinds import Cond, TokenShape
from softdimo_plugins.captions.grammar import ANIMALS
from softdimo_plugins.captions.judge import Judge
from softdimo_plugins.data.captions import Captions
from softdimo_plugins.features.captioner import Captioner
from softdimo_plugins.metrics.caption_accuracy import CaptionAccuracy, CaptionAccuracyMetric
from softdimo_plugins.rewards.caption_correct import CaptionCorrect
from softdimo_plugins.rewards.caption_score import CaptionScore
from softdimo_plugins.teachers.compact_text import CompactText
from tests.plugins.test_captions import BLANK, Nearest

pytest.importorskip("sklearn")
PROMPTS = ("two red cats left of a blue bird", "a cat", "three green dogs", "a dog above a bird")
SINGLE = ("a cat", "a bird", "a horse", "a bear")
CNN = {"use": "cnn", "width": 4, "features": 8}
NETWORK = {"use": "captioner", "width": 4, "features": 8}


@cache
def drawn() -> dict[str, torch.Tensor]:
    """Twelve images of each single animal."""
    source = Captions(tasks=("single",), samples=600).build(BLANK).source("train")
    batch = source.get(torch.arange(600))
    assert batch.images is not None
    prompts = batch.cond.prompts
    return {text: batch.images[[i for i, p in enumerate(prompts) if p == text][:12]] for text in SINGLE}


def scenes(number: int) -> torch.Tensor:
    """48 images for the captions in turn; of every 12 for one caption the first `number` show another animal."""
    images = torch.stack([drawn()[text] for text in SINGLE], 1)
    images[:number] = images[:number].roll(1, 1)
    return images.flatten(0, 1)


@pytest.mark.parametrize("settings", [{"width": 16}, {"width": 24, "heads": 3, "depth": 1, "local": False}])
def test_teacher(settings):
    context = replace(testing.context(), tokens=TokenShape(2, 3, 1, 5))
    net = CompactText(use="compact_text", states=10, **settings).build(context)
    testing.check_teacher(net, cond=testing.encoded(4, states=(4, 10)))


def test_features():
    built = Captioner(use="captioner", width=4, features=8).build(testing.context())
    cond = Cond(torch.full((4,), -1), PROMPTS)
    testing.check_features(built, testing.context().image, 3, cond)


def test_rewards():
    for reward in (CaptionScore(network=NETWORK), CaptionCorrect(judge=CNN)):
        testing.check_reward(reward.build(testing.context()), prompts=PROMPTS)


def test_metric():
    spec = CaptionAccuracy(judge=CNN)
    testing.check_metric(lambda _: CaptionAccuracyMetric(spec, Judge(Nearest(), ANIMALS)), SINGLE, scenes)

"""Components that read captions keep the contracts of their kinds, under captions and on composed images."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch

from softdimo import testing
from softdimo.errors import RecipeError
from softdimo.kinds import Cond, ImageShape, TokenShape
from softdimo_plugins.captions.grammar import ANIMALS
from softdimo_plugins.captions.judge import Judge
from softdimo_plugins.data.captions import Captions
from softdimo_plugins.features.captioner import Captioner
from softdimo_plugins.metrics.caption_accuracy import CaptionAccuracy, CaptionAccuracyMetric
from softdimo_plugins.rewards.caption_correct import CaptionCorrect
from softdimo_plugins.rewards.caption_score import CaptionScore, CaptionScoreReward
from softdimo_plugins.teachers.compact_text import CompactText
from softdimo_plugins.tokenizers.conv import ConvVQ
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


def test_the_table_starts_as_the_codes():
    """Tokens whose codes are alike have rows alike; mask row and head stay as they were; other teachers ignore it."""
    context = replace(testing.context(), tokens=TokenShape(4, 4, 1, 64))
    tokenizer = ConvVQ(use="conv_vq", codebook=64, dim=16).build(replace(context, image=ImageShape(3, 16, 16)))
    torch.manual_seed(0)
    net = CompactText(use="compact_text", states=10, width=64, codes=True).build(context)
    before = copy.deepcopy(net.state_dict())
    net.meet(tokenizer)
    changed = [name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["table"]
    assert torch.equal(net.table[:, -1], before["table"][:, -1])
    assert net.table_rms().item() == pytest.approx(0.3, rel=1e-5)
    codes, rows = tokenizer.table()[0], net.table[0, :-1]
    distances = torch.stack([torch.pdist(codes), torch.pdist(rows)])
    assert torch.corrcoef(distances)[0, 1] > 0.8
    again = CompactText(use="compact_text", states=10, width=64, codes=True).build(context)
    again.meet(tokenizer)
    assert torch.equal(again.table[:, :-1], net.table[:, :-1])  # on every rank alike
    plain = CompactText(use="compact_text", states=10, width=64).build(context)
    kept = plain.table.clone()
    plain.meet(tokenizer)
    assert torch.equal(plain.table, kept)
    with pytest.raises(RecipeError, match="no table of codes"):
        net.meet(torch.nn.Identity())


def test_features():
    built = Captioner(use="captioner", width=4, features=8).build(testing.context())
    cond = Cond(torch.full((4,), -1), PROMPTS)
    testing.check_features(built, testing.context().image, 3, cond)


def test_training_images_fade_into_one_another():
    """By at most `blend`, each into the one before it; what is judged outside of training is whole."""
    net = Captioner(use="captioner", width=4, features=8, blend=0.25).build(testing.context()).eval()
    cond, img = Cond(torch.full((4,), -1), PROMPTS), torch.rand(4, 3, 16, 16)
    seen: list[torch.Tensor] = []
    net.trunk.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net.loss(img, cond, torch.Generator().manual_seed(0))
    net.score(img, cond)
    size = tuple(net.image[1:])
    blended, whole = ((x + 1) / 2 for x in seen)
    before = whole.roll(1, 0)
    parts = ((blended - whole) * (before - whole)).sum((1, 2, 3)) / (before - whole).square().sum((1, 2, 3))
    assert blended.shape[2:] == size
    torch.testing.assert_close(blended, whole + parts[:, None, None, None] * (before - whole), atol=1e-5, rtol=1e-5)
    assert ((parts > 0) & (parts < 0.25)).all()
    assert len(parts.unique()) == 4


def test_rewards():
    for reward in (CaptionScore(network=NETWORK), CaptionScore(network=NETWORK, odds=True), CaptionCorrect(judge=CNN)):
        testing.check_reward(reward.build(testing.context()), prompts=PROMPTS)


def test_log_odds():
    """Those of p, up to p = 1 - 2^-23; there is a gradient below that."""

    class Told(torch.nn.Module):
        def score(self, img, cond):
            return img[:, 0, 0, 0]

    p = torch.tensor([1e-9, 0.2, 0.5, 0.999, 1 - 1e-5, 1 - 2.0**-23, 1.0], dtype=torch.float64)
    log_p = p.log().float().requires_grad_()
    odds = CaptionScoreReward(Told(), odds=True)(log_p[:, None, None, None], Cond(torch.full((7,), -1), ("",) * 7))
    last = p[:-1]
    torch.testing.assert_close(odds[:-1].double(), (last / (1 - last)).log(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(odds[-1], odds[-2])
    (slope,) = torch.autograd.grad(odds.sum(), log_p)
    torch.testing.assert_close(slope[:5].double(), 1 / (1 - p[:5]), atol=0, rtol=1e-4)


def test_metric():
    spec = CaptionAccuracy(judge=CNN)
    testing.check_metric(lambda _: CaptionAccuracyMetric(spec, Judge(Nearest(), ANIMALS)), SINGLE, scenes)

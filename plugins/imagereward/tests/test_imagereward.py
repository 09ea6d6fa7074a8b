"""The package's score is softdimo's own, image by image, and so is its gradient; in an environment of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softdimo import registry
from softdimo.errors import RecipeError, WeightsError
from softdimo.kinds import Cond
from softdimo.testing import check_reward, context
from softdimo_imagereward.reward import ImageRewardOfficial
from softdimo_plugins.rewards.image_reward import ImageReward, wordpieces

PROMPTS = ("a red cat", "two dogs, at night", "a red cat")


def pair(tmp_path, tiny):
    """Both rewards with the same weights: those of the package, written as its authors write them, read by ours."""
    theirs = ImageRewardOfficial(fresh=True, tiny=tiny).build(context())
    torch.manual_seed(0)
    for layer in theirs.model.mlp.layers:  # as they come, the layers let next to nothing through
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    for block in theirs.model.blip.visual_encoder.blocks:
        nn.init.normal_(block.attn.qkv.bias, std=0.1)
    file = tmp_path / "ImageReward.pt"
    torch.save(theirs.model.state_dict(), file)
    spec = ImageReward(fresh=True, tiny=tiny)
    ours = spec.build(context())
    spec.load_weights(ours, file)
    return theirs, ours


def scored(reward, size):
    img = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    score = reward(img, Cond(torch.full((3,), -1), PROMPTS))
    return score.detach(), torch.autograd.grad(score.sum(), img)[0]


@pytest.mark.parametrize(
    ("tiny", "size"),
    [(True, (48, 48)), (True, (60, 47)), (True, (250, 300)), pytest.param(False, (64, 64), marks=pytest.mark.slow)],
)
def test_the_package_and_our_own_agree(tmp_path, tiny, size):
    theirs, ours = (scored(reward, size) for reward in pair(tmp_path, tiny))
    assert theirs[0].std() > 1e-4
    assert (theirs[0] - ours[0]).abs().max() <= 1e-6
    norms = theirs[1].flatten(1).norm(dim=1)
    assert norms.min() > 1e-5
    assert ((theirs[1] - ours[1]).flatten(1).norm(dim=1) <= 1e-5 * norms).all()
    size_of = "tiny" if tiny else "full"
    print(
        f"{size_of} {list(size)}: scores differ by {(theirs[0] - ours[0]).abs().max():.2g}, gradients by "
        f"{(theirs[1] - ours[1]).norm() / theirs[1].norm():.2g} of their size"
    )


def test_contract():
    check_reward(ImageRewardOfficial().smoke().build(context()))


def test_it_is_found_by_its_name():
    assert registry.find("reward", "imagereward_official") is ImageRewardOfficial


def test_prompts_are_read_alike():
    theirs = ImageRewardOfficial().smoke().build(context())
    prompts = ["", "A Cat!", "café 猫 ß", "x" * 300, "one two " * 40, "tab\there", "“quoted”"]
    ours = wordpieces(None).encode_batch(prompts)
    assert theirs.encode(prompts).tolist() == [[one.ids, one.attention_mask] for one in ours]


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(WeightsError, match=r"hf://THUDM/ImageReward/ImageReward\.pt"):
        ImageRewardOfficial().build(context())
    with pytest.raises(WeightsError, match=r"hf://google-bert/bert-base-uncased/vocab\.txt"):
        ImageRewardOfficial(weights="x.pt").build(context())
    with pytest.raises(RecipeError, match="compares images with prompts"):
        ImageRewardOfficial().smoke().build(context())(torch.rand(1, 3, 8, 8), Cond(torch.zeros(1)))
    file = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(1)}, file)
    spec = ImageRewardOfficial().smoke()
    with pytest.raises(WeightsError, match="another model, not ImageReward"):
        spec.load_weights(spec.build(context()), file)

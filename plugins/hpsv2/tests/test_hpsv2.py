"""The package's score is softdimo's own, image by image, and so is its gradient; in an environment of its own."""

from __future__ import annotations

import pytest
import torch

from softdimo import registry
from softdimo.errors import RecipeError, WeightsError
from softdimo.kinds import Cond
from softdimo.testing import check_reward, context
from softdimo_hpsv2.reward import HPSv2Official
from softdimo_plugins.rewards.clip import tokenizer
from softdimo_plugins.rewards.hpsv2 import HPSv2

PROMPTS = ("a red cat", "two dogs, at night", "a red cat")


def scored(reward, size):
    img = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    score = reward(img, Cond(torch.full((3,), -1), PROMPTS))
    return score.detach(), torch.autograd.grad(score.sum(), img)[0]


def both(tmp_path, tiny, size):
    """What both give with the same weights: those of the package, written as its authors write them, read by ours."""
    torch.manual_seed(0)
    theirs = HPSv2Official(fresh=True, tiny=tiny).build(context())
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": theirs.model.state_dict()}, file)
    found = scored(theirs, size)
    del theirs
    spec = HPSv2(fresh=True, tiny=tiny)
    ours = spec.build(context())
    spec.load_weights(ours, file)
    return found, scored(ours, size)


@pytest.mark.parametrize(
    ("tiny", "size"),
    [(True, (48, 48)), (True, (60, 47)), (True, (250, 300)), pytest.param(False, (64, 64), marks=pytest.mark.slow)],
)
def test_the_package_and_our_own_agree(tmp_path, tiny, size):
    theirs, ours = both(tmp_path, tiny, size)
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
    check_reward(HPSv2Official().smoke().build(context()))


def test_it_is_found_by_its_name():
    assert registry.find("reward", "hpsv2_official") is HPSv2Official


def test_prompts_are_read_alike():
    theirs = HPSv2Official().smoke().build(context())
    prompts = [
        "",
        "A Cat!",
        "café 猫 ß",
        "x" * 300,
        "one two " * 90,
        "tab\there",
        "&amp; “quoted”",
    ]
    assert torch.equal(theirs.encode(prompts), tokenizer("hpsv2", "ViT-H-14")(prompts))


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(WeightsError, match=r"hf://xswu/HPSv2/HPS_v2\.1_compressed\.pt"):
        HPSv2Official().build(context())
    with pytest.raises(RecipeError, match="compares images with prompts"):
        HPSv2Official().smoke().build(context())(torch.rand(1, 3, 8, 8), Cond(torch.zeros(1)))
    spec = HPSv2Official(version="2.0").smoke()
    with pytest.raises(WeightsError, match=r"is HPSv2.1; the recipe says version: '2.0'"):
        spec.load_weights(spec.build(context()), tmp_path / "HPS_v2.1_compressed.pt")

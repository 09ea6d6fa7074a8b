"""The CLIP score against the steps of the public script, taken one by one with Pillow and open_clip."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from softdimo import testing
from softdimo.build import assemble
from softdimo.errors import DataError, PluginError
from softdimo.kinds import Cond
from softdimo.math.digest import digest_module
from softdimo.recipe.model import Recipe
from softdimo_plugins.metrics.clip_score import ClipScore
from tests.helpers import labels, rng

open_clip = pytest.importorskip("open_clip")
PROMPTS = ("a cat", "  Two   DOGS &amp; a cat's hat ", "word " * 74, "word " * 75, "word " * 300, "")


TINY = {"tiny": True, "fresh": True, "weights": None}


def settings(network=TINY, **more):
    return ClipScore.model_validate({"use": "clip_score", "network": {"use": "clip_score", **network}, **more})


@pytest.fixture(scope="module")
def metric():
    return settings().build(testing.context())


def pictures(n, height=300, width=400, seed=0):
    return torch.rand(n, 3, height, width, generator=rng(seed))


def prefixed(tokens, prefix):
    """The script's way: three ids after the first, and the end mark in the last place where the text is too long."""
    start = tokens[:, :1]
    out = torch.cat([start, prefix.expand(len(tokens), -1), tokens[:, 1:]], 1)[:, :77]
    out[:, 76] = torch.where(out[:, 76] > 0, 49407, 0)
    return out


@torch.no_grad()
def by_hand(clip, img, prompts):
    """Cosine of each image: files, Pillow, open_clip's own transform, its tokenizer."""
    from open_clip.transform import image_transform

    transform = image_transform(224, False, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    rows = []
    for one in img:
        picture = Image.fromarray((one * 255).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())
        size = min(picture.size)
        left, top = ((n - size) // 2 for n in picture.size)
        rows.append(transform(picture.crop((left, top, left + size, top + size)).resize((256, 256), Image.LANCZOS)))
    tokenize = open_clip.get_tokenizer("ViT-g-14")
    ids = prefixed(tokenize(list(prompts)), tokenize("A photo depicts ")[:, 1:4])
    return torch.nn.functional.cosine_similarity(clip.encode_image(torch.stack(rows)), clip.encode_text(ids)).double()


def test_it_is_the_mean_cosine_of_the_public_script(metric):
    img, cond = pictures(len(PROMPTS)), Cond(torch.full((len(PROMPTS),), -1), PROMPTS)
    expected = by_hand(metric.network.clip, img, PROMPTS)
    assert expected.std() > 1e-3, "the images and prompts must matter"
    metric.reset()
    for part in (slice(0, 4), slice(4, 6)):
        metric.update(img[part], cond[part])
    assert metric.result()["clip_score"] == pytest.approx(float(expected.mean()), abs=2e-6)
    cosines = metric.look(img, cond).cosines
    assert torch.allclose(cosines, expected, atol=2e-6)


def test_what_the_script_does_to_images_is_seen_to_the_last_bit(metric):
    img = pictures(2)
    for one, found in zip(img, metric.seen_by_clip(img), strict=True):
        picture = Image.fromarray((one * 255).to(torch.uint8).permute(1, 2, 0).numpy()).crop((50, 0, 350, 300))
        small = picture.resize((256, 256), Image.LANCZOS).resize((224, 224), Image.BICUBIC)
        expected = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
        assert torch.equal(found, expected)


def test_the_defaults_are_those_of_the_papers():
    spec = ClipScore(use="clip_score")
    assert (spec.network.model, spec.network.pretrained) == ("ViT-g-14", "laion2b_s12b_b42k")
    assert spec.network.weights == "hf://laion/CLIP-ViT-g-14-laion2B-s12B-b42K/open_clip_pytorch_model.safetensors"
    assert (spec.prefix, spec.lanczos, spec.uint8) == ("A photo depicts ", 256, "truncate")
    mine = settings({"weights": "/somewhere/g14.safetensors"}).network
    assert (mine.model, mine.weights) == ("ViT-g-14", "/somewhere/g14.safetensors"), "the rest of the default is kept"
    assert open_clip.get_model_config("ViT-g-14")["vision_cfg"]["image_size"] == 224


def test_the_fingerprint_says_what_the_number_depends_on(metric):
    found = metric.fingerprint()
    assert found["network"] == digest_module(metric.network)
    assert (found["prefix"], found["lanczos"]) == ("A photo depicts ", 256)
    assert '"model": "ViT-g-14"' in found["reward"]
    assert "weights" not in found["reward"], "where a file lies is not what is in it"
    for other in (settings(prefix="a photo of "), settings(lanczos=None), settings(uint8="round")):
        assert other.build(testing.context()).fingerprint() != found
    assert settings().build(testing.context(1)).fingerprint()["network"] != found["network"]


def test_what_is_missing_is_said(metric, monkeypatch):
    with pytest.raises(DataError, match="clip_score: images are compared with prompts, and these conditions have none"):
        metric.update(pictures(2), labels(2))
    metric.reset()
    with pytest.raises(DataError, match="no images were given"):
        metric.result()
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(PluginError, match=r"pip install 'softdimo\[rewards\]'"):
        settings().build(testing.context())


def test_a_tiny_recipe_takes_random_weights():
    """`--smoke` goes through every component inside another."""
    from softdimo.recipe.shrink import smoke

    recipe = Recipe.model_validate(
        {
            "title": "t",
            "data": {"use": "labels", "classes": 3, "size": 8},
            "eval": {"samples": 4, "metrics": [{"use": "clip_score"}], "rows": [{"name": "r", "of": "real"}]},
        }
    )
    (small,) = smoke(recipe).eval.metrics
    assert (small.network.tiny, small.network.weights, small.network.ready()) == (True, None, True)
    assert assemble(smoke(recipe)).make(small.network).clip.visual.image_size == (224, 224)

"""Rewards by published networks: their values against formulas written out, their files, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import gelu, interpolate

from softdimo import recipe as recipes
from softdimo.build import assemble
from softdimo.errors import PluginError, RecipeError, WeightsError
from softdimo.kinds import Cond
from softdimo.recipe.shrink import rewrite
from softdimo.spec import Spec
from softdimo.testing import check_reward, context
from softdimo_plugins.rewards.aesthetic import Aesthetic, ClipImage
from softdimo_plugins.rewards.clip import look_up, tokenizer, towers
from softdimo_plugins.rewards.clip_score import ClipScore
from softdimo_plugins.rewards.hpsv2 import FILES, HPSv2
from softdimo_plugins.rewards.image_reward import MEAN, STD, TINY, WORDS, ImageReward, words
from softdimo_plugins.rewards.pickscore import PickScore
from softdimo_plugins.rewards.prepare import CLIP_MEAN, CLIP_STD
from tests.plugins.reward_networks import (
    PROMPTS,
    as_transformers,
    blip_image,
    blip_text,
    clip_image,
    clip_text,
    cond,
    linear,
    noise,
)

RECIPE = Path(__file__).parents[2] / "recipes/parts/digits_tokenizer.yaml"
KINDS = (ClipScore, HPSv2, PickScore, ImageReward, Aesthetic)
SQUARE = noise(4, (48, 48))


def small(kind, **settings):
    """The settings as `--smoke` makes them."""
    return rewrite(kind(**settings), lambda part: part.smoke() if isinstance(part, Spec) else part)


def made(spec, seed=0):
    """The reward, its weights stirred so that no part of the network is without effect."""
    net = context().make(spec)
    rng = torch.Generator().manual_seed(seed)
    for module in (net, *(t for t in getattr(net, "_tower", ()))):
        with torch.no_grad():
            for name, p in module.named_parameters():
                if p.ndim and "token_embedding" not in name and "word_embeddings" not in name:
                    p.add_(0.1 * torch.randn(p.shape, generator=rng))
    return net


def state(module, prefix=""):
    return {k.removeprefix(prefix): v.detach() for k, v in module.state_dict().items() if k.startswith(prefix)}


def prepared(img):
    """A square image at 224, standardized; clipped, as bytes are."""
    x = interpolate(img, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    return (x - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind):
    check_reward(made(small(kind)))


@pytest.mark.parametrize("quick", [False, True])
def test_clip_score_is_a_hundred_cosines(quick):
    model = {"model": "ViT-L-14", "pretrained": "openai"} if quick else {}
    tag = look_up("clip_score", model.get("model", "ViT-H-14"), model.get("pretrained", "laion2b_s32b_b79k"))
    assert tag.quick is quick
    reward = made(small(ClipScore, **model))
    act = (lambda x: x * torch.sigmoid(1.702 * x)) if quick else gelu
    w, ids = state(reward, "clip."), tokenizer("clip_score", "ViT-H-14")(PROMPTS)
    expected = 100 * (clip_image(prepared(SQUARE), w, 2, 32, act) * clip_text(ids, w, 2, act)).sum(-1)
    score = reward(SQUARE, cond(*PROMPTS))
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-4)
    assert score.std() > 1
    assert score[0] != score[3], "the same prompt, another image"


def test_hpsv2_is_a_cosine_on_numbers_that_are_not_clipped():
    reward = made(small(HPSv2))
    w, ids = state(reward, "clip."), tokenizer("hpsv2", "ViT-H-14")(PROMPTS)
    stark = (SQUARE > 0.5).float()  # so that the bicubic kernel overshoots
    x = interpolate(stark, (224, 224), mode="bicubic", antialias=True)
    assert x.max() > 1.01
    x = (x - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    expected = (clip_image(x, w, 2, 32) * clip_text(ids, w, 2)).sum(-1)
    torch.testing.assert_close(reward(stark, cond(*PROMPTS)), expected, rtol=1e-4, atol=1e-5)
    clipped = (clip_image(prepared(stark), w, 2, 32) * clip_text(ids, w, 2)).sum(-1)
    assert (clipped - expected).abs().max() > 1e-4


def test_pickscore_is_a_scaled_cosine_of_the_same_clip(tmp_path):
    """Weights of open_clip's network, written under the keys of transformers, score as the formula on theirs."""
    clip = made(small(ClipScore))
    w = state(clip, "clip.") | {"logit_scale": torch.tensor(3.0)}
    positions = {f"{side}_model.embeddings.position_ids": torch.arange(9)[None] for side in ("text", "vision")}
    save_file({k: v.contiguous() for k, v in (as_transformers(w) | positions).items()}, tmp_path / "model.safetensors")
    spec = small(PickScore)
    reward = spec.build(context())
    spec.load_weights(reward, tmp_path / "model.safetensors")
    ids = tokenizer("pickscore", "ViT-H-14")(PROMPTS)
    cosine = (clip_image(prepared(SQUARE), w, 2, 32) * clip_text(ids, w, 2)).sum(-1)
    score = reward(SQUARE, cond(*PROMPTS))
    torch.testing.assert_close(score, torch.tensor(3.0).exp() * cosine, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        score, torch.tensor(3.0).exp() * clip(SQUARE, cond(*PROMPTS)) / 100, rtol=1e-4, atol=1e-4
    )


def test_image_reward_reads_the_prompt_while_it_looks_at_the_image():
    reward = made(small(ImageReward))
    ids, mask = reward.encode(PROMPTS).unbind(1)
    assert ids.shape == (4, 35)
    w = state(reward)
    seen = blip_image(prepared(SQUARE), state(reward, "image."), TINY.heads, TINY.patch)
    x = blip_text(ids, mask, seen, state(reward, "text."), TINY.text_heads)
    for i in (0, 2, 4, 6, 7):
        x = linear(x, w, f"mlp.layers.{i}")
    score = reward(SQUARE, cond(*PROMPTS))
    torch.testing.assert_close(score, (x[:, 0] - MEAN) / STD, rtol=1e-4, atol=1e-4)
    assert score.std() > 1e-3


@pytest.mark.parametrize("layers", [1, 5])
def test_aesthetic_is_linear_in_clips_unit_vector(layers):
    reward = made(small(Aesthetic, layers=layers))
    (tower,) = reward._tower
    x, w = clip_image(prepared(SQUARE), state(tower), 2, 32, lambda x: x * torch.sigmoid(1.702 * x)), state(reward)
    for i in (0,) if layers == 1 else (0, 2, 4, 6, 7):
        x = linear(x, w, f"head.layers.{i}")
    torch.testing.assert_close(reward(SQUARE, Cond(torch.zeros(4))), x[:, 0], rtol=1e-4, atol=1e-4)


# files


def other(reward):
    """The same network with other weights."""
    return made(reward, seed=9)


def public(kind, net):
    """What the authors' file holds."""
    w = state(net)
    if kind in (ClipScore, HPSv2):
        return {"state_dict": state(net, "clip.")}
    if kind is PickScore:
        return state(net, "clip.") | {"text_model.embeddings.position_ids": torch.arange(77)}
    if kind is Aesthetic:
        return state(net, "head.")
    names = {"image.": "blip.visual_encoder.", "text.": "blip.text_encoder.", "mlp.": "mlp."}
    out = {new + k.removeprefix(old): v for old, new in names.items() for k, v in w.items() if k.startswith(old)}
    beside = {f"blip.{side}_proj.weight": torch.zeros(4, 4) for side in ("vision", "text")}
    return out | beside | {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_public_file_is_read_strictly_and_by_the_run(kind, tmp_path):
    spec, file = small(kind), tmp_path / "weights.pt"
    net = other(spec)
    content = public(kind, net)
    torch.save(content, file)
    named = spec.model_copy(update={"weights": str(file)})
    parts = assemble(recipes.load(RECIPE).recipe)
    loaded = parts.make(named)
    assert parts.make(named) is loaded
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in net.state_dict().items())
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())

    inner = content.get("state_dict", content)
    key = [k for k in inner if k.endswith("bias")][-1]
    for change, message in (
        ({k: v for k, v in inner.items() if k != key}, f"missing: .*{key}"),
        (inner | {f"{key}s": inner[key]}, f"unexpected: .*{key}s"),
        (inner | {key: torch.zeros(7)}, rf"shape of .*{key}: \(7,\) in the file"),
        ({"conv1.weight": torch.zeros(3)}, "holds another model, not "),
    ):
        torch.save(change, file)
        with pytest.raises(WeightsError, match=message):
            parts.load(parts.fresh(spec), named)


class Loud(nn.Module):
    """Pickled as code."""


def test_a_file_that_holds_code_is_refused(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": Loud()}, file)
    spec = small(HPSv2)
    with pytest.raises(WeightsError, match=r"holds code .* never run"):
        spec.load_weights(spec.build(context()), file)


def test_the_tower_of_the_aesthetic_reward_has_weights_of_its_own(tmp_path):
    spec, file = small(ClipImage), tmp_path / "open_clip_model.safetensors"
    whole = made(small(ClipScore))
    save_file(state(whole, "clip."), file)
    tower = spec.build(context())
    spec.load_weights(tower, file)
    assert torch.equal(tower.visual.proj, whole.clip.visual.proj)
    here = context()
    aesthetic = small(Aesthetic)
    assert here.make(aesthetic)._tower[0] is here.make(aesthetic.clip)


def test_the_other_version_of_hpsv2_is_refused(tmp_path):
    net = made(small(HPSv2))
    for version, file in FILES.items():
        torch.save(public(HPSv2, net), tmp_path / file)
        for said in FILES:
            spec = small(HPSv2, version=said)
            if said == version:
                spec.load_weights(spec.build(context()), tmp_path / file)
                continue
            with pytest.raises(WeightsError, match=f"is HPSv{version}; the recipe says version: '{said}'. Change it"):
                spec.load_weights(spec.build(context()), tmp_path / file)


def test_the_number_of_layers_is_told(tmp_path):
    torch.save({"weight": torch.zeros(1, 32), "bias": torch.zeros(1)}, tmp_path / "linear.pth")
    spec = small(Aesthetic)
    with pytest.raises(WeightsError, match=r"with layers: 1; the recipe says layers: 5\. Change it to layers: 1"):
        spec.load_weights(made(spec), tmp_path / "linear.pth")
    spec = small(Aesthetic, layers=1)
    spec.load_weights(made(spec), tmp_path / "linear.pth")


# refusals


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ClipScore(), r"weights: hf://laion/CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_model\.safetensors`"),
        (HPSv2(), r"weights: hf://xswu/HPSv2/HPS_v2\.1_compressed\.pt`"),
        (HPSv2(version="2.0"), r"weights: hf://xswu/HPSv2/HPS_v2_compressed\.pt`"),
        (PickScore(), r"weights: hf://yuvalkirstain/PickScore_v1/model\.safetensors`"),
        (ImageReward(), r"weights: hf://THUDM/ImageReward/ImageReward\.pt`"),
        (ImageReward(weights="x.pt"), r"vocabulary: hf://google-bert/bert-base-uncased/vocab\.txt`"),
        (ImageReward(weights="x.pt", vocabulary="no/vocab.txt"), "no vocabulary at no/vocab.txt"),
        (Aesthetic(), r"sac\+logos\+ava1-l14-linearMSE\.pth, from https://github.com/christophschuhmann"),
        (Aesthetic(layers=1), r"sa_0_4_vit_l_14_linear\.pth, from https://github.com/LAION-AI"),
        (Aesthetic(weights="x.pth"), r"clip: the image tower .*hf://timm/vit_large_patch14_clip_224\.openai/"),
    ],
)
def test_what_is_missing_is_named_with_its_address(spec, message):
    with pytest.raises(WeightsError, match=message):
        spec.build(context())


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not Aesthetic])
def test_conditions_without_prompts_are_refused(kind):
    reward = made(small(kind))
    with pytest.raises(RecipeError, match="compares images with prompts, and these conditions have none; use data"):
        reward(noise(2), Cond(torch.tensor([0, 1])))
    with pytest.raises(RecipeError, match="have 1 for 2 images"):
        reward(noise(2), cond("one"))


@pytest.mark.parametrize(
    ("kind", "module"),
    [(ClipScore, "open_clip"), (HPSv2, "open_clip"), (PickScore, "transformers"), (PickScore, "open_clip"),
     (ImageReward, "timm.models.vision_transformer"), (ImageReward, "transformers"), (Aesthetic, "open_clip")],
)  # fmt: skip
def test_the_extra_is_named(kind, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PluginError, match=r"needs more packages .*pip install 'softdimo\[rewards\]'"):
        made(small(kind))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "ViT-H14"}, r"model: open_clip knows no `ViT-H14`; near: .*ViT-H-14"),
        (
            {"pretrained": "openai"},
            r"pretrained: `ViT-H-14` has no public weights `openai`; it has .*laion2b_s32b_b79k",
        ),
        ({"pretrained": ""}, r"pretrained: `ViT-H-14` has no public weights ``"),
        ({"model": "ViT-S-32"}, r"it has none, so write `pretrained: ''`"),
    ],
)
def test_models_that_open_clip_does_not_know(settings, message):
    with pytest.raises(RecipeError, match=message):
        ClipScore(fresh=True, **settings).build(context())


def test_other_clips_are_prepared_their_own_way():
    siglip = look_up("clip_score", "ViT-B-16-SigLIP", "webli")
    assert (siglip.squash, siglip.mean, siglip.kernel) == (True, (0.5, 0.5, 0.5), "bicubic")
    clipa = look_up("clip_score", "ViT-L-14-CLIPA", "datacomp1b")
    assert (clipa.squash, clipa.kernel) == (True, "bilinear")
    assert look_up("clip_score", "ViT-S-32", "").mean == CLIP_MEAN


@pytest.mark.parametrize("model", ["RN50", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP", "coca_ViT-B-32", "ViT-bigG-14"])
def test_any_clip_of_open_clip_is_built(model):
    with torch.device("meta"):
        net = towers("clip_score", model)
    assert net.encode_image(torch.empty(2, 3, 224, 224, device="meta")).shape[0] == 2


def test_a_tokenizer_that_lies_on_the_hub_is_told(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("open_clip.get_tokenizer", lambda model: (_ for _ in ()).throw(OSError("no connection\nmore")))
    with pytest.raises(WeightsError, match=r"text side of `ViT-B-16-SigLIP` lies on .* \(no connection\); fetch it"):
        tokenizer("clip_score", "ViT-B-16-SigLIP")


# the vocabulary of ImageReward


def test_a_vocabulary_is_read_and_another_file_is_refused(tmp_path):
    file = tmp_path / "vocab.txt"
    special = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = ["a", "red", "cat", "##s", ","]
    rest = [f"w{i}" for i in range(WORDS - len(special) - len(known))]
    file.write_text("\n".join([*special, *known, *rest]) + "\n", encoding="utf-8")
    reward = made(small(ImageReward, vocabulary=str(file)))
    ids, mask = reward.encode(["A red CATS, x"])[0]
    found = words(str(file))
    assert [found[i] for i in ids[:8]] == ["[CLS]", "a", "red", "cat", "##s", ",", "[UNK]", "[SEP]"]
    assert mask.tolist() == [1] * 8 + [0] * 27
    assert ids[8:].tolist() == [0] * 27
    long = reward.encode(["red " * 60])[0, 0].tolist()
    assert (long[0], long[-1], len(long)) == (101, 102, 35)

    file.write_text("\n".join([*special, *known]), encoding="utf-8")
    with pytest.raises(WeightsError, match=f"is not the vocabulary of bert-base-uncased, which has {WORDS} lines"):
        made(small(ImageReward, vocabulary=str(file))).encode(["a"])
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(WeightsError, match="is not a vocabulary that can be read"):
        words(str(file))


def test_a_vocabulary_on_the_hub_is_fetched_when_it_is_needed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a: asked.append(a) or str(tmp_path / "none"))
    spec = ImageReward(fresh=True, tiny=True, vocabulary="hf://google-bert/bert-base-uncased/vocab.txt")
    assert spec.smoke().vocabulary is None, "a trial needs no connection"
    reward = made(spec)
    assert not asked
    with pytest.raises(WeightsError, match="is not a vocabulary that can be read"):
        reward(noise(1), cond("a"))
    assert asked == [("google-bert/bert-base-uncased", "vocab.txt")]

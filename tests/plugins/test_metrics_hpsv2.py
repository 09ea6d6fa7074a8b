"""The benchmark of HPSv2: what is scored are JPEG files, how scores are averaged, and the official folder."""

import json
from io import BytesIO
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from softdimo import testing
from softdimo.errors import DataError
from softdimo.kinds import Cond
from softdimo.math.digest import digest_module
from softdimo.spec import Spec
from softdimo_plugins.metrics.hpsv2_benchmark import STYLES, HPSv2Benchmark, read_prompts, scores
from softdimo_plugins.rewards.hpsv2 import HPSv2
from tests.helpers import labels, rng

ROWS = 3
"""Prompts of each style."""


class Brightness(Spec):
    """A reward that is easily computed: mean of the image, plus a hundredth for each letter of the prompt."""

    use: str = "brightness"
    version: str = "2.1"
    differentiable: ClassVar[bool] = True

    def __call__(self, img, cond):
        assert img.shape[1] == 3
        return img.double().mean((1, 2, 3)) + torch.tensor([len(p) / 100 for p in cond.prompts])


def by_hand(img, prompt):
    """The same of the JPEG file that Pillow saves of a truncated image."""
    file = BytesIO()
    Image.fromarray((img * 255).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(file, "JPEG")
    return 100 * (np.asarray(Image.open(file), np.float64).mean() / 255 + len(prompt) / 100)


@pytest.fixture
def prompts(tmp_path):
    """Style -> prompts; one is in two places of a style, one has space around it."""
    lists = {style: [f"{style} {'x' * i}" for i in range(ROWS)] for style in STYLES}
    lists["photo"][2] = lists["photo"][0]
    (tmp_path / "benchmark").mkdir()
    for style, texts in lists.items():
        (tmp_path / "benchmark" / f"{style}.json").write_text(json.dumps([*texts[:1], f" {texts[1]}\n", *texts[2:]]))
    return lists


def build(folder, **settings):
    spec = {"use": "hpsv2_benchmark", "reward": Brightness(), "prompts": str(folder / "benchmark"), **settings}
    return HPSv2Benchmark.model_validate(spec).build(testing.context())


def every(prompts):
    """All prompts, styles taking turns, as a data set may have them."""
    texts = tuple(prompts[style][i] for i in range(ROWS) for style in STYLES)
    return Cond(torch.full((len(texts),), -1), texts)


def pictures(n, seed=0):
    return torch.rand(n, 3, 9, 11, generator=rng(seed)) * 1.2 - 0.1


def measure(metric, img, cond, folder, seeds=(0,), row="student", batch=5):
    metric.begin(row, seeds, folder)
    metric.reset()
    for first in range(0, len(img), batch):
        metric.update(img[first : first + batch], cond[first : first + batch])
    return metric.result()


def test_scores_of_jpeg_files_by_style_and_overall(prompts, tmp_path):
    img, cond = pictures(4 * ROWS), every(prompts)
    found = measure(build(tmp_path), img, cond, tmp_path / "row")
    each = [by_hand(one, prompt) for one, prompt in zip(img, cond.prompts, strict=True)]
    assert found["hps_v2.1"] == pytest.approx(np.mean(each), abs=1e-5)
    assert list(found) == ["hps_v2.1", *(f"hps_v2.1_{style}" for style in STYLES)]
    for k, style in enumerate(STYLES):
        assert found[f"hps_v2.1_{style}"] == pytest.approx(np.mean(each[k::4]), abs=1e-5)


def test_a_style_is_the_mean_of_chunks_of_eighty():
    """Which is that of its images only where all chunks are full: 800 images are ten."""
    rng = np.random.default_rng(0)
    full, rest = rng.random(800).tolist(), rng.random(130).tolist()
    found = scores({"anime": full, "photo": rest, "paintings": []}, "hps_v2.0")
    assert found["hps_v2.0_anime"] == pytest.approx(np.mean([np.mean(full[i : i + 80]) for i in range(0, 800, 80)]))
    assert found["hps_v2.0_photo"] == pytest.approx((np.mean(rest[:80]) + np.mean(rest[80:])) / 2)
    assert found["hps_v2.0_photo"] != pytest.approx(np.mean(rest))
    assert found["hps_v2.0"] == pytest.approx(np.mean(full + rest))
    assert "hps_v2.0_paintings" not in found


def test_the_official_folder(prompts, tmp_path):
    """`<row>/<style>/NNNNN.jpg`, the files that were scored; a prompt in two places fills both."""
    img, cond = pictures(4 * ROWS), every(prompts)
    measure(build(tmp_path, keep=str(tmp_path / "kept")), img, cond, tmp_path / "row")
    kept = tmp_path / "kept" / "student"
    files = sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file())
    assert files == sorted(f"{style}/{i:05d}.jpg" for style in STYLES for i in range(ROWS))
    order = {style: iter(range(ROWS)) for style in STYLES}
    for one, prompt in zip(img, cond.prompts, strict=True):
        style = next(s for s in STYLES if prompt in prompts[s])
        path = kept / style / f"{next(order[style]):05d}.jpg"
        file = BytesIO()
        Image.fromarray((one * 255).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(file, "JPEG")
        assert path.read_bytes() == file.getvalue()


def test_several_seeds_are_several_folders(prompts, tmp_path):
    """The script reads one image of each prompt, so all seeds together have no folder, but they have a score."""
    metric, cond = build(tmp_path, keep=str(tmp_path / "kept")), every(prompts)
    shares = [
        measure(metric, pictures(12, seed), cond, tmp_path / "row", (seed,), f"student, seed {seed}") for seed in (0, 1)
    ]
    both = torch.cat([pictures(12, 0), pictures(12, 1)])
    found = measure(metric, both, Cond.cat([cond, cond]), tmp_path / "row", (0, 1))
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["student, seed 0", "student, seed 1"]
    for name, value in found.items():
        assert value == pytest.approx((shares[0][name] + shares[1][name]) / 2)


def test_no_files_unless_they_are_wanted(prompts, tmp_path):
    measure(build(tmp_path), pictures(12), every(prompts), tmp_path / "row")
    assert not (tmp_path / "row").exists()


def test_fewer_prompts_are_told(prompts, tmp_path):
    metric = build(tmp_path)
    found = measure(metric, pictures(1), every(prompts)[:1], tmp_path / "row")
    assert set(found) == {"hps_v2.1", "hps_v2.1_anime"}
    assert metric.notes() == ("hps_v2.1: 1 of the benchmark's 12 prompts",)
    measure(metric, pictures(12), every(prompts), tmp_path / "row")
    assert metric.notes() == ()


def test_versions_are_named_and_must_agree(prompts, tmp_path):
    old = build(tmp_path, reward=Brightness(version="2.0"), version="2.0")
    assert "hps_v2.0" in measure(old, pictures(12), every(prompts), tmp_path / "row")
    with pytest.raises(ValueError, match=r"reward is of version 2\.0; write `version: '2\.0'` for the benchmark too"):
        build(tmp_path, reward=Brightness(version="2.0"))
    assert old.fingerprint()["version"] == "2.0"
    assert old.fingerprint() != build(tmp_path).fingerprint()


def test_the_reward_of_this_project_fits(prompts, tmp_path):
    """A tiny HPSv2, whose weights stand in the fingerprint."""
    pytest.importorskip("open_clip")
    reward = HPSv2(use="hpsv2", tiny=True, fresh=True)
    metric = build(tmp_path, reward=reward)
    found = measure(metric, pictures(12), every(prompts), tmp_path / "row", batch=12)
    assert -100 < found["hps_v2.1"] < 100
    assert metric.fingerprint()["network"] == digest_module(metric.reward)
    cosines = metric.look(pictures(2), every(prompts)[:2]).scores / 100
    assert cosines.abs().max() < 1


def test_what_is_missing_or_wrong_is_said(prompts, tmp_path):
    metric = build(tmp_path)
    with pytest.raises(DataError, match="hpsv2_benchmark: images are compared with prompts"):
        metric.update(pictures(2), labels(2))
    with pytest.raises(DataError, match=r"'a cat' is none of the prompts in .*; let the data set ask for those"):
        metric.update(pictures(1), Cond(torch.tensor([-1]), ("a cat",)))
    metric.reset()
    with pytest.raises(DataError, match="no images were given"):
        metric.result()
    (tmp_path / "benchmark" / "photo.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"photo\.json must be a list of prompts"):
        build(tmp_path)
    (tmp_path / "benchmark" / "anime.json").unlink()
    with pytest.raises(DataError, match=r"cannot read the prompts .*anime\.json .*zhwang/HPDv2"):
        read_prompts(str(tmp_path / "benchmark"))


def test_a_trial_takes_any_prompts(tmp_path):
    spec = HPSv2Benchmark(use="hpsv2_benchmark", reward=Brightness(), prompts="nowhere", keep=str(tmp_path / "kept"))
    metric = spec.smoke().build(testing.context())
    found = measure(metric, pictures(2), Cond(torch.tensor([-1, -1]), ("a", "b")), tmp_path / "row")
    assert set(found) == {"hps_v2.1", "hps_v2.1_photo"}
    assert not (tmp_path / "kept").exists()

"""What the README says of the captions job is what its result says, and the result can be drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def result():
    return json.loads((ROOT / "benchmarks" / "results" / "captions_reward.json").read_text())


def test_gan_and_reward_help(result):
    """By five points of accuracy at the least, at a distance that is 5 % larger at the most; so does a held-out one."""
    rows = {row["name"]: {k: v["value"] for k, v in row["metrics"].items()} for row in result["eval"]["rows"]}
    before, after = rows["Di[M]O"], rows["Soft-Di[M]O (GAN + reward)"]
    assert after["captions"] >= before["captions"] + 0.05
    assert after["fd"] <= 1.05 * before["fd"]
    assert after["held-out reward"] > before["held-out reward"]
    assert rows["Di[M]O"]["captions"] > rows["teacher, 1 step"]["captions"]
    shares = [before, after, rows["teacher, 1 step"], rows["teacher, 16 steps, confidence"]]
    first, second, third, fourth = (int(100 * row["captions"] + 0.5) for row in shares)
    told = " ".join((ROOT / "README.md").read_text().split())
    assert f"in {first} of 100 images, {second} after GAN and reward, at a lower Fréchet distance" in told
    assert f"one step of the teacher does in {third}, sixteen guided ones in {fourth}" in told


def test_it_took_less_than_a_quarter_of_an_hour(result):
    assert result["timing"]["seconds"] <= 900


def test_the_search_is_measured_at_equal_compute(result):
    search = result["search"]
    assert search["conditions"] >= 200
    passes = {m["name"]: m["passes"] for m in search["methods"] if m["passes"] > 1}
    assert len(passes) == 3
    assert set(passes.values()) == {52}


def test_drawn(result, tmp_path):
    pytest.importorskip("matplotlib")
    import plots

    assert plots.captions(result, tmp_path / "plot.png").stat().st_size > 10_000

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


@pytest.fixture(scope="module")
def searched():
    return json.loads((ROOT / "benchmarks" / "results" / "captions_tteo.json").read_text())


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


def test_the_search_beats_as_many_random_inputs(searched):
    """In the reward that it climbs, where it starts from the best of some random inputs; in others it is no worse."""
    assert searched["search"]["conditions"] >= 200
    methods = {m["name"]: m for m in searched["search"]["methods"]}
    compared = {name: m["against"] for name, m in methods.items() if "against" in m}
    assert len(compared) == 4
    told = []
    for name, against in compared.items():
        assert methods[name]["passes"] == methods[against["name"]]["passes"]
        if "best of" in name:
            assert against["score"]["higher"] >= 3 * against["score"]["lower"]
            told.append(against["score"]["mean"] / against["score"]["sem"])
            assert all(abs(each["mean"]) < 2 * each["sem"] for each in against["held_out"].values())
    words = f"by {int(min(told))} to {int(max(told))} standard errors"
    assert words in " ".join((ROOT / "README.md").read_text().split())


def test_drawn(result, searched, tmp_path):
    pytest.importorskip("matplotlib")
    import plots

    assert plots.captions(result, tmp_path / "plot.png").stat().st_size > 10_000
    assert plots.searches(searched, tmp_path / "searches.png").stat().st_size > 10_000

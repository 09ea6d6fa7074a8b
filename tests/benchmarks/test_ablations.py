"""The ablations over training seeds: which students are made, what is averaged, what tables and plots say of it."""

import copy
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import ablations
import readme
import tables
from ablations import Work, over_seeds, students

from softdimo import recipe

BENCHMARKS = Path(ablations.__file__).parent


@pytest.fixture
def result():
    return json.loads((BENCHMARKS / "results" / "ablations.json").read_text(encoding="utf-8"))


def test_a_student_for_every_seed_and_the_first_as_the_recipe_says(tmp_path):
    plain = recipe.load(BENCHMARKS.parent / "recipes" / "ablation_auxiliary.yaml")
    found = dict(students(Work(tmp_path, seeds=3).load("auxiliary")))
    assert len(found) == 15
    for name, ref in students(plain):
        assert found[name].key == ref.key, "made once, whether there are more seeds or not"
        for seed in (1, 2):
            more = found[f"{name}, training seed {seed}"]
            assert more.set == ref.set | {"seed": seed}
            assert recipe.load_ref(more).recipe.seed == seed != recipe.load_ref(ref).recipe.seed
    alone = Work(tmp_path).load("auxiliary")
    assert alone.recipe == plain.recipe


def test_means_and_spread_are_over_trainings():
    metrics = [{"fd": {"value": v, "sd": 9.0}, "recall": {"value": 0.5, "sd": None}} for v in (1.0, 2.0, 6.0)]
    found = over_seeds(metrics)
    assert found["fd"] == {"value": 3.0, "sd": pytest.approx(7**0.5), "values": [1, 2, 6]}
    assert found["recall"]["sd"] == 0
    assert over_seeds(metrics[:1]) == metrics[0]
    at = [[{"ratio": 0.1, "distance": d, "cosine": c}] for d, c in ((1.0, 0.1), (2.0, 0.3))]
    assert ablations._mean(at) == [
        {
            "ratio": pytest.approx(0.1),
            "distance": 1.5,
            "cosine": pytest.approx(0.2),
            "cosine_sd": pytest.approx(0.02**0.5),
        }
    ]
    assert ablations._mean(at[:1])[0]["cosine_sd"] is None


def test_the_page_says_over_what_numbers_spread(result):
    assert "one training seed" in readme.ablations(result)
    for name in ("r_init", "auxiliary", "consistency"):
        result[name]["training_seeds"] = [0, 1, 2]
    page = readme.ablations(result)
    assert "± over 3 training seeds" in page
    assert "ablations.py RUNS --seeds 3`" in page


def test_distance_and_cosine_stand_beside_the_fd_of_the_student(result):
    (line,) = (x for x in tables.agreement(result).splitlines() if x.startswith("| r_init 0.8 "))
    (student,) = (g for g in result["gradients"] if g["name"] == "r_init 0.8")
    cells = [c.strip() for c in line.strip("|").split("|")]
    assert cells[1].startswith("7.78")
    assert cells[2:] == [f"{a['distance']:.2f}: {a['cosine']:.2f}" for a in student["at"]]
    one = copy.deepcopy(student) | {"name": "mask ratio 0.3 only"}
    result["gradients"].append(one)
    shown = tables.ablation(result, "consistency").splitlines()
    assert shown[0].endswith("| distance of x_t | cosine |")
    (line,) = (x for x in shown if x.startswith("| mask ratio 0.3 only"))
    assert line.endswith(f"| {one['at'][1]['distance']:.2f} | {one['at'][1]['cosine']:.2f} |")


def test_costs_stand_beside_quality(result):
    lines = tables.ablation(result, "auxiliary").splitlines()
    assert "ms/iteration | state, MiB" in lines[0]
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert {"full method, share_t", "share_t off", "no auxiliary"} <= {line.split("|")[1].strip() for line in lines}


@pytest.mark.slow
def test_all_of_it_tiny(tmp_path):
    pytest.importorskip("matplotlib")
    before = (BENCHMARKS / "results" / "ablations.json").read_bytes()
    found = ablations.main([str(tmp_path), "--quick", "--seeds", "2"])
    assert (BENCHMARKS / "results" / "ablations.json").read_bytes() == before
    assert [r["name"] for r in found["r_init"]["rows"]] == [
        f"r_init {r}" for r in ("0", "0.2", "0.4", "0.6", "0.8", "1")
    ]
    assert all(len(r["fd"]["values"]) == 2 for name in ("r_init", "auxiliary") for r in found[name]["rows"])
    assert set(found["costs"]) == {r["name"] for r in found["auxiliary"]["rows"]}
    assert {g["name"] for g in found["gradients"]} >= {"r_init 1", "all mask ratios", "mask ratio 0.9 only"}
    assert "± over 2 training seeds" in readme.ablations(found)
    assert (tmp_path / "ablations.png").is_file()

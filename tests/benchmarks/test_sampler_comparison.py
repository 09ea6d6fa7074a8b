"""The benchmark of samplers: what is tuned, and what its table and plot show."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import guidance
import samplers
import tables

from softdimo import recipe

RECIPE = samplers.ROOT / "recipes" / f"{samplers.NAME}.yaml"


@pytest.fixture(scope="module")
def loaded():
    return recipe.load(RECIPE)


@pytest.fixture
def run(loaded, tmp_path):
    """A finished run of the recipe with invented numbers: the Fréchet distance is 100 over the passes."""
    rows = [{"name": "real held out", "of": "real", "passes": 0.0, "metrics": {"fd": {"value": 0.5, "sd": None}}}]
    for row in loaded.recipe.eval.rows:
        if row.of == "teacher":
            values = {"fd": 100 / row.sampler.passes(), "recall": 0.5, "density": 0.4, "coverage": 0.3, "accuracy": 0.9}
            metrics = {k: {"value": v, "sd": 0.02, "values": [v, v]} for k, v in values.items()}
            rows.append({"name": row.name, "of": "teacher", "passes": row.sampler.passes(), "metrics": metrics})
    table = {"evaluator_hash": "c" * 64, "samples": 3000, "seeds": [0, 1, 2], "rows": rows, "lock": {"command": "x"}}
    (tmp_path / "eval.json").write_text(json.dumps(table), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(recipe.dump(loaded.recipe), encoding="utf-8")
    return tmp_path


def test_every_sampler_is_measured_at_4_8_and_16_steps(loaded):
    found = {}
    for row in loaded.recipe.eval.rows:
        if row.of == "teacher":
            assert row.name.rpartition(", ")[2] == f"{row.sampler.steps} steps"
            found.setdefault(row.sampler.use, set()).add(row.sampler.steps)
    assert set(found) == {
        "random_order", "maskgit", "halton", "halton_confidence", "maskbit", "theta_trapezoidal",
    }  # fmt: skip
    assert all(steps >= {4, 8, 16} for steps in found.values())
    assert loaded.recipe.train is None
    assert loaded.recipe.eval.samples >= 3000
    assert len(loaded.recipe.eval.seeds) == 3


def test_the_teacher_is_that_of_the_main_job(loaded):
    main = recipe.load(RECIPE.with_name("animals_softdimo.yaml"))
    for part in ("data", "tokenizer", "teacher"):
        assert getattr(loaded.recipe, part) == getattr(main.recipe, part)


def test_every_row_is_tuned_alike_with_seeds_of_its_own(loaded):
    sweep = guidance.sweep(str(RECIPE))
    table = sweep.recipe.eval
    assert not set(table.seeds) & set(loaded.recipe.eval.seeds)
    assert sweep.recipe.train is None
    teachers = [r for r in loaded.recipe.eval.rows if r.of == "teacher"]
    for row in teachers:
        tried = [r.sampler for r in table.rows if r.name.startswith(f"{row.sampler.use} {row.sampler.steps} ")]
        assert [s.guidance for s in tried[: len(guidance.GUIDANCE)]] == guidance.GUIDANCE
        assert all(
            s.model_copy(update={"guidance": row.sampler.guidance}) == row.sampler
            for s in tried[: len(guidance.GUIDANCE)]
        )
        own = tried[len(guidance.GUIDANCE) :]
        assert bool(own) == (row.sampler.steps == 8 and row.sampler.use in guidance.OWN)
        for s in own:
            key, values = guidance.OWN[s.use]
            assert getattr(s, key) in values
            assert s.model_copy(update={key: getattr(row.sampler, key)}) == row.sampler
    assert len({r.name for r in table.rows}) == len(table.rows)


def test_the_table_shows_settings_passes_and_the_leading_rows(loaded, run):
    result = samplers.collected(run)
    assert "command" not in json.dumps(result)
    lines = tables.samplers(result).splitlines()
    rows = [r for r in loaded.recipe.eval.rows if r.of == "teacher"]
    assert len(lines) == 2 + len(rows)
    for row, line in zip(rows, lines[2:], strict=True):
        cells = [c.strip() for c in line.strip("|").split("|")]
        assert cells[0] == row.name
        assert cells[1].startswith(f"{row.sampler.guidance.scale:g}")
        assert float(cells[2]) == row.sampler.passes()
    (best,) = (line for line in lines if f"**{100 / 65:.3f} ± 0.020**" in line)
    assert "theta-trapezoidal, 16 steps" in best
    assert "theta 0." in best


def test_the_plot_is_drawn(run, tmp_path):
    pytest.importorskip("matplotlib")
    from plots import samplers as draw

    assert draw(samplers.collected(run), tmp_path / "plot.png").stat().st_size > 10_000

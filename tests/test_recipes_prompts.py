"""The recipes that measure text to image, run whole on small networks: prompts, images, evaluators, numbers."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from softdimo import recipe as recipes
from softdimo import run as running
from softdimo_plugins.metrics.hpsv2_benchmark import STYLES
from tests import scorers

PARTS = Path(__file__).parents[1] / "recipes" / "parts"
NETWORKS = """
text_encoder: null
tokenizer:
  use: vqgan
  fresh: true
  weights: null
  width: 32
  latent: 8
  dim: 6
  codebook: 9
  multipliers: [1, 2]
  blocks: 1
  resolution: 8
  attention: [4]
teacher: {use: maskgit, fresh: true, weights: null, width: 16, depth: 1, heads: 2, mlp: 24, classes: 4}
hardware: {accelerator: cpu}
"""
ROWS = "rows: [{name: one, of: teacher, sampler: {use: one_step}}]"
CLIP = "network: {use: clip_score, tiny: true, fresh: true, weights: null}"


def measured(folder, part, sections):
    """Run a recipe on a part; returns the table and the run folder."""
    text = f"base: {PARTS / part}_metrics.yaml\ntitle: Small\n{NETWORKS}\n{sections}\n"
    (folder / "mine.yaml").write_text(text)
    loaded = recipes.load(folder / "mine.yaml")
    run = running.eval_only(loaded, folder / "run")
    return json.loads((run / "eval.json").read_text()), run


def test_coco(tmp_path):
    """One image of each caption of the CSV, in its order, against statistics from a file."""
    pytest.importorskip("open_clip")
    captions = ['"a cat, and\na dog"', '"two ""red"" birds"', "a bench", "a cow"]
    (tmp_path / "captions.csv").write_text("image_id,text\n" + "".join(f"{i},{c}\n" for i, c in enumerate(captions)))
    np.savez(tmp_path / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    features = "{use: cnn, width: 4, features: 4}"
    table, _ = measured(
        tmp_path,
        "coco30k",
        f"""
data: {{path: captions.csv, size: 8, group: image_id}}
eval:
  samples: 4
  batch_size: 2
  metrics:
    - {{use: frechet, features: {features}, reference: stats.npz}}
    - {{use: clip_score, {CLIP}}}
  {ROWS}
""",
    )
    (row,) = table["rows"]
    assert (row["n"], row["prompts"]) == (4, 4)
    assert set(row["metrics"]) == {"fd", "clip_score"}
    assert -1 < row["metrics"]["clip_score"]["value"] < 1
    frechet, clip = table["evaluator"]["frechet"], table["evaluator"]["clip_score"]
    assert frechet["reference_size"] == "unstated"
    assert frechet["reference"] == hashlib.sha256((tmp_path / "stats.npz").read_bytes()).hexdigest()
    assert (clip["prefix"], clip["lanczos"]) == ("A photo depicts ", 256)
    assert table["evaluator"]["data"].startswith("prompts:")
    loaded = recipes.load(tmp_path / "mine.yaml").recipe
    data = loaded.data.build(None)
    assert data.conditions(4).prompts == ("a cat, and\na dog", 'two "red" birds', "a bench", "a cow")


def test_hpsv2(tmp_path):
    """The files of the benchmark are the data set and the styles; both versions are scored on the same images."""
    pytest.importorskip("open_clip")
    (tmp_path / "hpdv2").mkdir()
    for style in STYLES:
        (tmp_path / "hpdv2" / f"{style}.json").write_text(json.dumps([f"{style} {i}" for i in range(2)]))
    metrics = "".join(
        f"""
    - use: hpsv2_benchmark
      version: "{version}"
      reward: {{use: hpsv2, version: "{version}", tiny: true, fresh: true, weights: null}}
      prompts: hpdv2
      keep: kept{version}
"""
        for version in ("2.0", "2.1")
    )
    table, _ = measured(
        tmp_path, "hpsv2", f"data: {{path: hpdv2, size: 8}}\neval:\n  samples: 8\n  metrics:{metrics}\n  {ROWS}\n"
    )
    (row,) = table["rows"]
    assert (row["n"], row["prompts"], row["notes"]) == (8, 8, [])
    names = {f"hps_v{v}" + (f"_{s}" if s else "") for v in ("2.0", "2.1") for s in ("", *STYLES)}
    assert set(row["metrics"]) == names
    kept = [sorted(p.read_bytes() for p in (tmp_path / f"kept{v}").rglob("*.jpg")) for v in ("2.0", "2.1")]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 8
    assert (tmp_path / "kept2.1" / "one" / "photo" / "00001.jpg").is_file()


def test_geneval(tmp_path):
    """Two seeds of the prompts of the metadata file, in the run's own folder while it lasts."""
    tags = ("single_object", "counting", "colors")
    lines = [{"tag": tag, "include": [], "prompt": f"a photo of {tag}"} for tag in tags]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = json.dumps(scorers.write(tmp_path, scorers.GENEVAL))
    table, run = measured(
        tmp_path,
        "geneval",
        f"""
data: {{path: metadata.jsonl, size: 8}}
eval:
  samples: 6
  seeds: [0, 1]
  metrics: [{{use: geneval, command: {command}, metadata: metadata.jsonl, keep: kept}}]
  {ROWS}
""",
    )
    (row,) = table["rows"]
    assert (row["n"], row["n_seed"], row["prompts"], row["notes"]) == (6, 3, 3, [])
    assert set(row["metrics"]) == {"geneval", *(f"geneval_{tag}" for tag in tags)}
    assert table["evaluator"]["geneval"]["prompts"] == 3
    assert [[image["seed"] for image in call["images"]] for call in scorers.calls(tmp_path)] == [[0] * 3, [1] * 3]
    for place, line in enumerate(lines):
        kept = tmp_path / "kept" / "one" / f"{place:05d}"
        assert (kept / "metadata.jsonl").read_text() == json.dumps(line)
        assert sorted(p.name for p in (kept / "samples").iterdir()) == ["0000.png", "0001.png"]
    assert not list(run.rglob("*.png"))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "GenEval single object" in page


def test_the_parts_are_as_the_papers_have_it():
    """Numbers of images, rules and versions."""
    coco, hpsv2, geneval = (
        recipes.load(PARTS / f"{name}_metrics.yaml").recipe for name in ("coco30k", "hpsv2", "geneval")
    )
    assert (coco.eval.samples, coco.eval.seeds) == (30_000, (0,))
    features = coco.eval.metrics[0].features
    assert (features.uint8, features.resize, features.lanczos) == ("truncate", "t2i_benchmark", None)
    assert (hpsv2.eval.samples, hpsv2.eval.seeds) == (3200, (0,))
    assert [(m.version, m.reward.version, m.scale, m.quality) for m in hpsv2.eval.metrics] == [
        ("2.0", "2.0", 100.0, 75), ("2.1", "2.1", 100.0, 75)
    ]  # fmt: skip
    assert (geneval.eval.samples, geneval.eval.seeds) == (4 * 553, (0, 1, 2, 3))
    (metric,) = geneval.eval.metrics
    assert metric.command[:5] == ("conda", "run", "--name", "geneval", "python")
    assert metric.command[5] == str(PARTS.parents[1] / "benchmarks" / "geneval_adapter.py")
    assert Path(metric.command[5]).is_file()
    assert metric.metadata == geneval.data.path
    assert {recipe.data.held_out for recipe in (coco, hpsv2, geneval)} == {0}

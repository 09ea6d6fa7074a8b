"""The adapter between the metric `geneval` and the official scorer, with a script in the scorer's place."""

import ast
import hashlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from softdimo import testing
from softdimo.errors import PluginError
from softdimo.kinds import Cond
from softdimo_plugins.metrics.geneval import Geneval
from tests.helpers import rng

ADAPTER = Path(__file__).parents[2] / "benchmarks" / "geneval_adapter.py"
PROMPTS = ("a photo of a bench", "a photo of two cows")
SCRIPT = '''
"""Takes the arguments that the official script takes, reads what it reads, writes what it writes."""
import argparse, json, os, re, sys
ask = argparse.ArgumentParser()
ask.add_argument("imagedir", type=str)
ask.add_argument("--outfile", type=str, default="results.jsonl")
ask.add_argument("--model-config", type=str, default=None)
ask.add_argument("--model-path", type=str, default="./")
ask.add_argument("--options", nargs="*", type=str, default=[])
args = ask.parse_args()
options = dict(opt.split("=", 1) for opt in args.options)
if "fail" in options:
    sys.exit("CUDA is not here")
lines = []
for sub in os.listdir(args.imagedir):
    folder = os.path.join(args.imagedir, sub)
    if not os.path.isdir(folder) or not sub.isdigit():
        continue
    with open(os.path.join(folder, "metadata.jsonl")) as file:
        metadata = json.load(file)
    for name in os.listdir(os.path.join(folder, "samples")):
        path = os.path.join(folder, "samples", name)
        if not os.path.isfile(path) or not re.match(r"\\d+\\.png", name):
            continue
        lines.append({"filename": path, "tag": metadata["tag"], "prompt": metadata["prompt"],
                      "correct": metadata["tag"] == options.get("right", "counting"), "reason": "",
                      "metadata": json.dumps(metadata), "details": "{}"})
with open(args.outfile, "w") as file:
    file.write("".join(json.dumps(line) + "\\n" for line in lines))
'''


@pytest.fixture
def home(tmp_path):
    """A clone, a detector, and the benchmark's prompts."""
    script = tmp_path / "geneval" / "evaluation" / "evaluate_images.py"
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT)
    (tmp_path / "detector").mkdir()
    weights = tmp_path / "detector" / "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.pth"
    weights.write_bytes(b"weights")
    lines = [{"tag": "single_object", "prompt": PROMPTS[0]}, {"tag": "counting", "prompt": PROMPTS[1]}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def metric(home, *more):
    command = [sys.executable, str(ADAPTER), "--geneval", str(home / "geneval"), "--model-path", str(home / "detector")]
    spec = {"use": "geneval", "command": [*command, *more], "metadata": str(home / "metadata.jsonl")}
    return Geneval.model_validate(spec).build(testing.context())


def measure(metric, home):
    metric.begin("row", (0, 1), home / "row")
    metric.reset()
    metric.update(torch.rand(4, 3, 8, 8, generator=rng()), Cond(torch.full((4,), -1), PROMPTS * 2))
    return metric.result()


def test_the_official_script_is_called_and_its_environment_told(home):
    made = metric(home)
    found = measure(made, home)
    assert found == {"geneval": 0.5, "geneval_single_object": 0.0, "geneval_counting": 1.0}
    told = made.fingerprint()
    assert told["program detector"] == hashlib.sha256(b"weights").hexdigest()
    assert told["program script"] == hashlib.sha256(SCRIPT.encode()).hexdigest()
    assert told["program torch"] == metadata.version("torch")
    assert told["program python"] == sys.version.split()[0]
    assert told["program options"] == ""


def test_options_are_passed_and_told(home):
    made = metric(home, "--option", "right=single_object")
    assert measure(made, home)["geneval_single_object"] == 1.0
    assert made.fingerprint()["program options"] == "right=single_object"


def test_its_failures_are_passed_on(home):
    with pytest.raises(PluginError, match=r"exit code 1\nthe end of its stderr:\nCUDA is not here"):
        measure(metric(home, "--option", "fail=1"), home)
    (home / "detector" / "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.pth").unlink()
    with pytest.raises(PluginError, match=r"(?s)exit code 1.*there is no .*\.pth; see the README"):
        metric(home).fingerprint()


def test_it_needs_nothing_but_an_old_python(home):
    """The scorer's environment has Python 3.8, and no softdimo."""
    source = ADAPTER.read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    assert imported <= {"__future__", "argparse", "hashlib", "importlib", "json", "pathlib", "subprocess", "sys"}
    done = subprocess.run([sys.executable, "-S", "-E", str(ADAPTER), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "GenEval's own scorer as the command" in done.stdout

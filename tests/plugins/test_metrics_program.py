"""Programs that fail, hang, lie or say too little; and the metric `command`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softdimo import testing
from softdimo.errors import DataError, PluginError
from softdimo.kinds import Cond
from softdimo_plugins.metrics import program
from softdimo_plugins.metrics.command import Command
from softdimo_plugins.metrics.outside import STANDIN
from softdimo_plugins.metrics.program import Program
from tests import scorers
from tests.helpers import labels, rng

REQUEST = {"folder": "", "images": [{"file": "a.png", "prompt": "a cat"}]}
PROMPTS = ("a cat", "two dogs – ünïcode", "a cat", "")


def ask(folder, body, timeout=60.0, request=REQUEST):
    return Program(tuple(scorers.write(folder, body)), timeout).ask(request)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('half a word'); sys.stderr.write('no GPU here\\n'); sys.exit(3)",
         r"exit code 3\nthe end of its stderr:\nno GPU here$"),
        ("print('only this'); sys.exit(1)", r"exit code 1\nthe end of its stdout:\nonly this$"),
        ("sys.stderr.write('x' * 5000 + 'the end'); sys.exit(1)", r"\nx{1993}the end$"),
        ("raise ValueError('deep inside')", r"exit code 1\nthe end of its stderr:\nTraceback[^$]*deep inside$"),
        ("import os; os.abort()", "signal SIGABRT"),
        ("sys.exit(0)", "it ended well, but wrote no answer"),
        ("answer.write_text('{'); sys.exit(0)", "its answer is no JSON"),
        ("answer.write_text('[1]'); sys.exit(0)", "its answer must be a mapping, not list"),
        ("told = {}", "its answer needs `provenance`"),
        ("told['provenance'] = {}", "its answer needs `provenance`"),
        ("told['provenance'] = {'a': [1]}", "its answer needs `provenance`"),
        ("told['provenance'] = {'a': float('nan')}", "its answer needs `provenance`"),
        ("told['provenance']['images'] = len(images)",
         r"its provenance was \{'images': 0, .*\} before, and is \{'images': 1, .*\} now"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_said_with_the_programs_last_words(body, message, tmp_path):
    with pytest.raises(PluginError, match=f"(?s)the command `.*scorer.py`: .*{message}"):
        ask(tmp_path, body)


def test_a_program_that_is_not_there(tmp_path):
    missing = Program(("no-such-program", "x"), 1.0)
    with pytest.raises(PluginError, match="no program `no-such-program` can be started here; install it"):
        missing.present()
    with pytest.raises(PluginError, match="it cannot be started: No such file"):
        missing.ask(REQUEST)
    with pytest.raises(PluginError, match="no program `no-such-program`"):
        Command(use="command", command=("no-such-program",)).build(testing.context())


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


FAMILY = """
import os, signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", deaf])
Path(__file__).with_suffix(".pids").write_text(f"{os.getpid()} {child.pid}")
sys.stderr.write("waiting for a lock")
sys.stderr.flush()
time.sleep(600)
"""


def family(folder):
    path = folder / "scorer.pids"
    while not path.exists() or len(path.read_text().split()) < 2:
        time.sleep(0.05)
    return [int(pid) for pid in path.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux")
def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "GRACE", 0.3)
    with pytest.raises(PluginError, match=r"timeout: 5 seconds\nthe end of its stderr:\nwaiting for a lock"):
        ask(tmp_path, FAMILY, timeout=5.0)
    deadline = time.monotonic() + 30
    while any(map(alive, family(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, family(tmp_path)))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Whoever starts the tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux")
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_it_too(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "GRACE", 0.3)

    def interrupt():
        family(tmp_path)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, FAMILY, timeout=600.0)
    deadline = time.monotonic() + 30
    while any(map(alive, family(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, family(tmp_path)))


def test_it_is_asked_once_what_its_numbers_rest_on(tmp_path):
    command = tuple(scorers.write(tmp_path))
    assert Program(command, 60.0).provenance() == {"scorer": "mine", "version": 3}
    for _ in range(2):
        Program(command, 60.0).ask(REQUEST | {"images": []})
        Program(command, 60.0).provenance()
    lines = (tmp_path / "scorer.log").read_text().splitlines()
    assert len(lines) == 3, "two requests, and one question for its provenance"


# the metric


def pictures(n, seed=0):
    return torch.rand(n, 3, 5, 7, generator=rng(seed))


def measure(metric, img, cond, folder, seeds=(), batch=3, row="a row"):
    metric.begin(row, seeds, folder)
    metric.reset()
    for first in range(0, len(img), batch):
        metric.update(img[first : first + batch], cond[first : first + batch])
    return metric.result()


def command(folder, body=scorers.SET, **settings):
    spec = Command.model_validate({"use": "command", "command": scorers.write(folder, body), **settings})
    return spec.build(testing.context())


def test_the_request_and_the_files(tmp_path):
    """Names, prompts, labels, seeds and metadata as they are promised; the files hold the bytes of the images."""
    lines = [{"tag": "x", "prompt": PROMPTS[1]}, {"tag": "y", "prompt": "of no image"}]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metric = command(tmp_path, metadata=str(tmp_path / "more.jsonl"), keep=str(tmp_path / "kept"))
    img = pictures(4)
    found = measure(metric, img, Cond(torch.tensor([-1, 0, 1, 2]), PROMPTS), tmp_path / "row", seeds=(7, 9))
    (call,) = scorers.calls(tmp_path)
    assert call["files"] == [f"{i:05d}.png" for i in range(4)]
    assert call["images"] == [
        {"file": "00000.png", "prompt": PROMPTS[0], "label": -1, "seed": 7},
        {"file": "00001.png", "prompt": PROMPTS[1], "label": 0, "seed": 7, "metadata": lines[0]},
        {"file": "00002.png", "prompt": PROMPTS[2], "label": 1, "seed": 9},
        {"file": "00003.png", "prompt": PROMPTS[3], "label": 2, "seed": 9},
    ]
    kept = tmp_path / "kept" / "a row"
    assert sorted(p.name for p in kept.iterdir()) == [*call["files"], "answer.json", "request.json"]
    for i, one in enumerate(img):
        with Image.open(kept / f"{i:05d}.png") as file:
            assert (file.format, file.mode) == ("PNG", "RGB")
            assert np.array_equal(np.array(file), (one * 255).to(torch.uint8).permute(1, 2, 0).numpy())
    assert json.loads((kept / "request.json").read_text()) == {"images": call["images"]}
    answer = json.loads((kept / "answer.json").read_text())
    assert answer["numbers"] == found
    assert metric.fingerprint() | {"metadata": ""} == {
        "formula": "command/1", "uint8": "truncate", "answers": "set", "metadata": "", "program scorer": "mine",
        "program version": 3,
    }  # fmt: skip


def test_labels_alone_will_do(tmp_path):
    metric = command(tmp_path)
    assert set(measure(metric, pictures(4), labels(4), tmp_path / "row")) == {"mine"}
    assert [image["prompt"] for image in scorers.calls(tmp_path)[0]["images"]] == [None] * 4
    assert [image["seed"] for image in scorers.calls(tmp_path)[0]["images"]] == [None] * 4


def test_gray_images_are_files_in_color(tmp_path):
    metric = command(tmp_path, keep=str(tmp_path / "kept"))
    img = torch.rand(2, 1, 4, 6, generator=rng())
    measure(metric, img, labels(2), tmp_path / "row")
    with Image.open(tmp_path / "kept" / "a row" / "00001.png") as file:
        assert np.array_equal(np.array(file)[..., 2], (img[1, 0] * 255).to(torch.uint8).numpy())


def test_an_image_that_was_scored_is_not_sent_again(tmp_path):
    """Neither in the pool of the seeds, nor by a process that goes on; another prompt is another question."""
    cond = Cond(torch.full((4,), -1), PROMPTS)
    img = pictures(4)
    first, pool = (command(tmp_path, scorers.EACH, answers="images") for _ in range(2))
    a = measure(first, img[:2], cond[:2], tmp_path / "row")
    b = measure(first, img[2:], cond[2:], tmp_path / "row")
    whole = measure(pool, img, cond, tmp_path / "row")
    assert whole["mine"] == pytest.approx((a["mine"] + b["mine"]) / 2)
    assert [len(call["images"]) for call in scorers.calls(tmp_path)] == [2, 2]
    assert measure(command(tmp_path, scorers.EACH, answers="images"), img, cond, tmp_path / "row") == whole
    assert len(scorers.calls(tmp_path)) == 2
    measure(pool, img, Cond(cond.labels, ("a cat",) * 4), tmp_path / "row")
    assert [len(call["images"]) for call in scorers.calls(tmp_path)] == [2, 2, 2], "two of the four have another prompt"


@pytest.mark.parametrize(
    ("answers", "body", "message"),
    [
        ("set", "", "its answer needs `numbers`"),
        ("set", "told['numbers'] = {}", "its answer needs `numbers`"),
        ("set", "told['numbers'] = {'a': float('nan')}", "`numbers`: `a` must be a finite number, not nan"),
        ("set", "told['numbers'] = {'a': True}", "`a` must be a finite number, not True"),
        ("set", "told['numbers'] = {'a': '1'}", "`a` must be a finite number, not '1'"),
        ("images", scorers.SET, "its answer needs `images`, `00000.png`: numbers by name"),
        ("images", "told['images'] = {'00000.png': {'a': 1}}", "its answer needs `images`, `00001.png`"),
        ("images", "told['images'] = {i['file']: {i['prompt']: 1} for i in images}", "for some images"),
    ],
)
def test_answers_that_are_none(answers, body, message, tmp_path):
    metric = command(tmp_path, body, answers=answers)
    with pytest.raises(PluginError, match=message):
        measure(metric, pictures(4), Cond(torch.full((4,), -1), PROMPTS), tmp_path / "row")


def test_contract(tmp_path):
    for answers, body in (("set", scorers.SET), ("images", scorers.EACH)):
        spec = Command.model_validate({"use": "command", "command": scorers.write(tmp_path, body), "answers": answers})
        with pytest.raises(AssertionError, match="must not depend on the order of the images"):
            testing.check_metric(Command(use="command", command=(*STANDIN[:1], "-c", FIRST)).build)
        testing.check_metric(spec.build)


FIRST = """
import json, sys
asked = json.load(open(sys.argv[-2]))
told = {"provenance": {"a": 1}}
if asked["images"]:
    told["numbers"] = {"first": float(len(open(asked["folder"] + "/00000.png", "rb").read()))}
json.dump(told, open(sys.argv[-1], "w"))
"""
"""A program that looks at one image only."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": "a"}\n', ":2: the prompt 'a' has a line already"),
        ('{"tag": "a"}\n', ":1: must be a mapping with a text `prompt`"),
        ('\n{"prompt": 3}\n', ":2: must be a mapping with a text `prompt`"),
        ("[1]\n", ":1: must be a mapping"),
        ("{\n", ":1: must be a mapping"),
    ],
)
def test_metadata_that_are_none(text, message, tmp_path):
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(DataError, match=rf"m\.jsonl{message}"):
        command(tmp_path, metadata=str(tmp_path / "m.jsonl"))
    with pytest.raises(DataError, match=r"cannot read the metadata .*nowhere\.jsonl"):
        command(tmp_path, metadata=str(tmp_path / "nowhere.jsonl"))


def test_paths_of_a_recipe_begin_with_a_dot(tmp_path):
    """As everywhere in a recipe, relative to its file; other arguments stay as they are."""
    from softdimo.spec import Written

    def written(text):
        out = Written(text)
        out.folder = tmp_path
        return out

    argv = [written("./run.sh"), written("--model-path"), written("../models"), written("a/b")]
    spec = Command.model_validate({"use": "command", "command": argv})
    assert spec.command == (str(tmp_path / "run.sh"), "--model-path", str(tmp_path.parent / "models"), "a/b")
    with pytest.raises(ValueError, match="at least 1 item"):
        Command.model_validate({"use": "command", "command": []})


def test_the_stand_in_of_a_trial(tmp_path):
    spec = Command(use="command", command=("conda", "run"), keep=str(tmp_path / "kept"), metadata="nowhere.jsonl")
    small = spec.smoke()
    assert (small.command, small.keep, small.metadata) == (STANDIN, None, None)
    img = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    assert measure(small.build(testing.context()), img, labels(2), tmp_path / "row") == {"brightness": 0.5}
    done = subprocess.run([*STANDIN, "no", "file"], capture_output=True, check=False)
    assert done.returncode != 0
    assert sys.executable == STANDIN[0]

"""GenEval: the folders that the official script reads, byte for byte, and what is made of the lines that it writes."""

import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image

from softdimo import testing
from softdimo.errors import DataError, PluginError
from softdimo.kinds import Cond
from softdimo_plugins.metrics.geneval import TASKS, Geneval, read_results, scores
from softdimo_plugins.metrics.outside import STANDIN
from tests import scorers
from tests.helpers import rng

LINES = (
    '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}',
    '{"tag": "counting", "include": [{"class": "orange", "count": 3}], "exclude": [{"class": "orange", "count": 4}], '
    '"prompt": "a photo of three oranges"}',
    '{"tag": "position", "include": [{"class": "sink", "count": 1}, {"class": "tie", "count": 1, '
    '"position": ["above", 0]}], "prompt": "a photo of a tie above a sink"}',
    '{"tag": "counting", "include": [{"class": "caf\\u00e9", "count": 2}], "prompt": "a photo of two caf\\u00e9s"}',
)
"""As the official file has them."""
PROMPTS = tuple(json.loads(line)["prompt"] for line in LINES)
ORDER = (2, 0, 3, 1)
"""Of the prompts in the data set: another one than that of the file."""


@pytest.fixture
def metadata(tmp_path):
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(LINES) + "\n")
    return str(tmp_path / "evaluation_metadata.jsonl")


def build(folder, metadata, body=scorers.GENEVAL, **settings):
    spec = Geneval.model_validate(
        {"use": "geneval", "command": scorers.write(folder, body), "metadata": metadata, **settings}
    )
    return spec.build(testing.context())


def pictures(n, seed=0):
    return torch.rand(n, 3, 6, 5, generator=rng(seed))


def asked(order=ORDER, times=1):
    prompts = tuple(PROMPTS[i] for i in order) * times
    return Cond(torch.full((len(prompts),), -1), prompts)


def measure(metric, img, cond, folder, seeds, row="student", batch=3):
    metric.begin(row, seeds, folder)
    metric.reset()
    for first in range(0, len(img), batch):
        metric.update(img[first : first + batch], cond[first : first + batch])
    return metric.result()


def by_hand(folder):
    """Accuracy of each task and their mean, from a kept folder: as the official summary groups its table."""
    groups = defaultdict(list)
    for line in (folder / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        groups[row["tag"]].append(float(row["correct"]))
    tasks = {tag: float(np.mean(values)) for tag, values in groups.items()}
    return {"geneval": float(np.mean(list(tasks.values())))} | {f"geneval_{tag}": v for tag, v in tasks.items()}


def test_four_images_of_each_prompt_in_the_official_folders(metadata, tmp_path):
    """Four seeds, each by itself and all together: the layout, the request, the scores, and one call for each seed."""
    seeds, shares, judge = (0, 1, 2, 3), [], build(tmp_path, metadata, keep=str(tmp_path / "kept"))
    for seed in seeds:
        found = measure(judge, pictures(4, seed), asked(), tmp_path / "row", (seed,), f"student, seed {seed}")
        assert found == pytest.approx(by_hand(tmp_path / "kept" / f"student, seed {seed}"))
        shares.append(found)
    pool = build(tmp_path, metadata, keep=str(tmp_path / "kept"))
    img = torch.cat([pictures(4, seed) for seed in seeds])
    found = measure(pool, img, asked(times=4), tmp_path / "row", seeds)
    assert found == pytest.approx(by_hand(tmp_path / "kept" / "student"))
    assert found["geneval"] == pytest.approx(np.mean([share["geneval"] for share in shares]))
    assert len({share["geneval"] for share in shares}) > 1
    assert list(found) == ["geneval", "geneval_single_object", "geneval_counting", "geneval_position"]

    kept = tmp_path / "kept" / "student"
    places = sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file())
    assert places == [
        *(f"{p:05d}/{name}" for p in range(4) for name in (
            "metadata.jsonl", "samples/0000.png", "samples/0001.png", "samples/0002.png", "samples/0003.png"
        )),
        "results.jsonl",
    ]  # fmt: skip
    for place, line in enumerate(LINES):
        assert (kept / f"{place:05d}" / "metadata.jsonl").read_bytes() == line.encode()
        assert line == json.dumps(json.loads(line)), "what the official generator writes"
        for number in range(4):
            with Image.open(kept / f"{place:05d}" / "samples" / f"{number:04d}.png") as file:
                expected = (img[4 * number + ORDER.index(place)] * 255).to(torch.uint8).permute(1, 2, 0).numpy()
                assert (file.format, file.mode) == ("PNG", "RGB")
                assert np.array_equal(np.array(file), expected)
    calls = scorers.calls(tmp_path)
    assert [len(call["images"]) for call in calls] == [4] * 4, "the pool was scored already"
    assert calls[1]["images"][0] == {
        "file": "00002/samples/0000.png", "prompt": PROMPTS[2], "number": 0, "seed": 1,
        "metadata": json.loads(LINES[2]),
    }  # fmt: skip
    assert calls[0]["files"] == sorted(
        f"{p:05d}/{name}" for p in range(4) for name in ("metadata.jsonl", "samples/0000.png")
    )


def test_the_score_is_the_mean_of_tasks_not_of_images():
    told = [("counting", True), ("counting", False), ("counting", False), ("colors", True)]
    assert scores(told) == {
        "geneval": pytest.approx((1 / 3 + 1) / 2), "geneval_counting": pytest.approx(1 / 3), "geneval_colors": 1.0
    }  # fmt: skip
    every = [(task, i < 3) for task in TASKS for i in range(4)]
    assert list(scores(every)) == ["geneval", *(f"geneval_{task}" for task in TASKS)]
    assert scores(every)["geneval"] == 0.75


def test_the_same_scores_from_the_same_images_in_one_call(metadata, tmp_path):
    """All at once, without what was said before."""
    img, cond = torch.cat([pictures(4, seed) for seed in range(4)]), asked(times=4)
    (tmp_path / "a").mkdir()
    parts = build(tmp_path, metadata)
    for seed in range(4):
        measure(parts, img[4 * seed : 4 * seed + 4], asked(), tmp_path / "row", (seed,))
    whole = build(tmp_path / "a", metadata)
    one, other = (measure(m, img, cond, tmp_path / f, (0, 1, 2, 3)) for m, f in ((parts, "row"), (whole, "other")))
    assert one == pytest.approx(other)
    assert [len(call["images"]) for call in scorers.calls(tmp_path / "a")] == [16]


def test_an_interrupted_row_is_scored_once(metadata, tmp_path):
    """Another process finds the images and what was said of them; only what is missing is sent."""
    img = pictures(4)
    first = build(tmp_path, metadata)
    first.begin("student", (0,), tmp_path / "row")
    first.reset()
    seen = [first.look(img[:2], asked()[:2]), first.look(img[2:], asked()[2:])]
    for each in seen:
        first.add(each)
    found = first.result()
    again = build(tmp_path, metadata)
    again.begin("student", (0,), tmp_path / "row")
    again.reset()
    for each in seen:
        again.add(each)
    assert again.result() == found
    assert len(scorers.calls(tmp_path)) == 1
    lost = build(tmp_path, metadata)
    lost.begin("student", (0,), tmp_path / "elsewhere")
    lost.reset()
    lost.add(seen[0])
    with pytest.raises(DataError, match=r"\.png is gone: the images of a row are kept in the run's folder"):
        lost.result()


def test_fewer_prompts_are_told(metadata, tmp_path):
    metric = build(tmp_path, metadata)
    measure(metric, pictures(2), asked()[:2], tmp_path / "row", (0,))
    assert metric.notes() == ("geneval: 2 of the benchmark's 4 prompts",)
    measure(metric, pictures(4), asked(), tmp_path / "row", (0,))
    assert metric.notes() == ()


def test_prompts_and_metadata_that_are_none(metadata, tmp_path):
    metric = build(tmp_path, metadata)
    with pytest.raises(DataError, match="'a cat' is none of the benchmark's prompts; let the data set ask for those"):
        measure(metric, pictures(1), Cond(torch.tensor([-1]), ("a cat",)), tmp_path / "row", ())
    metric.reset()
    with pytest.raises(DataError, match="geneval: no images were given"):
        metric.result()
    other = tmp_path / "other.jsonl"
    other.write_text('{"tag": "two objects", "prompt": "a"}\n')
    with pytest.raises(DataError, match="the `tag` of 'a' must be one of single_object, two_object, counting, colors"):
        build(tmp_path, str(other))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "it ended well, but wrote no results.jsonl to the path of the request's `results`"),
        (scorers.GENEVAL.replace("os.listdir(folder):", "sorted(os.listdir(folder))[1:]:"),
         "1 of 4 images have no line, 00000/samples/0000.png for one"),
        (scorers.GENEVAL.replace('"tag": metadata["tag"]', '"tag": "colors"'), "but the line says else"),
        (scorers.GENEVAL.replace('"correct": right', '"correct": 1.0'), "`correct` must be true or false, not 1.0"),
        (scorers.GENEVAL.replace('"filename": path', '"filename": "x.png"'), "line 1 is of no image that was sent"),
        (scorers.GENEVAL.replace("for line in lines", "for line in lines * 2"), "line 5: .* is scored twice"),
        (scorers.GENEVAL.replace("json.dumps(line) for", "'{' for").replace("json.dumps(line) +", "'{' +"),
         "its results.jsonl: "),
    ],
)  # fmt: skip
def test_results_that_are_none(body, message, metadata, tmp_path):
    with pytest.raises(PluginError, match=message):
        measure(build(tmp_path, metadata, body), pictures(4), asked(), tmp_path / "row", (0,))


def test_lines_of_pandas_are_read():
    """As `DataFrame.to_json(orient="records", lines=True)` writes them: slashes are escaped, the last line ends."""
    line = (
        '{"filename":"\\/data\\/x\\/00000\\/samples\\/0001.png","tag":"counting","prompt":"a \\u2028 b","correct":true,'
        '"reason":"","metadata":"{\\"tag\\": \\"counting\\"}","details":"{}"}\n'
    )
    found = read_results(line, {"00000/samples/0001.png": {"tag": "counting", "prompt": "a \u2028 b"}})
    assert found["00000/samples/0001.png"]["correct"] is True


def test_a_trial_takes_any_prompts(tmp_path):
    spec = Geneval.model_validate({"use": "geneval", "command": ["conda", "run"], "metadata": "nowhere.jsonl"})
    small = spec.smoke()
    assert (small.command, small.metadata) == (STANDIN, None)
    metric = small.build(testing.context())
    found = measure(metric, pictures(4), asked(), tmp_path / "row", (0,))
    assert set(found) == {"geneval", "geneval_single_object"}
    assert metric.notes() == ()


def test_the_fingerprint_says_which_prompts_and_which_scorer(metadata, tmp_path):
    found = build(tmp_path, metadata).fingerprint()
    assert found == {
        "formula": "geneval/1 mean-over-tasks", "uint8": "truncate", "prompts": 4, "metadata": found["metadata"],
        "program scorer": "mine", "program version": 3,
    }  # fmt: skip
    (tmp_path / "less.jsonl").write_text("\n".join(LINES[:3]) + "\n")
    assert build(tmp_path, str(tmp_path / "less.jsonl")).fingerprint()["metadata"] != found["metadata"]

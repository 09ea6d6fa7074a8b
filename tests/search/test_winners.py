"""Searches for given conditions: the same in whatever company, priced, whole on the disk or not there."""

import csv
import itertools
import json

import pytest
import torch
from PIL import Image

from softdimo.errors import CheckpointError, DataError, SoftdimoError
from softdimo.inputs.encodings import Encodings
from softdimo.inputs.prompted import Prompted
from softdimo.kinds import Output, TextEncoder
from softdimo.math.init import Init
from softdimo.report import found
from softdimo.search.scoring import Scores, Weighted
from softdimo.search.wanted import of_labels, of_prompts, read_prompts
from softdimo.search.winners import Searcher
from softdimo_plugins.search.best_of_n import BestOfN
from softdimo_plugins.search.tteo import TTEO
from tests.helpers import CLASSES, Blobs, CountingTeacher, Painter
from tests.search.test_scoring import Bright, Deep, Right

ABOUT = {
    "identity": "x", "model": "tiny", "method": "climb", "settings": {"lr": 0.3}, "equation": "e_{best} = arg max_e R",
    "reward": "bright", "score": ["bright"], "held_out": ["right"], "most": 20.0, "seed": 0, "depends": {}, "lock": {},
}  # fmt: skip


class Described(CountingTeacher):
    """Conditioned on an encoding instead of a label."""

    def forward(self, e, cond, at=None, features=()):
        assert (cond.labels == -1).all()
        z = super().forward(e, cond, None, features).logits
        return Output(z + cond.tensors["states"].mean(1)[:, None, None, None] * z.cos())


class Letters(TextEncoder):
    """Mean letter of a prompt."""

    def encode(self, prompts):
        return {"states": torch.tensor([[float(ord(c) % 7) for c in (p + "     ")[:5]] for p in prompts])}


def searcher(**changes):
    made = {
        "net": CountingTeacher(strength=2.0), "tokenizer": Painter(), "init": Init(), "data": Blobs(),
        "score": Scores([Weighted("bright", Bright())]), "held_out": {"right": Right()},
        "method": TTEO(starts=2, iterations=3, unit=0.3, lr=0.3),
    }  # fmt: skip
    return Searcher(**(made | changes))


def several(**changes):
    return searcher(score=Scores([Weighted("bright", Bright()), Weighted("deep", Deep(), 2.0)], pool=4), **changes)


def results(folder):
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(folder.glob("conditions/*/result.json"))}


def timeless(result):
    return {k: v for k, v in result.items() if k not in ("seconds", "batch")}


def close(a, b):
    """Equal but for rounding."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == pytest.approx(b, abs=1e-5) if isinstance(a, float) else a == b


def pictures(folder, key):
    return {p.name: p.read_bytes() for p in (folder / "conditions" / key).glob("*.png")}


# What a condition gets


@pytest.mark.parametrize("method", [
    TTEO(starts=2, iterations=3, unit=0.3, lr=0.3, patience=2), TTEO(starts=2, candidates=5, iterations=2, unit=0.3),
    BestOfN(n=4),
])  # fmt: skip
def test_results_do_not_depend_on_the_batch_the_order_or_the_rows(tmp_path, method):
    asked = of_labels(["ant", "bee", "cow", "bee", "ant"], CLASSES)
    wholes = []
    for i, (size, rows, reverse) in enumerate([(5, None, False), (1, None, False), (2, 3, True), (3, 1, False)]):
        folder = tmp_path / str(i)
        small = method.model_copy(update={"rows": rows})
        several(method=small, batch_size=size, rows=rows, compare=True).run(asked[:: -1 if reverse else 1], folder)
        wholes.append(results(folder))
    assert len(wholes[0]) == 5
    for other in wholes[1:]:
        assert close({k: timeless(v) for k, v in wholes[0].items()}, {k: timeless(v) for k, v in other.items()})
    assert wholes[0]["bee-" + asked[1].key[-10:]]["trace"] != wholes[0]["bee-" + asked[3].key[-10:]]["trace"]


def test_a_result_says_what_happened(tmp_path):
    (asked,) = of_labels(["cow"], CLASSES)
    several(compare=True).run([asked], tmp_path)
    (result,) = results(tmp_path).values()
    assert (result["text"], result["label"], result["turn"], result["key"]) == ("cow", 2, 0, asked.key)
    assert result["budget"] == {"search": 20, "screening": 0, "calibration": 4, "total": 24}
    assert result["best_of"] == 20
    trace = torch.tensor(result["trace"]["score"])
    assert trace.shape == (2, 4)
    shown, won = result["shown"], result["winner"]
    assert list(shown) == ["one_step", "start", "step_1", "step_2", "step_3", "winner", "best_of_n"]
    path = [shown[name]["score"] for name in ("start", "step_1", "step_2", "step_3")]
    assert path == pytest.approx(trace[won["start"]].tolist(), abs=1e-5)
    assert shown["winner"]["score"] == pytest.approx(float(trace.max()), abs=1e-5)
    assert shown["one_step"]["score"] == pytest.approx(float(trace[0, 0]), abs=1e-5)
    assert shown["winner"]["score"] >= shown["one_step"]["score"]
    for row in shown.values():
        z = [(row["rewards"][n] - result["units"][n]["mean"]) / result["units"][n]["sd"] for n in ("bright", "deep")]
        assert row["score"] == pytest.approx(z[0] + 2 * z[1], abs=1e-4)
        assert set(row["held_out"]) == {"right"}
    raw = result["trace"]["rewards"]
    assert raw["bright"][won["start"]][won["iteration"]] == pytest.approx(
        shown["winner"]["rewards"]["bright"], abs=1e-6
    )


def test_the_budget_is_what_the_student_does(tmp_path):
    for method in (TTEO(starts=2, iterations=3, unit=0.3, patience=1, lr=3.0), BestOfN(n=5)):
        net, back = CountingTeacher(strength=2.0), []
        forward = net.forward

        def counted(e, cond, forward=forward, back=back, **kw):
            if e.requires_grad:
                e.register_hook(lambda g: back.append(len(g)))
            return forward(e, cond, **kw)

        net.forward = counted
        folder = tmp_path / method.use / str(id(net))
        several(net=net, method=method).run(of_labels(["ant", "cow"], CLASSES), folder)
        found = results(folder).values()
        shown = sum(len(r["shown"]) for r in found)
        assert net.rows + 2 * sum(back) - shown == sum(r["budget"]["total"] for r in found)


def test_best_of_n_costs_what_the_search_of_that_condition_cost(tmp_path):
    """Also where conditions stop at different times."""

    class Flat(Bright):
        def __call__(self, img, cond):
            return torch.where(cond.labels == 0, -img.mean((1, 2, 3)).relu().ceil(), super().__call__(img, cond))

    method = TTEO(starts=2, iterations=6, unit=0.3, lr=0.05, patience=1, decode="soft")
    made = searcher(score=Scores([Weighted("flat", Flat())]), method=method, compare=True)
    made.run(of_labels(["ant", "cow"], CLASSES), tmp_path)
    ant, cow = results(tmp_path).values()
    assert (ant["best_of"], cow["best_of"]) == (ant["budget"]["search"], cow["budget"]["search"])
    assert ant["best_of"] == 12 < cow["best_of"]
    assert [len(points) for points in ant["trace"]["score"]] == [2, 2]
    many = searcher(score=made.score, method=BestOfN(n=round(cow["best_of"]), decode="soft"))
    many.run(of_labels(["cow"], CLASSES), tmp_path / "many")
    (same,) = results(tmp_path / "many").values()
    assert same["shown"]["winner"]["score"] == pytest.approx(cow["shown"]["best_of_n"]["score"])
    assert list(same["shown"]) == ["one_step", "winner"], "nothing climbed, so there are no steps"


def test_pictures_have_their_own_size(tmp_path):
    (asked,) = of_labels(["cow"], CLASSES)
    searcher().run([asked], tmp_path)
    assert set(pictures(tmp_path, asked.key)) == {
        "one_step.png", "start.png", "step_1.png", "step_2.png", "step_3.png", "winner.png",
    }  # fmt: skip
    with Image.open(tmp_path / "conditions" / asked.key / "winner.png") as picture:
        assert (picture.size, picture.mode) == ((6, 4), "L")
        assert picture.info["Description"] == "cow: winner"


def test_another_seed_is_another_search(tmp_path):
    for seed in (0, 0, 1):
        searcher(seed=seed).run(of_labels(["ant"], CLASSES), tmp_path / f"{seed}{len(list(tmp_path.iterdir()))}")
    a, b, c = (next(iter(results(p).values())) for p in sorted(tmp_path.iterdir()))
    assert timeless(a) == timeless(b)
    assert a["trace"] != c["trace"]


# Prompts


def test_prompts_are_encoded_and_searched_apart(tmp_path):
    encoded = []

    class Counted(Letters):
        def encode(self, prompts):
            encoded.extend(prompts)
            return super().encode(prompts)

    data = Prompted(Blobs(), Encodings(Counted, torch.device("cpu")))
    made = searcher(net=Described(strength=2.0), data=data, score=Scores([Weighted("deep", Deep())]))
    asked = of_prompts(["a red  fox", "an owl\n", "a red fox"])
    made.run(asked, tmp_path)
    assert [each.text for each in asked] == ["a red fox", "an owl", "a red fox"]
    assert encoded.count("an owl") == 1
    assert len(found := results(tmp_path)) == 3
    assert asked[0].key.startswith("a_red_fox-")
    assert found[asked[0].key]["label"] == -1
    assert found[asked[0].key]["trace"] != found[asked[2].key]["trace"]
    made.run(asked[1:2], tmp_path / "alone")
    assert close(timeless(results(tmp_path / "alone")[asked[1].key]), timeless(found[asked[1].key]))


def test_what_can_be_asked_for(tmp_path):
    assert [each.label for each in of_labels(["cow", "0", "1"], CLASSES)] == [2, 0, 1]
    assert of_labels(["1"], ("2", "1", "0"))[0].label == 1, "a name before a number"
    for labels, said in ((["dog"], "no class is called 'dog'"), (["3"], "no class is called 3")):
        with pytest.raises(DataError, match=said):
            of_labels(labels, CLASSES)
    with pytest.raises(DataError, match="a prompt is empty"):
        of_prompts(["a", "  "])
    keys = [each.key for each in (*of_labels(["ant", "ant"], CLASSES), *of_prompts(["ant", "?!", "x" * 99, "../a"]))]
    assert len(set(keys)) == 6
    assert all(key.replace("_", "").replace("-", "").isalnum() for key in keys)
    assert max(map(len, keys)) <= 51


def test_prompts_of_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa fox\r\n\r\n  # an owl \n".encode())
    assert read_prompts(file) == ["a fox", "# an owl"]
    file.write_text("\n \n")
    with pytest.raises(DataError, match="holds no prompt"):
        read_prompts(file)
    file.write_bytes(b"\xff")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_prompts(file)
    with pytest.raises(DataError, match="No such file"):
        read_prompts(tmp_path / "none.txt")


# On the disk


def test_what_is_done_is_not_done_again(tmp_path):
    asked = of_labels(["ant", "bee", "cow"], CLASSES)
    searcher().run(asked[:2], tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")}
    made = searcher()
    heard = []
    made.run(asked, tmp_path, lambda each, result: heard.append(each.text))
    assert heard == ["cow"]
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    rows = made.net.rows
    made.run(asked, tmp_path)
    assert made.net.rows == rows


def test_a_comparison_that_is_missing_is_made(tmp_path):
    asked = of_labels(["ant"], CLASSES)
    searcher().run(asked, tmp_path)
    (plain,) = results(tmp_path).values()
    searcher(compare=True).run(asked, tmp_path)
    (compared,) = results(tmp_path).values()
    assert "best_of_n" in compared["shown"]
    assert compared["trace"] == plain["trace"]
    made = searcher()
    made.run(asked, tmp_path)
    assert made.net.rows == 0, "more than is wanted is no reason to search again"


@pytest.mark.parametrize("after", range(1, 6))
def test_what_was_stopped_goes_on_and_is_the_same(tmp_path, after):
    """Stopped in the middle of a batch: what came before is whole, and nothing half-written counts."""
    asked = of_labels(["ant", "bee", "cow"], CLASSES)
    searcher(batch_size=1).run(asked, tmp_path / "whole")
    made, calls = searcher(batch_size=1), itertools.count(1)
    forward = made.net.forward

    def stopped(e, cond, **kw):
        if next(calls) == 6 * after:
            raise KeyboardInterrupt
        return forward(e, cond, **kw)

    made.net.forward = stopped
    with pytest.raises(KeyboardInterrupt):
        made.run(asked, tmp_path / "parts")
    done = results(tmp_path / "parts")
    assert len(done) < 3
    searcher(batch_size=1).run(asked, tmp_path / "parts")
    whole, parts = results(tmp_path / "whole"), results(tmp_path / "parts")
    assert {k: timeless(v) for k, v in whole.items()} == {k: timeless(v) for k, v in parts.items()}
    for key in whole:
        assert pictures(tmp_path / "whole", key) == pictures(tmp_path / "parts", key)


def test_a_full_memory_says_what_to_turn(tmp_path):
    class Full(Bright):
        def __call__(self, img, cond):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(SoftdimoError, match=r"with 2 conditions and all images at once: set search\.rows"):
        searcher(score=Scores([Weighted("full", Full())])).run(of_labels(["ant", "bee"], CLASSES), tmp_path)


def test_a_damaged_result_is_named(tmp_path):
    (asked,) = of_labels(["ant"], CLASSES)
    searcher().run([asked], tmp_path)
    (tmp_path / "conditions" / asked.key / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"result\.json is damaged"):
        searcher().run([asked], tmp_path)


# Tables


def table(file):
    with file.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_everything_is_in_the_tables(tmp_path):
    asked = of_labels(["ant", "cow"], CLASSES)
    several(compare=True, method=TTEO(starts=2, iterations=3, unit=0.3, lr=0.3, patience=2)).run(asked, tmp_path)
    about = ABOUT | {"score": ["bright", "deep"]}
    found.publish(tmp_path, about, [each.key for each in asked])
    whole = json.loads((tmp_path / "search.json").read_text())
    assert [r["text"] for r in whole["conditions"]] == ["ant", "cow"]
    assert whole["missing"] == 0
    traces = table(tmp_path / "traces.csv")
    points = sum(len(p) for r in whole["conditions"] for p in r["trace"]["score"])
    assert len(traces) == points
    assert set(traces[0]) == {"condition", "label", "turn", "start", "iteration", "score", "bright", "deep"}
    last = whole["conditions"][1]["trace"]
    assert float(traces[-1]["deep"]) == pytest.approx(last["rewards"]["deep"][-1][-1])
    scores = table(tmp_path / "scores.csv")
    assert [row["image"] for row in scores[:7]] == list(whole["conditions"][0]["shown"])
    costs = {row["image"]: row["forward_equivalents"] for row in scores if row["condition"] == "cow"}
    total = whole["conditions"][1]["budget"]["total"]
    assert (float(costs["one_step"]), float(costs["winner"]), float(costs["best_of_n"])) == (1, total, total)
    assert costs["step_1"] == ""
    assert float(scores[-1]["held_out.right"]) == whole["conditions"][1]["shown"]["best_of_n"]["held_out"]["right"]


def test_conditions_of_earlier_commands_stay_on_record(tmp_path):
    first, second, third = of_labels(["ant", "cow", "bee"], CLASSES)
    searcher().run([first], tmp_path)
    found.record(tmp_path, ABOUT, [first.key])
    searcher().run([second], tmp_path)
    whole = found.record(tmp_path, ABOUT, [second.key, third.key])
    assert [r["text"] for r in whole["conditions"]] == ["cow", "ant"]
    assert whole["missing"] == 1

"""The table of metrics: what each row measures, determinism, resuming, and who may judge."""

import dataclasses
import json
import statistics

import pytest
import torch

from softdimo.errors import CheckpointError, DataError, RecipeError
from softdimo.evaluate import Pieces, Subject, evaluate
from softdimo.kinds import Metric
from softdimo.math.init import Init
from softdimo_plugins.metrics.accuracy import AccuracyMetric
from softdimo_plugins.metrics.extract import Seen
from softdimo_plugins.metrics.frechet import FrechetMetric
from softdimo_plugins.metrics.precision_recall import PrecisionRecallMetric
from softdimo_plugins.samplers.one_step import OneStep
from softdimo_plugins.samplers.random_order import RandomOrder
from tests.helpers import Blobs, CountingTeacher, Painter, Pooled

FEATURES, JUDGE = Pooled(1), Pooled(2)
TWO_STEPS = Subject("teacher 2", "teacher", CountingTeacher(), RandomOrder(steps=2))
STUDENT = Subject("student", "student", CountingTeacher(), OneStep(init=Init()))


def metrics():
    return {
        "frechet": FrechetMetric(FEATURES),
        "precision_recall": PrecisionRecallMetric(FEATURES, 3, 1000, 1000),
        "accuracy": AccuracyMetric(JUDGE),
    }


def pieces(*rows, **changes):
    return dataclasses.replace(Pieces(Blobs(), metrics, rows, tokenizer=Painter()), **changes)


def run(tmp_path, *rows, samples=72, seeds=(0, 1, 2), batch_size=10, name="eval.json", more=None, **changes):
    more = more or {}
    return evaluate(
        pieces(*rows, **changes), tmp_path / name, samples=samples, seeds=seeds, batch_size=batch_size, **more
    )


def by_name(result):
    return {row["name"]: row for row in result["rows"]}


def timeless(result):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result["rows"]]


def test_rows_and_their_numbers(tmp_path):
    result = run(tmp_path, Subject("real", "real"), Subject("tokenizer", "reconstruction"), TWO_STEPS, STUDENT)
    assert json.loads((tmp_path / "eval.json").read_text()) == result
    rows = by_name(result)
    assert list(rows) == ["real held out", "real halves", "tokenizer", "teacher 2", "student"]
    for row in rows.values():
        assert set(row["metrics"]) == {"fd", "precision", "recall", "accuracy", "class_tv"}
        for entry in row["metrics"].values():
            if len(entry["values"]) > 1:
                assert entry["sd"] == pytest.approx(statistics.stdev(entry["values"]))
            if row["of"] not in ("teacher", "student"):
                assert entry["value"] == pytest.approx(statistics.fmean(entry["values"]))
    assert len(rows["student"]["metrics"]["fd"]["values"]) == 3
    assert (rows["teacher 2"]["passes"], rows["student"]["passes"], rows["tokenizer"]["passes"]) == (2, 1, 0)
    assert rows["student"]["sampler"]["init"]["r_init"] == 0.6
    assert {name: row["n"] for name, row in rows.items()} == {
        "real held out": 30, "real halves": 30, "tokenizer": 60, "teacher 2": 72, "student": 72,
    }  # fmt: skip
    assert rows["student"]["n_seed"] == 24
    # accuracy is a mean, so that of all images is the seeds' mean; the distance of all images is another number
    accuracy, fd = (rows["student"]["metrics"][key] for key in ("accuracy", "fd"))
    assert accuracy["value"] == pytest.approx(statistics.fmean(accuracy["values"]))
    assert fd["value"] < statistics.fmean(fd["values"])


def test_the_value_is_that_of_all_images_together(tmp_path):
    """One row over three seeds against the same images given to one metric by hand."""
    kept = []

    class Keeping(FrechetMetric):
        def add(self, seen):
            kept.append(seen.features)
            super().add(seen)

    made = iter((FrechetMetric(FEATURES), Keeping(FEATURES), *(FrechetMetric(FEATURES) for _ in range(3))))
    row = by_name(run(tmp_path, STUDENT, metrics=lambda: {"fd": next(made)}))["student"]
    by_hand = FrechetMetric(FEATURES)
    train = Blobs().source("train").get(torch.arange(60))
    by_hand.reference(train.images, train.cond)
    assert len(torch.cat(kept)) == 72
    by_hand.add(Seen(torch.cat(kept), torch.empty(0), torch.empty(0)))
    assert row["metrics"]["fd"]["value"] == pytest.approx(by_hand.result()["fd"], rel=1e-9)


def test_real_rows_are_what_they_say(tmp_path):
    """Recomputed by hand: the judge on held-out images, and held-out against training."""
    rows = by_name(run(tmp_path, Subject("real", "real")))
    data, by_hand = Blobs(), metrics()
    train, held = (data.source(split).get(torch.arange(n)) for split, n in (("train", 60), ("held_out", 30)))
    right = JUDGE(held.images)[1].argmax(-1) == held.cond.labels
    entry = rows["real held out"]["metrics"]
    assert entry["accuracy"]["value"] == pytest.approx(float(right.float().mean()))
    assert entry["accuracy"]["sd"] is None
    assert entry["accuracy"]["values"] == [entry["accuracy"]["value"]]
    by_hand["frechet"].reference(train.images, train.cond)
    by_hand["frechet"].update(held.images, held.cond)
    assert entry["fd"]["value"] == pytest.approx(by_hand["frechet"].result()["fd"], rel=1e-9)
    assert rows["real held out"]["split"] == "held_out"
    assert len(rows["real halves"]["metrics"]["fd"]["values"]) == 3
    assert len(set(rows["real halves"]["metrics"]["fd"]["values"])) == 3


def test_halves_are_disjoint_and_differ_by_seed(tmp_path):
    seen = []

    class Spy(Metric):
        def __init__(self):
            self.real, self.fake = [], []
            seen.append(self)

        def reference(self, img, cond):
            self.real += img.flatten(1).tolist()

        def reset(self):
            self.fake = []

        def update(self, img, cond):
            self.fake += img.flatten(1).tolist()

        def result(self):
            return {"n": float(len(self.fake))}

        def fingerprint(self):
            return {"reference": len(self.real)}

    run(tmp_path, Subject("real", "real"), metrics=lambda: {"spy": Spy()}, samples=100)
    whole, _, *halves = seen
    assert len(whole.real) == 60
    assert [(len(half.real), len(half.fake)) for half in halves] == [(30, 30)] * 3
    everything = sorted(whole.real)
    for half in halves:
        assert sorted(half.real + half.fake) == everything
    assert len({str(sorted(half.real)) for half in halves}) == 3


def test_the_real_row_stands_there_even_unasked(tmp_path):
    assert list(by_name(run(tmp_path, STUDENT))) == ["real held out", "real halves", "student"]


def test_reconstruction_uses_held_out_images_or_says_so(tmp_path):
    few = by_name(run(tmp_path, Subject("tok", "reconstruction")))["tok"]
    assert few["split"] == "train"
    assert "only 30 held-out images" in few["notes"][0]
    enough = by_name(run(tmp_path, Subject("tok", "reconstruction"), data=Blobs(60, 500), samples=600))["tok"]
    assert (enough["split"], enough["n"]) == ("held_out", 500)
    assert not any("held-out" in note for note in enough["notes"])


def test_metrics_say_their_reservations_in_the_row(tmp_path):
    row = by_name(run(tmp_path, STUDENT, samples=12, batch_size=4))["student"]
    assert row["notes"] == ["fd: 4 generated images for 4 features, so the covariance is singular"]


def test_the_same_again_whatever_the_order_and_the_global_seed(tmp_path):
    torch.manual_seed(1)
    first = run(tmp_path, TWO_STEPS, STUDENT, name="a.json")
    torch.manual_seed(2)
    second = run(tmp_path, STUDENT, TWO_STEPS, name="b.json")
    a, b = by_name(first), by_name(second)
    assert {n: r["metrics"] for n, r in a.items()} == {n: r["metrics"] for n, r in b.items()}
    assert first["evaluator_hash"] == second["evaluator_hash"]
    other = by_name(run(tmp_path, STUDENT, seeds=(5, 6, 7), name="c.json"))["student"]
    assert other["metrics"]["fd"]["values"] != a["student"]["metrics"]["fd"]["values"]
    one = by_name(run(tmp_path, STUDENT, seeds=(1,), samples=24, name="d.json"))["student"]
    assert one["metrics"]["fd"]["values"][0] == a["student"]["metrics"]["fd"]["values"][1]
    assert one["metrics"]["fd"]["sd"] is None


def test_augmented_copies_are_no_reference(tmp_path):
    class Doubled(Blobs):
        def source(self, split):
            source = super().source(split)
            if split == "train":
                source.images, source.labels = source.images.repeat(2, 1, 1, 1), source.labels.repeat(2)
            return source

        def reference(self):
            return Blobs.source(self, "train")

    doubled = run(tmp_path, Subject("tok", "reconstruction"), data=Doubled(), samples=100, name="a.json")
    plain = run(tmp_path, Subject("tok", "reconstruction"), data=Blobs(), samples=100, name="b.json")
    assert by_name(doubled)["real halves"]["metrics"] == by_name(plain)["real halves"]["metrics"]
    assert by_name(doubled)["tok"]["n"] == 60
    assert doubled["evaluator"]["frechet"] == plain["evaluator"]["frechet"]
    assert plain["evaluator"]["frechet"]["reference_size"] == 60


def test_a_part_of_the_reference_and_a_part_of_the_table(tmp_path):
    part = run(tmp_path, STUDENT, more={"reference": 20, "real": False})
    assert list(by_name(part)) == ["student"]
    assert part["evaluator"]["frechet"]["reference_size"] == 20
    whole = run(tmp_path, STUDENT, name="whole.json")
    assert whole["evaluator_hash"] != part["evaluator_hash"]


def test_labels_are_balanced(tmp_path):
    class Wanted(AccuracyMetric):
        def add(self, seen):
            self.seen = [*getattr(self, "seen", []), *seen.labels.tolist()]
            super().add(seen)

    judges = []
    run(tmp_path, STUDENT, metrics=lambda: judges.append(Wanted(JUDGE)) or {"a": judges[-1]})
    for student in (judges[0].seen[-24:], judges[1].seen[-24:]):
        assert [student.count(k) for k in range(3)] == [8, 8, 8]


class Sampled:
    """A one-step sampler that counts its calls."""

    def __init__(self, fail_after=None):
        self.inner, self.calls, self.fail_after = OneStep(init=Init()), 0, fail_after

    def __repr__(self):
        return "Sampled"

    def passes(self):
        return 1.0

    def sample(self, net, cond, rng):
        self.calls += 1
        if self.fail_after is not None and self.calls > self.fail_after:
            raise KeyboardInterrupt
        return self.inner.sample(net, cond, rng)


def test_an_interrupted_evaluation_goes_on(tmp_path):
    broken, good = Sampled(fail_after=4), Sampled()
    rows = [Subject("one", "student", CountingTeacher(), good), Subject("two", "teacher", CountingTeacher(), broken)]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *rows)
    halfway = json.loads((tmp_path / "eval.json").read_text())
    assert list(by_name(halfway)) == ["real held out", "real halves", "one"]
    assert good.calls == 9
    rows[1] = dataclasses.replace(rows[1], sampler=Sampled())
    finished = run(tmp_path, *rows)
    assert good.calls == 9, "the finished row was kept"
    assert rows[1].sampler.calls == 5, "so were the batches of the other one"
    fresh = run(tmp_path, *rows, name="fresh.json")
    assert timeless(finished) == timeless(fresh)


def test_a_row_is_measured_again_when_what_it_depends_on_changes(tmp_path):
    net = CountingTeacher()
    sampler = Sampled()
    row = Subject("student", "student", net, sampler)

    def calls(**changes):
        before = sampler.calls
        run(tmp_path, changes.pop("row", row), **changes)
        return sampler.calls - before

    assert calls() == 9
    assert calls() == 0
    assert calls(row=dataclasses.replace(row, name="renamed")) == 0
    assert calls(samples=71) == 9
    assert calls(samples=47, seeds=(0, 1)) == 6
    with torch.no_grad():
        net.out[0, 0] += 1
    assert calls(samples=47, seeds=(0, 1)) == 6
    assert calls(samples=47, seeds=(0, 1), metrics=lambda: {"frechet": FrechetMetric(JUDGE)}) == 6
    assert calls(samples=47, seeds=(0, 1), metrics=lambda: {"frechet": FrechetMetric(JUDGE)}, data=Blobs(50)) == 6
    other = Painter()
    with torch.no_grad():
        other.paint.mul_(2)
    changed = {"metrics": lambda: {"frechet": FrechetMetric(JUDGE)}, "data": Blobs(50), "tokenizer": other}
    assert calls(samples=47, seeds=(0, 1), **changed) == 6


def test_a_damaged_file_is_named(tmp_path):
    for text in ("{", "[]", '{"rows": 3}'):
        (tmp_path / "eval.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"eval\.json is damaged.*delete it"):
            run(tmp_path, STUDENT)


def test_soft_decode_is_measured_on_expected_codes(tmp_path):
    soft = dataclasses.replace(STUDENT, name="soft", decode="soft")
    rows = by_name(run(tmp_path, STUDENT, soft))
    assert rows["soft"]["decode"] == "soft"
    assert rows["soft"]["metrics"]["fd"]["value"] != rows["student"]["metrics"]["fd"]["value"]
    with pytest.raises(RecipeError, match="`teacher 2` asks for a soft decode"):
        run(tmp_path, dataclasses.replace(TWO_STEPS, decode="soft"))


def test_faults_in_rows_and_metrics_are_named(tmp_path):
    with pytest.raises(RecipeError, match="two rows are called 'student'"):
        run(tmp_path, STUDENT, STUDENT)
    with pytest.raises(RecipeError, match="`b` repeats the number `fd`"):
        run(tmp_path, STUDENT, metrics=lambda: {"a": FrechetMetric(FEATURES), "b": FrechetMetric(JUDGE)})
    named = run(tmp_path, STUDENT, metrics=lambda: {"a": FrechetMetric(FEATURES), "b": FrechetMetric(JUDGE, "judge")})
    assert set(by_name(named)["student"]["metrics"]) == {"fd", "judge/fd"}
    with pytest.raises(RecipeError, match="`student` needs a tokenizer"):
        run(tmp_path, STUDENT, tokenizer=None)
    with pytest.raises(RecipeError, match="needs weights and a sampler"):
        run(tmp_path, Subject("x", "student"))
    with pytest.raises(DataError, match="`held_out` has no images"):
        run(tmp_path, STUDENT, data=Blobs(60, 0))


def test_networks_are_measured_in_evaluation_mode_and_put_back(tmp_path):
    net = CountingTeacher().train()
    modes = []

    class Watching(Sampled):
        def sample(self, net, cond, rng):
            modes.append(net.training)
            return super().sample(net, cond, rng)

    run(tmp_path, Subject("s", "student", net, Watching()))
    assert not any(modes)
    assert net.training


def test_progress_counts_to_the_end(tmp_path):
    said = []
    run(tmp_path, STUDENT, more={"progress": lambda what, done, total: said.append((what, done, total))})
    assert {("reference", 60, 60), ("real held out", 30, 30), ("student, seed 2", 24, 24)} <= set(said)
    assert all(done <= total for _, done, total in said)


def test_features_are_computed_once_per_image(tmp_path):
    """Two metrics over one network: one pass per batch of every row."""
    net = Pooled(4)
    run(tmp_path, STUDENT, metrics=lambda: {"f": FrechetMetric(net), "p": PrecisionRecallMetric(net, 3, 99, 99)})
    reference, held, halves, student = 6, 3, 3 * (3 + 3), 3 * 3
    assert net.calls == reference + held + halves + student

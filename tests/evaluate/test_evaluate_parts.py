"""A row that is interrupted goes on with the batches that are missing, and its numbers are the same to the last bit."""

import json
from pathlib import Path

import pytest
import torch

from softdimo.errors import CheckpointError, WeightsError
from softdimo.evaluate import Pieces, Subject, evaluate, parts
from softdimo.files import read_weights, save_weights
from softdimo.kinds import Metric
from softdimo.runs.ranks import ALONE, Ranks
from softdimo_plugins.metrics.accuracy import AccuracyMetric
from softdimo_plugins.metrics.frechet import FrechetMetric
from softdimo_plugins.metrics.inception_score import InceptionScoreMetric
from softdimo_plugins.metrics.precision_recall import PrecisionRecallMetric
from tests import ranks
from tests.helpers import Blobs, CountingTeacher, Failing, Painter, Pooled


def metrics():
    features, judge = Pooled(1), Pooled(2)
    return {
        "frechet": FrechetMetric(features),
        "precision_recall": PrecisionRecallMetric(features, 3, None, None),
        "inception_score": InceptionScoreMetric(judge, 2),
        "accuracy": AccuracyMetric(judge),
    }


def measure(path, sampler, metrics=metrics, who=ALONE, samples=72, seeds=(0, 1, 2)):
    """The student's row: 3 seeds of 3 batches, as (metrics, images)."""
    subject = Subject("student", "student", CountingTeacher(), sampler)
    pieces = Pieces(Blobs(), metrics, [subject], Painter(), ranks=who)
    table = evaluate(pieces, path, samples=samples, seeds=seeds, batch_size=10, real=False)
    return table["rows"][0]["metrics"], table["rows"][0]["n"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("unbroken") / "eval.json", Failing())


def files(folder):
    return sorted(p.name for p in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("after", [0, 1, 4, 8])
@pytest.mark.parametrize(("error", "every"), [(KeyboardInterrupt, 1e9), (KeyboardInterrupt, -1), (OSError, -1)])
def test_an_interrupted_row_goes_on(after, error, every, tmp_path, monkeypatch, unbroken):
    """Stopped (which saves what is pending), and killed (which leaves what was saved: here every batch)."""
    monkeypatch.setattr(parts, "EVERY", every)
    with pytest.raises(error):
        measure(tmp_path / "eval.json", Failing(after, error))
    assert len(files(tmp_path)) == (after if every < 0 else min(after, 1))
    again = Failing()
    assert measure(tmp_path / "eval.json", again) == unbroken
    assert again.calls == 9 - after
    assert [p.name for p in tmp_path.iterdir()] == ["eval.json"]


def test_it_may_be_interrupted_again_and_again(tmp_path, unbroken):
    calls = 0
    for after in (2, 3, 1):
        sampler = Failing(after)
        with pytest.raises(KeyboardInterrupt):
            measure(tmp_path / "eval.json", sampler)
        calls += sampler.calls
    last = Failing()
    assert measure(tmp_path / "eval.json", last) == unbroken
    assert calls + last.calls == 9


def test_a_short_row_leaves_no_files(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(parts, "save_weights", lambda *a: saved.append(a))
    measure(tmp_path / "eval.json", Failing())
    assert not saved


def test_each_tensor_is_saved_once(tmp_path):
    """Two metrics of one network saw the same tensors, and do so again when they are read."""
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "eval.json", Failing(2))
    (name,) = files(tmp_path)
    assert len(read_weights(tmp_path / "eval-parts" / name)) == 1 + 2 * (2 * 2 + 1), "features, logits; labels"
    kept = []

    class Keeping(FrechetMetric):
        def add(self, seen):
            kept.append(seen.features)
            super().add(seen)

    shared = Pooled(1)
    made = lambda: metrics() | {"frechet": Keeping(shared), "other": Keeping(shared, "other")}  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "two.json", Failing(1), made)
    kept.clear()
    measure(tmp_path / "two.json", Failing(), made)
    assert kept[0] is kept[1], "read from the file"


def test_the_parts_of_another_evaluation_are_left_alone(tmp_path, unbroken):
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "eval.json", Failing(5))
    other = Failing()
    measure(tmp_path / "eval.json", other, lambda: {"frechet": FrechetMetric(Pooled(1))})
    assert other.calls == 9
    assert not files(tmp_path), "the table is whole: nothing waits for them"


def test_damaged_parts_are_named(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "eval.json", Failing(5))
    (path,) = (tmp_path / "eval-parts").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + b"???")
    with pytest.raises(WeightsError, match=f"{path.name} was changed"):
        measure(tmp_path / "eval.json", Failing())
    path.write_bytes(whole)
    index = [[0, 10, {"nobody": ["1"]}]]
    save_weights(path, {"index": torch.tensor(list(json.dumps(index).encode()), dtype=torch.uint8)})
    with pytest.raises(CheckpointError, match=r"is no part of this evaluation.*delete it"):
        measure(tmp_path / "eval.json", Failing())


def test_a_metric_that_keeps_something_else_starts_over(tmp_path, unbroken):
    class Own(Metric):
        """As a third party may write one: it looks at images."""

        def __init__(self):
            self.inner = FrechetMetric(Pooled(1))

        def reference(self, img, cond):
            self.inner.reference(img, cond)

        def reset(self):
            self.inner.reset()

        def update(self, img, cond):
            self.inner.update(img, cond)

        def result(self):
            return self.inner.result()

        def fingerprint(self):
            return {"mine": 1}

    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "eval.json", Failing(5), lambda: {"own": Own()})
    assert not files(tmp_path)
    again = Failing()
    found, _ = measure(tmp_path / "eval.json", again, lambda: {"own": Own()})
    assert again.calls == 9
    assert found["fd"] == unbroken[0]["fd"]


def test_rows_of_real_images_go_on_too(tmp_path, monkeypatch):
    """Held-out images, and halves, whose metrics are others for every seed."""

    def table(name, fail=None):
        class Breaking(Blobs):
            gets = 0

            def source(self, split):
                source, get = super().source(split), type(self)

                def counted(index, inner=source.get):
                    get.gets += 1
                    if get.gets == fail:
                        raise KeyboardInterrupt
                    return inner(index)

                source.get = counted
                return source

        pieces = Pieces(Breaking(), metrics, [Subject("real", "real"), Subject("codes", "reconstruction")], Painter())
        found = evaluate(pieces, tmp_path / name, samples=72, seeds=(0, 1), batch_size=10)
        return [{k: v for k, v in row.items() if k != "seconds"} for row in found["rows"]]

    expected = table("whole.json")
    monkeypatch.setattr(parts, "EVERY", -1)
    for fail in (8, 14, 22):
        with pytest.raises(KeyboardInterrupt):
            table(f"{fail}.json", fail)
        assert table(f"{fail}.json") == expected


# several ranks

EVEN = {"samples": 80, "seeds": (0, 1)}
"""4 batches a seed, so that two ranks that fail after as many batches fail in the same round."""


def on_a_rank(path, after, ends):
    """Evaluations that are interrupted after some batches of this rank, and perhaps a last one that ends.

    Gives the last one's numbers and calls.
    """
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    me = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    for each in after:
        with pytest.raises(KeyboardInterrupt):
            measure(Path(path), Failing(each), who=me, **EVEN)
        torch.distributed.barrier()
    last = Failing()
    return (measure(Path(path), last, who=me, **EVEN), last.calls) if ends else None


def test_any_number_of_ranks_goes_on_where_any_number_stopped(tmp_path):
    """Of 8 batches: two ranks after 1 and 2 each; one process after 3, then two; two after 3 each, then one."""
    alone = measure(tmp_path / "alone.json", Failing(), **EVEN)
    one, two, three = (tmp_path / f"{name}.json" for name in ("one", "two", "three"))
    with pytest.raises(KeyboardInterrupt):
        measure(two, Failing(3), **EVEN)
    found = ranks.run(2, every_case, str(one), str(two), str(three))
    for case, left in ((0, 2), (1, 5)):
        assert [each[case][0] for each in found] == [alone, alone]
        assert sum(each[case][1] for each in found) == left
    assert files(tmp_path)
    last = Failing()
    assert measure(three, last, **EVEN) == alone
    assert last.calls == 2
    assert not files(tmp_path)


def every_case(one, two, three):
    """What a rank does of the test above, in one process, whose start takes longer."""
    return on_a_rank(one, (1, 2), True), on_a_rank(two, (), True), on_a_rank(three, (3,), False)

"""Streams resume exactly, and ranks share out what one process would have drawn."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from softdimo.inputs.cursor import Conditions, Labels, Shuffled
from softdimo.kinds import Batch, Cond, Data, ImageShape


class Source:
    """Sample i has the label i mod 7; asked for images, it counts."""

    def __init__(self, n: int = 23) -> None:
        self.n, self.asked = n, 0

    def __len__(self) -> int:
        return self.n

    def get(self, index: torch.Tensor) -> Batch:
        self.asked += 1
        return Batch(Cond(index % 7), torch.zeros(len(index), 1, 2, 2))


def drawn(stream: Labels | Shuffled, n: int) -> list[list[int]]:
    return [next(stream).cond.labels.tolist() for _ in range(n)]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_one_global_batch_of_labels(balanced: bool, world: int) -> None:
    whole = drawn(Labels(10, 6, 5, balanced=balanced), 9)
    parts = [drawn(Labels(10, 6 // world, 5, rank, world, balanced), 9) for rank in range(world)]
    assert [[x for part in parts for x in part[i]] for i in range(9)] == whole


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("done", [0, 1, 4])
def test_labels_resume_exactly(balanced: bool, done: int) -> None:
    stream = Labels(10, 4, 1, balanced=balanced)
    drawn(stream, done)
    state = json.loads(json.dumps(stream.state_dict()))
    again = Labels(10, 2, 1, 1, 2, balanced)  # under another number of ranks
    again.load_state_dict(state)
    assert [batch[2:] for batch in drawn(stream, 5)] == drawn(again, 5)


def test_balanced_labels_are_permutations_even_where_a_batch_is_longer() -> None:
    stream = Labels(5, 12, 0, balanced=True)
    labels = [x for batch in drawn(stream, 5) for x in batch]
    rounds = [labels[i : i + 5] for i in range(0, len(labels), 5)]
    assert all(sorted(part) == list(range(5)) for part in rounds)
    assert len(set(map(tuple, rounds))) > 1


def test_uniform_labels_are_uniform_and_not_balanced() -> None:
    counts = Counter(x for batch in drawn(Labels(10, 100, 0), 100) for x in batch)
    expected, freedom = 1000, 9
    chi = sum((counts[k] - expected) ** 2 / expected for k in range(10))
    assert 1 < chi < 4 * freedom  # 0 would be balance, which independent draws never reach
    assert drawn(Labels(10, 8, 0), 3) != drawn(Labels(10, 8, 1), 3)


def test_conditions_ask_for_no_images_where_labels_can_be_had_alone() -> None:
    class Lazy(Source):
        def cond(self, index: torch.Tensor) -> Cond:
            return Cond(index % 7)

    class Fixed(Data):
        image, classes = ImageShape(1, 2, 2), tuple("abcdefg")

        def __init__(self, source: Source) -> None:
            self.only = source

        def source(self, split: str) -> Source:
            return self.only

    eager, lazy = Fixed(Source()), Fixed(Lazy())
    expected = drawn(eager.stream(4, 0), 12)
    for data, asked in ((eager, 24), (lazy, 0)):
        stream = Conditions(data).stream(4, 0)
        assert next(stream).images is None
        assert [expected[0], *drawn(stream, 11)] == expected
        assert data.only.asked == asked
    assert not Conditions(eager).has_images
    assert torch.equal(Conditions(eager).conditions(9).labels, torch.arange(9) % 7)

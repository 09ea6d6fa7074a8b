"""The rewards: what they score, that samples never mix, and which of them have a gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, ImageShape
from softdimo_plugins.features.cnn import CNN
from softdimo_plugins.rewards.class_log_prob import ClassLogProb
from softdimo_plugins.rewards.connected import Connected, label_pieces

COND = Cond(torch.zeros(1, dtype=torch.long))


def classifier_reward(seed=0):
    """The reward and its network, as a run makes them."""
    made = {}

    def make(spec):
        torch.manual_seed(seed)
        net = spec.build(context)
        with torch.no_grad():
            net(torch.rand(32, 1, 12, 12, generator=torch.Generator().manual_seed(1)))
        made[spec] = net
        return net

    context = Context(ImageShape(1, 12, 12), ("a", "b", "c"), make)
    spec = CNN(width=4, features=8)
    return ClassLogProb(classifier=spec).build(context), made[spec]


def images(n=6, seed=0):
    return torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def test_class_log_prob_is_the_log_probability_of_the_label():
    reward, net = classifier_reward()
    img = images()
    every = torch.stack([reward(img, Cond(torch.full((6,), k))) for k in range(3)], 1)
    torch.testing.assert_close(every.exp().sum(1), torch.ones(6))
    assert torch.equal(every.argmax(1), net(img)[1].argmax(1))
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    torch.testing.assert_close(reward(img, Cond(labels)), every[torch.arange(6), labels])


def test_class_log_prob_is_differentiable_and_frozen():
    reward, net = classifier_reward()
    assert reward.differentiable
    assert not net.training
    img = images().requires_grad_()
    reward(img, Cond(torch.arange(6) % 3))[2].backward()
    assert img.grad[2].abs().sum() > 0
    assert img.grad[[0, 1, 3, 4, 5]].abs().sum() == 0
    assert all(p.grad is None for p in net.parameters())
    better = img.detach() + 0.05 * img.grad / img.grad.norm()
    assert reward(better, Cond(torch.arange(6) % 3))[2] > reward(img, Cond(torch.arange(6) % 3))[2]


def test_class_log_prob_needs_labels():
    with pytest.raises(RecipeError, match="needs a class label for each image"):
        classifier_reward()[0](images(2), Cond(torch.tensor([1, -1])))


def draw(text):
    """[1 3 H W] of an ASCII picture, # is ink."""
    rows = [[float(c == "#") for c in line] for line in text.split()]
    return torch.tensor(rows).expand(1, 3, -1, -1)


SPIRAL = """
#########
........#
#######.#
#.....#.#
#.###.#.#
#.#...#.#
#.#####.#
#.......#
#########
"""


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ("### ... ###", 1 / 2),
        ("##.. ##.. ...#", 4 / 5),
        ("#.#.#", 1 / 3),
        ("#.. .#. ..#", 1),  # corners touch
        ("... ...", 0),
        ("### ###", 1),
        ("#", 1),
        (SPIRAL, 1),
        (SPIRAL.replace("........#\n#######", ".........\n#######"), 39 / 48),
    ],
)
def test_connected_is_the_share_of_the_largest_piece(picture, expected):
    assert Connected()(draw(picture), COND).item() == pytest.approx(expected)


def test_connected_dark_ink_and_threshold():
    img = draw("##. ... ..#")
    assert Connected(ink="dark")(1 - img, COND).item() == pytest.approx(2 / 3)
    assert Connected(ink="dark")(img, COND).item() == 1
    faint = torch.where(img > 0, img * torch.tensor([[1.0, 1, 1], [1, 1, 1], [1, 1, 0.4]]), 0)
    assert Connected()(faint, COND).item() == 1
    assert Connected(threshold=0.3)(faint, COND).item() == pytest.approx(2 / 3)


def flood(ink):
    """Sizes of the pieces by depth-first search, sorted."""
    left, sizes = {tuple(p) for p in ink.nonzero().tolist()}, []
    while left:
        stack, size = [left.pop()], 0
        while stack:
            y, x = stack.pop()
            size += 1
            for near in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                if near in left:
                    left.remove(near)
                    stack.append(near)
        sizes.append(size)
    return sorted(sizes)


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(bool, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9))))
def test_pieces_are_those_of_a_flood_fill(pictures):
    ink = torch.from_numpy(pictures)
    pieces = label_pieces(ink)
    assert torch.equal(pieces > 0, ink)
    for one, number in zip(ink, pieces, strict=True):
        assert sorted(torch.unique(number[one], return_counts=True)[1].tolist()) == flood(one)
    scores = Connected()(ink.float()[:, None].expand(-1, 3, -1, -1), COND)
    expected = [max(flood(one), default=0) / max(1, int(one.sum())) for one in ink]
    assert scores.tolist() == pytest.approx(expected)


def test_pieces_of_large_pictures():
    ink = torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.4
    for one, number in zip(ink, label_pieces(ink), strict=True):
        assert sorted(torch.unique(number[one], return_counts=True)[1].tolist()) == flood(one)


def test_connected_says_that_it_has_no_gradient():
    reward = Connected()
    assert reward.differentiable is False
    assert not reward(images().requires_grad_(), COND).requires_grad

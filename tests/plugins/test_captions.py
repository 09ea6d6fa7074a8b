"""The small world of captions: what they say, what is drawn for them, and what is found in the drawing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Cond, Context, Features, ImageShape
from softdimo_plugins.captions import grammar
from softdimo_plugins.captions.grammar import COLORS, OPPOSITE, TASKS, Caption, Dice, Group, contradictions, draw, parse
from softdimo_plugins.captions.judge import Judge, Seen, shows
from softdimo_plugins.captions.pieces import CROP, find
from softdimo_plugins.captions.scenes import CANVAS, PALETTE, ROLLS, Thing
from softdimo_plugins.captions.typical import closest, prototype
from softdimo_plugins.data.caption_pieces import CaptionPieces
from softdimo_plugins.data.captions import CaptionData, Captions, CaptionSource, conditions

BLANK = Context(ImageShape(1, 1, 1), (), print)
ANIMALS = Captions().animals


@cache
def data(**settings: int) -> CaptionData:
    return Captions(samples=700, held_out=280, **settings).build(BLANK)


def drawn(n: int) -> list[Caption]:
    rolls = torch.rand(n, 8, generator=torch.Generator().manual_seed(0)).tolist()
    return [draw(TASKS[i % len(TASKS)], ANIMALS, Dice(row)) for i, row in enumerate(rolls)]


def test_a_caption_says_what_its_text_says():
    for i, caption in enumerate(drawn(1400)):
        assert parse(str(caption)) == caption
        assert caption.task == TASKS[i % len(TASKS)]


@pytest.mark.parametrize(
    ("text", "groups", "relation", "task"),
    [
        ("an elephant", [Group(1, "elephant")], "", "single"),
        ("a yellow elephant", [Group(1, "elephant", "yellow")], "", "colors"),
        ("three sheep", [Group(3, "sheep")], "", "counting"),
        ("a cat and an elephant", [Group(1, "cat"), Group(1, "elephant")], "and", "two"),
        ("a bear below a bird", [Group(1, "bear"), Group(1, "bird")], "below", "position"),
        ("a red bear and a blue bird", [Group(1, "bear", "red"), Group(1, "bird", "blue")], "and", "attribution"),
        ("two red bears left of a blue bird", [Group(2, "bear", "red"), Group(1, "bird", "blue")], "left of", "mixed"),
    ],
)
def test_texts(text, groups, relation, task):
    assert parse(text) == Caption(tuple(groups), relation)
    assert parse(text).task == task
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "does not say some animals"),
        ("a bear ", "does not say some animals"),
        ("a unicorn", "an animal .*bear"),
        ("five bears", "a number .*a, two, three, four"),
        ("two bear", "does not say some animals"),
        ("a pink bear", "a color .*red"),
        ("a big red bear", "does not say some animals"),
        ("a elephant", "should be written 'an elephant'"),
        ("a bear left of", "does not say some animals"),
        ("a bear and a cat and a bird", "does not say some animals"),
        ("a bear and two bears", "names one animal twice"),
    ],
)
def test_what_is_no_caption(text, told):
    with pytest.raises(DataError, match=told):
        parse(text)


def facts(caption: Caption, color: str = "red") -> list[Seen]:
    """Things that a caption is true of, in places where no other relation holds."""
    out = []
    for i, group in enumerate(caption.groups):
        side = {"left of": (i, 0), "right of": (-i, 0), "above": (0, i), "below": (0, -i)}.get(caption.relation, (i, 0))
        out += [Seen(group.animal, group.color or color, 10.0 * side[0], 10.0 * side[1])] * group.count
    return out


def test_contradictions_are_false_wherever_the_caption_is_true():
    kinds = Counter()
    for caption in drawn(210):
        assert shows(facts(caption), caption)
        others = list(contradictions(caption, ANIMALS))
        assert others
        for other in others:
            assert parse(str(other)) == other != caption
            assert not any(shows(facts(caption, color), other) for color in COLORS)
            kinds[other.content == caption.content] += 1
    assert min(kinds.values()) > 100  # other animals or numbers, and the same ones in other colors or places


def test_a_verdict_needs_every_thing_and_no_other():
    caption = parse("two red bears left of a blue bird")
    right = [Seen("bear", "red", 5, 5), Seen("bear", "red", 8, 25), Seen("bird", "blue", 20, 9)]
    assert shows(right, caption)
    assert shows(right[::-1], caption)
    for wrong in (
        right[:2],
        [*right, Seen("cat", "green", 30, 30)],
        [right[0], right[1]._replace(color="blue"), right[2]],
        [right[0], right[1]._replace(animal="cat"), right[2]],
        [right[0], right[1]._replace(x=21.0), right[2]],
        [right[0]._replace(color="blue"), right[1]._replace(color="blue"), right[2]._replace(color="red")],
    ):
        assert not shows(wrong, caption)
    for relation, opposite in OPPOSITE.items():
        one = Caption((Group(1, "bear"), Group(1, "cat")), relation)
        assert shows(facts(one), one)
        assert not shows(facts(one), replace(one, relation=opposite))


def shown(source: CaptionSource, i: int) -> tuple[Caption, list[Thing], Tensor]:
    caption, scene = source.scene(i)
    return caption, list(scene), source.get(torch.tensor([i])).images


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_what_is_drawn_is_found(split):
    source = data().source(split)
    batch = source.get(torch.arange(280))
    pieces = find(batch.images)
    found: list[list[Seen]] = [[] for _ in range(280)]
    for image, color, (x, y) in zip(pieces.image.tolist(), pieces.color.tolist(), pieces.center.tolist(), strict=True):
        found[image].append(Seen("", list(PALETTE)[color], x / 32, y / 32))
    wrong = 0
    for i, seen in enumerate(found):
        things = source.scene(i)[1]
        nearest = [min(things, key=lambda t: (t.x - s.x) ** 2 + (t.y - s.y) ** 2) for s in seen]
        wrong += sorted(t.color for t in things) != sorted(s.color for s in seen)
        wrong += any(t.color != s.color or abs(t.x - s.x) > 0.15 for t, s in zip(nearest, seen, strict=True))
    assert wrong <= 3  # thin silhouettes fall apart now and then


def test_pieces_of_constructed_images():
    img = torch.tensor(CANVAS)[:, None, None].repeat(3, 1, 32, 32).clone()
    red, blue = (torch.tensor(PALETTE[c])[:, None, None] for c in ("red", "blue"))
    img[0, :, 4:10, 4:10] = red
    img[0, :, 4:10, 10:16] = blue  # touching, of another color
    img[1, :, 2:8, 2:8] = red
    img[1, :, 8:14, 8:14] = red  # touching at a corner: one piece
    img[1, :, 20:22, 20:24] = blue  # a speck
    img[1, :, 30, 30] = 0.5 * red[:, 0, 0] + 0.5 * img[2, :, 0, 0]
    pieces = find(img)
    assert pieces.image.tolist() == [0, 0, 1]
    assert [list(PALETTE)[c] for c in pieces.color.tolist()] == ["red", "blue", "red"]
    assert torch.allclose(pieces.center, torch.tensor([[6.5, 6.5], [12.5, 6.5], [7.5, 7.5]]))
    assert pieces.crops.shape == (3, 1, CROP, CROP)
    assert torch.allclose(pieces.crops[0], pieces.crops[1], atol=1e-5)
    assert pieces.crops[2, 0, 2:7, 9:14].max() < 0.01  # the empty quarter of the two squares
    assert len(find(img[2:])) == 0


class Nearest(Features):
    """Names pieces by the prototype that is most like them."""

    width = 1

    def __init__(self) -> None:
        super().__init__()
        pieces = CaptionPieces(of=Captions(samples=600)).build(BLANK).source("train").get(torch.arange(600))
        self.means = torch.stack([pieces.images[pieces.cond.labels == k].mean(0) for k in range(len(ANIMALS))])

    def forward(self, img: Tensor) -> tuple[Tensor, Tensor]:
        apart = (img[:, None] - self.means).square().flatten(2).sum(-1)
        return apart[:, :1], -apart


def test_the_judge_tells_true_captions_from_false_ones():
    judge, batch = Judge(Nearest(), ANIMALS), data().source("held_out").get(torch.arange(140))
    assert judge(batch.images, batch.cond).float().mean() > 0.9
    captions = [parse(p) for p in batch.cond.prompts]
    for k in range(4):
        options = [list(contradictions(c, ANIMALS)) for c in captions]
        wrong = conditions([o[(7 * i + k) % len(o)] for i, o in enumerate(options)])
        assert judge(batch.images, wrong).float().mean() < 0.02
    with pytest.raises(DataError, match="no captions"):
        judge(batch.images, Cond(batch.cond.labels))


def test_an_image_is_a_function_of_seed_and_index():
    some = torch.tensor([3, 60, 699])
    images = data().source("train").get(some).images
    longer = Captions(samples=900, held_out=280).build(BLANK)
    assert torch.equal(longer.source("train").get(some).images, images)
    assert not torch.equal(data(seed=1).source("train").get(some).images, images)
    assert not torch.equal(data().source("held_out").get(some[:2]).images, images[:2])
    assert longer.fingerprint() != data().fingerprint() != data(seed=1).fingerprint()


def test_splits_share_no_silhouette():
    train, held = (data().source(split).bank.silhouettes for split in ("train", "held_out"))
    both = torch.cat([held, held.flip(-1)]).flatten(1)
    assert (torch.cdist(train.flatten(1), both).min(1).values > 1e-3).all()
    assert len(train) > 6 * 60
    assert len(held) > 6 * 6


def test_conditions_take_the_tasks_in_turn():
    cond = data().conditions(70)
    assert Counter(parse(p).task for p in cond.prompts) == dict.fromkeys(TASKS, 10)
    assert cond.prompts[:30] == data().conditions(30).prompts
    assert (cond.labels == -1).all()
    some = torch.arange(20)
    assert data().source("train").cond(some).prompts == data().source("train").get(some).cond.prompts


def test_unknown_names_are_told():
    with pytest.raises(DataError, match="no animal is called unicorn; there are bear"):
        Captions(animals=("bear", "unicorn")).build(BLANK)
    with pytest.raises(DataError, match="no task is called magic"):
        Captions(tasks=("single", "magic")).build(BLANK)
    with pytest.raises(DataError, match="no split 'test'"):
        data().source("test")


def test_the_dice_last():
    """The longest scene takes fewer numbers than there are."""
    caption = Caption((Group(4, "bear"),))
    assert 6 + 2 + 4 * sum(group.count for group in caption.groups) <= ROLLS
    assert set(grammar.COLORS) == set(PALETTE)


def test_alike_is_alike_up_to_mirroring():
    rng = torch.Generator().manual_seed(0)
    shape = torch.zeros(14, 14)
    shape[3:9, 2:7] = 1
    many = shape + 0.1 * torch.rand(40, 14, 14, generator=rng)
    many[::2] = many[::2].flip(-1)
    others = torch.rand(10, 14, 14, generator=rng)
    mean = prototype(torch.cat([many, others]))
    assert min((mean - shape - 0.05).abs().max(), (mean.flip(-1) - shape - 0.05).abs().max()) < 0.1
    rows, mirrored = closest(torch.cat([many, others]), mean, 40)
    assert sorted(rows.tolist()) == list(range(40))
    assert len({(r % 2, m) for r, m in zip(rows.tolist(), mirrored.tolist(), strict=True)}) == 2

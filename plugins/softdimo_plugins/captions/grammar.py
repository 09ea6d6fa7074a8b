"""The captions: `a bear`, `three cats`, `two red bears left of a blue bird`. Text <-> what it says, both ways.

caption  = group [relation group]
group    = ("a" | "an" | "two" | "three" | "four") [color] animal
relation = "and" | "left of" | "right of" | "above" | "below"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from softdimo.errors import DataError

ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
COLORS = ("red", "yellow", "green", "blue", "purple")
COUNTS = ("a", "two", "three", "four")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLURALS = {"sheep": "sheep"}
"""Plurals that are not the singular with an s."""
TASKS = ("single", "two", "counting", "colors", "position", "attribution", "mixed")
"""What captions ask for: GenEval's six tasks, and count, color and position at once."""


@dataclass(frozen=True)
class Group:
    """Some animals of one kind, perhaps of one color."""

    count: int
    """1 to 4."""
    animal: str
    color: str | None = None

    def __str__(self) -> str:
        words = [self.color] if self.color else []
        words.append(self.animal if self.count == 1 else plural(self.animal))
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article if self.count == 1 else COUNTS[self.count - 1], *words])


@dataclass(frozen=True)
class Caption:
    """What a caption says: these animals and no others. Its text is `str(caption)`; `parse` reads it."""

    groups: tuple[Group, ...]
    """One or two, of different animals."""
    relation: str = ""
    """`and`, or where the first group is with respect to the second; empty for one group."""

    def __str__(self) -> str:
        return f" {self.relation} ".join(map(str, self.groups))

    @property
    def task(self) -> str:
        """Which of `TASKS` this is."""
        colored = any(group.color for group in self.groups)
        several = any(group.count > 1 for group in self.groups)
        if len(self.groups) == 1:
            plain = "colors" if colored else "single"
            return "mixed" if several and colored else "counting" if several else plain
        if several or (colored and self.relation != "and"):
            return "mixed"
        return "position" if self.relation != "and" else "attribution" if colored else "two"

    @property
    def content(self) -> tuple[tuple[str, int], ...]:
        """How many of which animals, in alphabetical order: images of captions that differ here differ."""
        return tuple(sorted((group.animal, group.count) for group in self.groups))


def plural(animal: str) -> str:
    """More than one of it."""
    return PLURALS.get(animal, f"{animal}s")


@lru_cache(maxsize=2**16)
def parse(text: str) -> Caption:
    """What a caption says. DataError where it is none of this grammar, with what was expected."""
    for relation in ("and", *OPPOSITE):
        first, found, second = text.partition(f" {relation} ")
        if found:
            caption = Caption((_group(first, text), _group(second, text)), relation)
            break
    else:
        caption = Caption((_group(text, text),))
    if len({group.animal for group in caption.groups}) < len(caption.groups):
        raise DataError(f"the caption {text!r} names one animal twice; give the two groups different animals")
    if str(caption) != text:
        raise DataError(f"the caption {text!r} should be written {str(caption)!r}")
    return caption


def _group(text: str, whole: str) -> Group:
    count, *middle, animal = text.split(" ") if " " in text else ("", text)
    names = {name if count in ("a", "an") else plural(name): name for name in ANIMALS}
    if count not in ("an", *COUNTS) or len(middle) > 1 or animal not in names or not set(middle) <= set(COLORS):
        raise DataError(
            f"in the caption {whole!r}, {text!r} does not say some animals; write a number ({', '.join(COUNTS)}), "
            f"perhaps a color ({', '.join(COLORS)}), and an animal ({', '.join(ANIMALS)}), like 'two red bears'"
        )
    return Group(1 if count == "an" else COUNTS.index(count) + 1, names[animal], middle[0] if middle else None)


class Dice:
    """Uniform numbers in [0, 1), one after the other, as choices."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers = iter(numbers)

    def fraction(self) -> float:
        """The next number."""
        return next(self._numbers)

    def number(self, n: int) -> int:
        """One of 0 to n - 1."""
        return int(self.fraction() * n)

    def one(self, options: Sequence[str]) -> str:
        """One of the options."""
        return options[self.number(len(options))]

    def two(self, options: Sequence[str]) -> tuple[str, str]:
        """Two different ones."""
        first = self.number(len(options))
        second = (first + 1 + self.number(len(options) - 1)) % len(options)
        return options[first], options[second]


def draw(task: str, animals: Sequence[str], dice: Dice) -> Caption:
    """A caption of a task, uniformly; at most six numbers of the dice."""
    match task:
        case "single":
            return Caption((Group(1, dice.one(animals)),))
        case "counting":
            return Caption((Group(2 + dice.number(3), dice.one(animals)),))
        case "colors":
            return Caption((Group(1, dice.one(animals), dice.one(COLORS)),))
    one, two = dice.two(animals)
    match task:
        case "two":
            return Caption((Group(1, one), Group(1, two)), "and")
        case "position":
            return Caption((Group(1, one), Group(1, two)), dice.one(tuple(OPPOSITE)))
    red, blue = dice.two(COLORS)
    if task == "attribution":
        return Caption((Group(1, one, red), Group(1, two, blue)), "and")
    more = dice.number(2)
    return Caption((Group(2 - more, one, red), Group(1 + more, two, blue)), dice.one(tuple(OPPOSITE)))


def contradictions(caption: Caption, animals: Sequence[str]) -> Iterator[Caption]:
    """Captions that differ in one thing and are false of every image that `caption` is true of."""
    here = [group.animal for group in caption.groups]
    for i, group in enumerate(caption.groups):
        others: list[Group] = [replace(group, animal=name) for name in animals if name not in here]
        others += [replace(group, count=n) for n in range(1, 5) if n != group.count and _fits(caption, i, n)]
        others += [replace(group, color=color) for color in COLORS if group.color and color != group.color]
        for other in others:
            yield replace(caption, groups=(*caption.groups[:i], other, *caption.groups[i + 1 :]))
    if len(caption.groups) == 1:
        return
    first, second = caption.groups
    if caption.relation in OPPOSITE:
        yield replace(caption, relation=OPPOSITE[caption.relation])
    if first.color != second.color:
        yield replace(caption, groups=(replace(first, color=second.color), replace(second, color=first.color)))
    yield from (Caption((group,)) for group in caption.groups)


def _fits(caption: Caption, i: int, count: int) -> bool:
    """Whether there is room for `count` animals in group i."""
    return sum(group.count for j, group in enumerate(caption.groups) if j != i) + count <= 4

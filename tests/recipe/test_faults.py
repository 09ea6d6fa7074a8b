"""Every kind of mistake is one line that begins with where it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from softdimo.errors import RecipeError
from softdimo.recipe import load
from tests.recipe.toy import STUDENT


def changed(old: str, new: str) -> str:
    assert STUDENT.count(old) == 1, old
    return STUDENT.replace(old, new)


CASES = [
    ("  batch_size: 4", "  batch_sise: 4", [
        "recipe.yaml:7:1 train.batch_size: is missing: Samples per iteration and device.",
        "recipe.yaml:9:3 train.batch_sise: unknown key; did you mean `batch_size`? (known: network, ",
    ]),
    ("use: toy_data", "use: toy_dada", [
        "recipe.yaml:2:13 data.use: no data is called `toy_dada`; did you mean `toy_data`? (installed: ",
    ]),
    ("{use: toy_discriminator}", "{use: toy_discriminator, bloks: [1]}", [
        "recipe.yaml:16:47 train.terms.1.discriminator.bloks: unknown key; did you mean `blocks`? (known: use, ",
    ]),
    ("{use: toy_discriminator}", "{use: toy_discriminator, blocks: [1, x]}", [
        "recipe.yaml:16:59 train.terms.1.discriminator.blocks.1: must be a whole number, not the text `x`",
    ]),
    ("{use: toy_discriminator}", "{blocks: [1]}", [
        "recipe.yaml:16:7 train.terms.1.discriminator: names no discriminator: add `use: <name>`",
    ]),
    ("{use: toy_discriminator}", "[toy_discriminator]", [
        "recipe.yaml:16:7 train.terms.1.discriminator: must be a discriminator: a mapping with `use: <name>`, "
        "not a list",
    ]),
    ("{use: toy_discriminator}", "{use: 3}", [
        "recipe.yaml:16:28 train.terms.1.discriminator.use: must be the name of a discriminator",
    ]),
    ("  iterations: 10", "  iterations: ten", [
        "recipe.yaml:8:15 train.iterations: must be a whole number, not the text `ten`",
    ]),
    ("  iterations: 10", '  iterations: "10"', [
        "recipe.yaml:8:15 train.iterations: must be a whole number, not the text `10`",
    ]),
    ("  iterations: 10", "  iterations: true", ["recipe.yaml:8:15 train.iterations: must be a whole number, not true"]),
    ("  iterations: 10", "  iterations: 1.5", ["recipe.yaml:8:15 train.iterations: must be a whole number, not 1.5"]),
    ("  iterations: 10", "  iterations: 0", ["recipe.yaml:8:15 train.iterations: must be at least 1, not 0"]),
    ("  iterations: 10", "  iterations:", ["recipe.yaml:8:14 train.iterations: must be a whole number, not null"]),
    ("  iterations: 10", "  iterations: {a: 1}", [
        "recipe.yaml:8:3 train.iterations: must be a whole number, not a mapping",
    ]),
    ("  iterations: 10", "  iterations: 10\n  ema: {warmup: 1}", [
        "recipe.yaml:9:17 train.ema.warmup: must be true or false, not 1",
    ]),
    ("  iterations: 10", "  iterations: 10\n  ema: {half_lives: 3}", [
        "recipe.yaml:9:21 train.ema.half_lives: must be a list, not 3",
    ]),
    ("  iterations: 10", "  iterations: 10\n  ema: {half_lives: [true]}", [
        "recipe.yaml:9:9 train.ema.half_lives: must be a number, not a list",
    ]),
    ("  iterations: 10", "  iterations: 10\n  label_drop: 1.5", [
        "recipe.yaml:9:15 train.label_drop: must be at most 1, not 1.5",
    ]),
    ("  iterations: 10", "  iterations: 10\n  checkpoint_minutes: .inf", [
        "recipe.yaml:9:23 train.checkpoint_minutes: must be finite, not inf",
    ]),
    ("title: Toy", "title: 3", ["recipe.yaml:1:8 title: must be text, not 3"]),
    ("title: Toy\n", "", ["recipe.yaml:1:1 title: is missing: One line for people."]),
    ("title: Toy", "title: Toy\niterations: 3", [
        "recipe.yaml:2:1 iterations: unknown key; did you mean `train.iterations`? (known: title, ",
    ]),
    ("title: Toy", "title: Toy\nschedule: cosin", [
        "recipe.yaml:2:11 schedule: must be `arccos`, `cosine`, `linear`, `square`, `root` or `uniform`, "
        "not the text `cosin`; did you mean `cosine`?",
    ]),
    ("{ratio: 0.5, of: first}", "many", [
        "recipe.yaml:15:15 train.terms.1.weight: must be a number or a mapping, not the text `many`",
    ]),
    ("{ratio: 0.5, of: first}", "{ratio: -1, of: first}", [
        "recipe.yaml:15:23 train.terms.1.weight.ratio: must be greater than 0, not -1",
    ]),
    ("{ratio: 0.5, of: first}", "{ration: 1}", [
        "recipe.yaml:15:7 train.terms.1.weight.ratio: is missing: Target ",
        "recipe.yaml:15:16 train.terms.1.weight.ration: unknown key; did you mean `ratio`? (known: ratio, of, ",
    ]),
    ("  width: 8", "  width: 9", ["recipe.yaml:4:1 teacher: width 9 is not a multiple of heads 2"]),
    ("  width: 8", "  weights: [a]", ["recipe.yaml:6:3 teacher.weights: must be text or a mapping, not a list"]),
    ("  width: 8", "  weights: {recipe: none.yaml}", ["recipe.yaml:6:21 teacher.weights.recipe: "]),
    ("  width: 8", '  weights: ""', ["recipe.yaml:6:12 teacher.weights: is not a path"]),
    ("    - use: toy_loss\n      name: first", "    - use: toy_broken", [
        "recipe.yaml:11:12 train.terms.0.use: the loss `toy_broken` must subclass softdimo.spec.LossSpec; tell its ",
    ]),
    ("score: {use: toy_reward}", 'score: {use: toy_reward, judge: "hf://bad/bad/bad"}', [
        "recipe.yaml:28:3 search.score: the reward `toy_reward` fails on these settings (RuntimeError: a bug of ",
    ]),
    ("score: {use: toy_reward}", "score: [{reward: {use: toy_reward}, wight: 2}]", [
        "recipe.yaml:28:39 search.score.0.wight: unknown key; did you mean `weight`? (known: name, reward, weight)",
    ]),
    ("score: {use: toy_reward}", "score: [{reward: {use: toy_reward, jugde: a}}, {use: toy_reward}]", [
        "recipe.yaml:28:38 search.score.0.reward.jugde: unknown key; did you mean `judge`?",
        "recipe.yaml:28:50 search.score.1.reward: is missing: The reward.",
        "recipe.yaml:28:51 search.score.1.use: unknown key (known: name, reward, weight)",
    ]),
    ("score: {use: toy_reward}", "score: []", ["recipe.yaml:28:3 search.score: must have at least 1 items, has 0"]),
    ("score: {use: toy_reward}", "score: toy_reward", [
        "recipe.yaml:28:10 search.score: must be a reward: a mapping with `use: <name>`, not the text `toy_reward`",
    ]),
    ("  seeds: [0, 1, 2]", "  seeds: []", ["recipe.yaml:19:3 eval.seeds: must have at least 1 items, has 0"]),
    ("{name: real, of: real}", "{name: a/b, of: real}", [
        "recipe.yaml:23:14 eval.rows.0.name: must be text without `/`",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), CASES, ids=[new.strip()[:40] for _, new, _ in CASES])
def test_one_mistake(faults, old, new, expected):
    lines = faults(changed(old, new))
    assert len(lines) == len(expected), lines
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(beginning), lines


def test_all_faults_at_once_in_the_order_of_the_file(faults):
    text = changed("  width: 8", "  widht: 8").replace("iterations: 10", "iterations: x").replace("toy_metric", "nix")
    places = [line.split(" ")[0] for line in faults(text + "title: again\n")]
    assert places == ["recipe.yaml:6:3", "recipe.yaml:8:15", "recipe.yaml:21:12", "recipe.yaml:33:1"]


def test_the_fault_of_a_component_names_what_is_installed(faults):
    (line,) = faults(changed("use: toy_metric", "use: toy_reward"))
    assert line.startswith("recipe.yaml:21:12 eval.metrics.0.use: no metric is called `toy_reward`")
    assert "toy_metric" in line


def test_defaults_that_are_settings_are_changed_not_replaced(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(changed("      name: first", "      name: first\n      player: {optimizer: {lr: 1e-3}, every: 2}"))
    player = load(file).recipe.train.terms[0].player
    assert (player.every, player.accumulate, player.optimizer.lr) == (2, 4, 1e-3)


def test_control_characters_and_huge_values_stay_on_one_line(faults):
    (line,) = faults(changed("title: Toy", 'title: Toy\n"\\e[31m\\nred": 1'))
    assert line.startswith("recipe.yaml:2:1 ")
    assert line.isprintable()
    (line,) = faults(changed("iterations: 10", f"iterations: {'x' * 5000}"))
    assert len(line) < 200
    (line,) = faults(changed("iterations: 10", f"iterations: 0x{'f' * 20000}"))
    assert line == "recipe.yaml:8:15 train.iterations: a number of more than 100 characters"


def test_a_missing_recipe_names_its_neighbors(tmp_path):
    (tmp_path / "teacher.yaml").write_text(STUDENT)
    with pytest.raises(RecipeError, match=r"teecher\.yaml: the recipe does not exist; did you mean `teacher\.yaml`\?"):
        load(tmp_path / "teecher.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(RecipeError):
        load("nul\0character.yaml")


def test_the_recipe_of_a_run_folder(tmp_path):
    (tmp_path / "recipe.yaml").write_text(STUDENT)
    assert load(tmp_path).path == Path(tmp_path / "recipe.yaml")

"""`softdimo search` for conditions: recipes, run folders, exports, prompts; what it writes, refuses, goes on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from softdimo import recipe as recipes
from softdimo.build import PRODUCT
from softdimo.cli.find import find
from softdimo.cli.main import main
from softdimo.errors import CheckpointError, DataError, Interrupted, RecipeError, SoftdimoError, WeightsError
from softdimo.export import export
from softdimo.runs.lineage import cache_name
from softdimo.search.winners import Searcher
from tests import ranks, tiny

SECTION = """\
search:
  batch_size: 1
  score: {use: class_log_prob, classifier: &net {use: cnn, width: 4, features: 4, weights: {recipe: judge.yaml}}}
  held_out: [{name: ink, reward: {use: connected}}]
  methods:
    - {name: climb, search: {use: tteo, starts: 2, iterations: 2}}
    - {name: draw, search: {use: best_of_n, n: 3}}
"""
CPU = ("hardware.accelerator=cpu", "hardware.threads=1")


def finished(root: Path, extra: str = "") -> Path:
    """As `tiny.finished`, with more lines in the student's recipe; and recipes that search with it."""
    home = tiny.write(root).parent
    student = home / "student.yaml"
    student.write_text(student.read_text() + extra)
    for seed, name in enumerate(("tokenizer", "teacher", "student", "judge")):
        loaded = recipes.load(home / f"{name}.yaml")
        place = home / "runs" / ("student" if name == "student" else f"cache/{cache_name(loaded)}")
        tiny.finish(loaded, place, seed + 11)
    head = f"title: Tiny search\nbase: student.yaml\ntrain: null\n{SECTION}"
    (home / "search.yaml").write_text(head + "  weights: runs/student\n")
    (home / "section.yaml").write_text(head + "  weights: runs/student\n")
    return home


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("find"))


@pytest.fixture
def home(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of its own, where commands run."""
    folder = Path(shutil.copytree(made, tmp_path / "home"))
    monkeypatch.chdir(folder)
    for run in (folder / "runs").rglob("recipe.yaml"):  # it names the recipes where they were made
        run.write_text(run.read_text().replace(str(made), str(folder)))
    return folder


def whole(folder: Path) -> dict:
    return json.loads((folder / "search.json").read_text())


def scores(folder: Path) -> dict[str, list]:
    return {f"{r['text']} {r['turn']}": r["trace"]["score"] for r in whole(folder)["conditions"]}


def test_a_recipe_is_searched_by_labels(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "search",
        "search.yaml",
        "--labels",
        "odd,even",
        "-l",
        "1",
        "--compare",
        "--out",
        "out",
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines()] == ["odd", "even", "odd", "report"]
    assert "14 forward-equivalents" in said
    found = whole(home / "out")
    assert [r["text"] for r in found["conditions"]] == ["odd", "even", "odd"]
    assert (found["method"], found["score"], found["held_out"], found["missing"]) == (
        "climb", ["class_log_prob"], ["ink"], 0)  # fmt: skip
    assert {r["budget"]["total"] for r in found["conditions"]} == {14}
    assert {r["best_of"] for r in found["conditions"]} == {14}
    for name in ("report.html", "scores.csv", "traces.csv"):
        assert (home / "out" / name).stat().st_size > 100
    for result in found["conditions"]:
        for name in ("start", "winner"):
            with Image.open(home / "out" / "conditions" / result["key"] / f"{name}.png") as picture:
                assert picture.size == (8, 8)


def test_run_folders_and_exports_give_the_same(home: Path) -> None:
    kept = find("search.yaml", ["odd", "even"], out=Path("a"), overrides=CPU)
    assert kept == Path("a")
    find("runs/student", ["odd", "even"], out=Path("b"), overrides=CPU, section="section.yaml")
    export(Path("runs/student"), Path("model"))
    find("model", ["odd", "even"], out=Path("c"), overrides=CPU, section="section.yaml")
    assert scores(home / "a") == scores(home / "b") == scores(home / "c")
    assert whole(home / "a")["identity"] == whole(home / "b")["identity"] == whole(home / "c")["identity"]


def test_an_export_takes_overrides_alone(home: Path) -> None:
    export(Path("runs/student"), Path("model"))
    shutil.rmtree("runs")
    search = "search={score: {use: connected}, methods: [{name: draw, search: {use: best_of_n, n: 2}}]}"
    find("model", ["odd"], overrides=[*CPU, search, "seed=4"])
    found = whole(Path("found/model"))
    assert (found["method"], found["seed"], found["score"]) == ("draw", 4, ["connected"])
    assert list(found["conditions"][0]["shown"]) == ["one_step", "winner"]


def test_an_export_without_a_search_says_what_to_do(home: Path) -> None:
    export(Path("runs/student"), Path("model"))
    with pytest.raises(RecipeError, match=r"model does not say what to search for: name a recipe.*--with RECIPE"):
        find("model", ["odd"])
    lost = "search={score: {use: class_log_prob, classifier: {use: cnn, weights: {recipe: gone.yaml}}}, methods: [{name: d, search: {use: tteo}}]}"  # noqa: E501
    with pytest.raises(RecipeError, match=r"(?s)gone\.yaml does not exist.*comes without the recipes.*--with"):
        find("model", ["odd"], overrides=[lost])


def test_the_method_is_the_first_or_the_one_that_is_named(home: Path) -> None:
    find("search.yaml", ["odd"], out=Path("a"), overrides=CPU, method="draw")
    assert whole(home / "a")["method"] == "draw"
    with pytest.raises(
        RecipeError, match=r"no method is called `drew`; did you mean `draw`\? \(there are: climb; draw\)"
    ):
        find("search.yaml", ["odd"], method="drew")


def test_several_rewards_are_told_apart(home: Path) -> None:
    several = "search.score=[{reward: {use: class_log_prob, classifier: {use: cnn, width: 4, features: 4, weights: {recipe: judge.yaml}}}}, {name: again, weight: 0.5, reward: {use: class_log_prob, classifier: {use: cnn, width: 4, features: 4, weights: {recipe: judge.yaml}}}}]"  # noqa: E501
    find("search.yaml", ["odd"], out=Path("a"), overrides=[*CPU, several, "search.pool=3", "search.rows=2"])
    found = whole(home / "a")
    (result,) = found["conditions"]
    assert found["score"] == ["class_log_prob", "again"]
    assert result["budget"] == {"search": 14, "screening": 0, "calibration": 3, "total": 17}
    assert set(result["trace"]["rewards"]) == {"class_log_prob", "again"}
    assert "our choice" in found["reward"]
    assert "(R_i - m_i) / s_i" in found["equation"]


# Going on


def test_the_same_command_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find("search.yaml", ["odd", "even", "odd"], out=Path("whole"), overrides=CPU, say=lambda text: None)
    run = Searcher.run

    def stopped(self: Searcher, wanted, folder, found) -> None:
        run(self, wanted[:1], folder, found)
        raise KeyboardInterrupt

    monkeypatch.setattr(Searcher, "run", stopped)
    with pytest.raises(Interrupted, match=r"out keeps what is done\. Run the same command again to go on"):
        find("search.yaml", ["odd", "even", "odd"], out=Path("out"), overrides=CPU)
    assert [r["text"] for r in whole(home / "out")["conditions"]] == ["odd"]
    assert "2 conditions not searched yet" in (home / "out" / "report.html").read_text()
    first = next((home / "out" / "conditions").glob("*/result.json"))
    before = first.stat().st_mtime_ns
    monkeypatch.setattr(Searcher, "run", run)
    capsys.readouterr()
    assert main(["search", "search.yaml", "-l", "odd,even,odd", "-o", "out", "--device", "cpu", "--threads", "1"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["even", "odd", "report"]
    assert first.stat().st_mtime_ns == before
    assert scores(home / "out") == scores(home / "whole")


def test_a_folder_belongs_to_its_settings(home: Path) -> None:
    find("search.yaml", ["odd"], out=Path("a"), overrides=CPU)
    for changes, said in (
        (["seed=1"], "the seed"), (["init.r_init=0.5"], "the init"),
        (["search.methods.climb.search.lr=0.2"], "the settings of the search"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=rf"differ from this one in {said};.*--fresh"):
            find("search.yaml", ["odd"], out=Path("a"), overrides=[*CPU, *changes])
    before = whole(home / "a")
    find(
        "search.yaml",
        ["odd"],
        out=Path("a"),
        overrides=[
            *CPU,
            "search.rows=1",
            "search.batch_size=9",
            "search.checkpoint=true",
            "search.methods.climb.search.rows=2",
        ],
    )
    assert whole(home / "a")["conditions"] == before["conditions"], "how it is computed is no other search"
    find("search.yaml", ["even"], out=Path("a"), overrides=[*CPU, "seed=1"], fresh=True)
    assert [r["text"] for r in whole(home / "a")["conditions"]] == ["even"]


def test_folders_of_others_are_not_written_into(home: Path) -> None:
    (home / "mine" / "conditions").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no searches; give another --out"):
        find("search.yaml", ["odd"], out=Path("mine"), overrides=CPU, fresh=True)
    assert [p.name for p in (home / "mine").iterdir() if p.name[0] != "."] == ["conditions"]
    find("search.yaml", ["odd"], out=Path("a"), overrides=CPU)
    (home / "a" / "search.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"search\.json is damaged .*--fresh to begin again"):
        find("search.yaml", ["odd"], out=Path("a"), overrides=CPU)
    find("search.yaml", ["odd"], out=Path("a"), overrides=CPU, fresh=True)
    assert whole(home / "a")["missing"] == 0
    with pytest.raises(CheckpointError, match="is a run folder; give another --out"):
        find("search.yaml", ["odd"], out=Path("runs/student"), overrides=CPU, fresh=True)
    assert (home / "runs/student" / PRODUCT).is_file()


def test_a_full_disk_or_memory_does_not_lose_what_was_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Searcher.run

    def full(self: Searcher, wanted, folder, found) -> None:
        run(self, wanted[:1], folder, found)
        raise SoftdimoError("the device's memory is full")

    monkeypatch.setattr(Searcher, "run", full)
    with pytest.raises(SoftdimoError, match="memory is full"):
        find("search.yaml", ["odd", "even"], out=Path("out"), overrides=CPU)
    assert len(whole(home / "out")["conditions"]) == 1


def test_two_ranks_find_what_one_finds(home: Path) -> None:
    find("search.yaml", ["odd", "even", "odd"], out=Path("one"), overrides=CPU, say=lambda text: None)
    command = ("search", home / "search.yaml", "-l", "odd,even,odd", "--device", "cpu", "--threads", "1", "--out")
    both = ranks.commands(2, (*command, home / "two"), home / "said")
    assert [each.wait(300) for each in both] == [0, 0], [(home / "said" / f"said-{r}").read_text() for r in (0, 1)]
    assert scores(home / "one") == scores(home / "two")


# What is refused


def test_what_cannot_be_searched_is_told(home: Path) -> None:
    for arguments, error, said in (
        (("search.yaml", ["five"]), DataError, "no class is called 'five'"),
        (
            ("search.yaml", [], ["a fox"]),
            RecipeError,
            "draws classes, not prompts: give --labels instead, of even, odd",
        ),
        (("student.yaml", ["odd"]), RecipeError, "does not say what to search for"),
        (("teacher.yaml", ["odd"]), RecipeError, "does not say what to search for"),
        (("runs/cache", ["odd"]), RecipeError, "is a folder"),
    ):
        with pytest.raises(error, match=said):
            find(*arguments, overrides=CPU)
    with pytest.raises(RecipeError, match="nothing to search for: give --labels"):
        find("search.yaml", overrides=CPU)
    with pytest.raises(RecipeError, match="has no student to search with"):
        find("teacher.yaml", ["odd"], overrides=CPU, section="search.yaml")
    shutil.rmtree("runs/student")
    (home / "own.yaml").write_text(f"title: Own\nbase: student.yaml\n{SECTION}")
    with pytest.raises(WeightsError, match=r"holds no finished training; run `softdimo run .*own\.yaml` first"):
        find("own.yaml", ["odd"], overrides=CPU)


def test_a_teacher_is_not_searched(home: Path) -> None:
    teacher = next(Path("runs/cache").glob("teacher-*"))
    export(teacher, Path("model"))
    with pytest.raises(RecipeError, match="is an exported teacher"):
        find("model", ["odd"], overrides=CPU, section="section.yaml")


def test_command_line_needs_conditions(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(Path("runs/student"), Path("model"))
    commands = [["search.yaml", *more] for more in (["--compare"], ["--with", "x"], ["--method", "m"], ["--fresh"])]
    for words in (*commands, ["model"]):
        assert main(["search", *words]) == 2
        assert "give --labels, --prompt or --prompts-file" in " ".join(capsys.readouterr().err.split())

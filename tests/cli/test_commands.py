"""Arguments reach the function of each command; errors become a message and an exit code."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from softdimo.cli.main import main
from softdimo.errors import CheckpointError, Interrupted, TrainingError, WeightsError


@pytest.fixture
def spy(monkeypatch):
    """Replace a function; what it was called with is checked against its real signature and kept by name."""

    def spy(path: str, result=None) -> SimpleNamespace:
        module, name = path.rsplit(".", 1)
        real = inspect.signature(getattr(importlib.import_module(module), name))
        seen = SimpleNamespace(calls=[])

        def fake(*args, **kwargs):
            bound = real.bind(*args, **kwargs)
            bound.apply_defaults()
            seen.calls.append(SimpleNamespace(**bound.arguments))
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(path, fake)
        return seen

    return spy


def test_run(recipe, spy):
    seen = spy("softdimo.run.run", Path("runs/toy"))
    assert main(["run", str(recipe)]) == 0
    assert main(["run", str(recipe), "train.iterations=7", "--out", "x", "--resume", "--smoke", "seed=3",
                 "--threads", "2", "--device", "cpu", "--tensorboard"]) == 0  # fmt: skip
    assert main(["run", str(recipe), "--fresh", "train.terms.0.weight=-1"]) == 0
    plain, full, fresh = seen.calls
    assert (plain.out, plain.resume, plain.fresh, plain.tensorboard, plain.loaded.smoke) == (None, *[False] * 4)
    assert plain.loaded.recipe.train.iterations == 10
    assert (full.out, full.resume, full.fresh, full.tensorboard) == (Path("x"), True, False, True)
    assert full.loaded.smoke
    assert full.loaded.recipe.seed == 3
    hardware = full.loaded.recipe.hardware
    assert (hardware.threads, hardware.accelerator) == (2, "cpu")
    assert fresh.fresh
    assert fresh.loaded.recipe.train.terms[0].weight == -1


def test_tokenize(recipe, spy, capsys):
    splits = {"train": SimpleNamespace(count=9), "held_out": SimpleNamespace(count=1)}
    seen = spy("softdimo.inputs.tokenize.tokenize", SimpleNamespace(splits=splits))
    assert main(["tokenize", str(recipe), "--out", "x"]) == 0
    assert "x holds the tokens of 9 train and 1 held out images" in capsys.readouterr().out
    full = ["data={use: animals}", "seed=3", "--mirror", "--verify", "--batch-size", "2", "--shard-size", "5"]
    assert main(["tokenize", str(recipe), *full, "-o", "x", "--threads", "2", "--device", "cpu"]) == 0
    plain, full = seen.calls
    assert (plain.out, plain.verify, plain.batch_size, plain.shard_size) == (Path("x"), False, 64, 32768)
    assert (full.verify, full.batch_size, full.shard_size, full.loaded.recipe.seed) == (True, 2, 5, 3)
    assert full.loaded.recipe.data.mirror
    assert main(["tokenize", str(recipe)]) == 2  # where to?


def test_sections(recipe, spy):
    for command, name in (("eval", "eval_only"), ("search", "search_only")):
        seen = spy(f"softdimo.run.{name}", Path("x"))
        assert main([command, str(recipe), "seed=2", "--out", "there", "--device", "cpu"]) == 0
        (call,) = seen.calls
        assert (call.out, call.loaded.recipe.seed) == (Path("there"), 2)


def test_search_for_conditions(recipe, spy, capsys):
    seen = spy("softdimo.cli.find.find", Path("x"))
    Path("prompts.txt").write_text("a fox\n\nan owl\n")
    assert main(["search", "model", "--labels", "cat, 2", "-l", "dog"]) == 0
    full = ["--prompt", "a cat, with a hat", "-p", "a cow", "--prompts-file", "prompts.txt", "--with", "s.yaml",
            "--method", "climb", "--compare", "--fresh", "-o", "there", "--smoke", "--threads", "2",
            "--device", "cpu"]  # fmt: skip
    assert main(["search", "model", "seed=2", *full]) == 0
    plain, everything = (vars(call) for call in seen.calls)
    say = plain.pop("say")
    assert plain == {
        "where": "model", "labels": ["cat", "2", "dog"], "prompts": [], "out": None, "overrides": [], "section": None,
        "method": None, "compare": False, "fresh": False, "smoke": False,
    }  # fmt: skip
    assert everything == {
        "where": "model", "labels": [], "prompts": ["a cat, with a hat", "a cow", "a fox", "an owl"],
        "out": Path("there"), "overrides": ["seed=2", "hardware.threads=2", "hardware.accelerator=cpu"],
        "section": "s.yaml", "method": "climb", "compare": True, "fresh": True, "smoke": True, "say": say,
    }  # fmt: skip
    assert main(["search", "model", "--prompts-file", "none.txt"]) == 3
    assert "cannot read the prompts of none.txt" in capsys.readouterr().err
    spy("softdimo.cli.find.find", Interrupted("stopped; x keeps what is done"))
    assert main(["search", "model", "-l", "cat"]) == 130


def test_check_and_explain(recipe, spy, capsys):
    seen = spy("softdimo.cli.check.check")
    assert main(["check", str(recipe), "seed=2", "--smoke"]) == 0
    assert seen.calls[0].loaded.smoke
    spy("softdimo.cli.explain.explain", "L = -E[log p] [bold]\n")
    assert main(["explain", str(recipe)]) == 0
    assert "L = -E[log p] [bold]" in capsys.readouterr().out


def test_models(recipe, spy, capsys):
    seen = spy("softdimo.cli.drawing.sample", Path("a.png"))
    assert main(["sample", "runs/x"]) == 0
    assert main(["sample", "runs/x", "-l", "cat, 2", "--labels", "dog", "-n", "3", "--seed", "5", "-o", "a.png"]) == 0
    assert vars(seen.calls[0]) | {"where": 0} == {
        "where": 0, "labels": [], "n": None, "seed": 0, "out": Path("samples.png"), "device": "auto", "prompts": [],
    }  # fmt: skip
    assert (seen.calls[1].labels, seen.calls[1].n, seen.calls[1].seed) == (["cat", "2", "dog"], 3, 5)
    Path("lines.txt").write_text("\ufeffa dog\n\n  two, or more, cats \n", encoding="utf-8")
    assert main(["sample", "runs/x", "--prompts", "a cup, blue", "-p", "b", "--prompts-file", "lines.txt"]) == 0
    assert (seen.calls[2].prompts, seen.calls[2].labels) == (["a cup, blue", "b", "a dog", "two, or more, cats"], [])
    Path("lines.txt").write_text(" \n")
    assert main(["sample", "runs/x", "--prompts-file", "lines.txt"]) == 3
    assert "lines.txt holds no prompt" in capsys.readouterr().err
    assert main(["sample", "runs/x", "--prompts-file", "nowhere.txt"]) == 3
    assert "cannot read the prompts of nowhere.txt" in capsys.readouterr().err
    assert len(seen.calls) == 3
    seen = spy("softdimo.export.export", Path("e"))
    assert main(["export", "runs/x", "--out", "e"]) == 0
    assert (seen.calls[0].run, seen.calls[0].out) == (Path("runs/x"), Path("e"))
    seen = spy("softdimo.cli.compare.compare")
    assert main(["compare", "a", "b"]) == 0
    assert (seen.calls[0].a, seen.calls[0].b) == (Path("a"), Path("b"))


def test_schema(recipe, capsys):
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert main(["schema", "--out", "deep/schema.json"]) == 0
    assert json.loads(Path("deep/schema.json").read_text()) == printed
    assert "toy.loss.toy_loss" in printed["$defs"]


def test_new(recipe, capsys):
    assert main(["new", "reward", "softness"]) == 0
    assert Path("softdimo-softness/pyproject.toml").is_file()
    assert main(["new", "reward", "softness"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["new", "reward", "toy_reward"]) == 2
    assert main(["new", "sampler", "x"]) == 2


def test_plugins_list(recipe, capsys):
    assert main(["plugins", "list", "reward"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["kind", "use", "distribution", "version"]
    assert ["reward", "toy_reward", "toy", "1.0"] in rows
    assert not any(row[0] == "loss" for row in rows)
    assert main(["plugins", "list", "rewards"]) == 2
    assert "did you mean `reward`?" in capsys.readouterr().err


def test_plugins_doctor(recipe, tmp_path, monkeypatch, capsys):
    from tests.fakes import distribution

    assert main(["plugins", "doctor", "sampler"]) == 0
    assert "ok      sampler toy_sampler: Toy sampler." in capsys.readouterr().out
    entries = {"softdimo.sampler": {"gone": "no_such_module_at_all:X", "toy_sampler": "tests.recipe.toy:Sampler"}}
    monkeypatch.syspath_prepend(distribution(tmp_path / "d", "gone", entries))
    assert main(["plugins", "doctor", "sampler"]) == 1
    out, err = capsys.readouterr()
    assert "broken  sampler gone: the sampler `gone` of gone cannot be imported (No module named" in out
    assert "note    sampler toy_sampler: several distributions have it; write gone:toy_sampler" in out
    assert err == "1 broken\n"
    main(["plugins", "list", "sampler"])
    assert "toy:toy_sampler" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WeightsError("no weights at x"), 3),
        (CheckpointError("damaged"), 3),
        (TrainingError("the loss is not finite"), 4),
        (Interrupted("saved; --resume goes on"), 130),
    ],
)
def test_errors_for_people(recipe, spy, capsys, error, code):
    spy("softdimo.run.run", error)
    assert main(["run", str(recipe)]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {error}\n")


def test_faults_of_a_recipe(recipe, capsys):
    recipe.write_text(recipe.read_text().replace("width", "widht").replace("iterations", "iteration"))
    assert main(["run", str(recipe), "x"]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0].startswith("error: override 1: `x` is not of the form key.path=value")
    assert lines[1].startswith("       toy.yaml:6:3 teacher.widht: unknown key; did you mean `width`")
    assert "Traceback" not in err
    assert main(["run", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err == "error: nowhere.yaml: the recipe does not exist\n"


def test_a_recipe_without_sections_has_nothing_to_run(recipe, capsys):
    recipe.write_text("title: t\ndata: {use: toy_data}\n")
    assert main(["run", str(recipe)]) == 2
    assert "nothing to run; add a `train:`, `eval:` or `search:` section" in capsys.readouterr().err


def test_unexpected_errors_leave_a_traceback_in_a_file(recipe, spy, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spy("softdimo.run.run", ZeroDivisionError("division\nby zero"))
    assert main(["run", str(recipe)]) == 70
    err = capsys.readouterr().err
    first, second, third = err.splitlines()
    assert first == "error: unexpected ZeroDivisionError: division by zero"
    assert second.startswith("       raised in softdimo, ")
    log = Path(third.removeprefix("       traceback in "))
    assert log.parent == tmp_path
    assert "Traceback (most recent call last)" in log.read_text()
    monkeypatch.setenv("SOFTDIMO_DEBUG", "1")
    assert main(["run", str(recipe)]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_ctrl_c(recipe, spy, capsys):
    spy("softdimo.run.run", KeyboardInterrupt())
    assert main(["run", str(recipe)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["walk", "x"], ["run", "toy.yaml", "--nope"], ["run", "toy.yaml", "--threads", "0"],
     ["run", "toy.yaml", "--resume", "--fresh"], ["sample", "x", "-n", "0"], ["run", "toy.yaml", "--device", "tpu"]],
)  # fmt: skip
def test_wrong_usage(recipe, capsys, arguments):
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_and_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("softdimo ")
    for command in (
        "run", "check", "explain", "sample", "search", "eval", "statistics", "compare", "export", "schema", "new",
    ):  # fmt: skip
        assert main([command, "--help"]) == 0
        assert "Usage: softdimo " + command in " ".join(capsys.readouterr().out.split())

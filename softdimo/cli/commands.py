"""The commands. Each reads its arguments and calls one function, imported when the command runs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from softdimo.recipe import Loaded


class Device(StrEnum):
    """Choices of `--device`."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Part(StrEnum):
    """Kinds of plugin that `softdimo new` can write."""

    reward = "reward"
    loss = "loss"
    teacher = "teacher"
    text_encoder = "text_encoder"


Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe (.yaml), or a run folder.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Overrides, typed like the file: train.iterations=500 train.terms.gan.weight=0.1",
        show_default=False,
    ),
]
Smoke = Annotated[bool, typer.Option("--smoke", help="A tiny version: the same path through the code, in seconds.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads (hardware.threads).", show_default=False)
]
Where = Annotated[
    Device | None,
    typer.Option("--device", "-d", help="Accelerator; the recipe's, or any GPU, by default.", show_default=False),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; runs/<recipe> by default.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or an exported model.", show_default=False)]


def _load(
    recipe: str,
    overrides: list[str] | None = None,
    smoke: bool = False,
    threads: int | None = None,
    device: Device | None = None,
) -> Loaded:
    from softdimo.recipe import load

    return load(recipe, [*(overrides or ()), *_hardware(threads, device)], smoke)


def _hardware(threads: int | None, device: Device | None) -> list[str]:
    """Options that are overrides of the hardware."""
    extra = [f"hardware.threads={threads}"] if threads else []
    return extra + ([f"hardware.accelerator={device.value}"] if device else [])


def _split(texts: list[str] | None) -> list[str]:
    """Comma-separated words of repeated options."""
    return [part.strip() for text in texts or () for part in text.split(",") if part.strip()]


def run(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace what the run folder holds.")] = False,
    smoke: Smoke = False,
    threads: Threads = None,
    device: Where = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard logs too.")] = False,
) -> None:
    """Train, evaluate, search and report: whatever sections the recipe has."""
    if resume and fresh:
        raise typer.BadParameter("--resume and --fresh exclude each other")
    loaded = _load(recipe, overrides, smoke, threads, device)
    if not (loaded.recipe.train or loaded.recipe.eval or loaded.recipe.search):
        from softdimo.errors import RecipeError

        raise RecipeError(f"{recipe}: nothing to run; add a `train:`, `eval:` or `search:` section")
    from softdimo.run import run as run_recipe

    run_recipe(loaded, out, resume=resume, fresh=fresh, tensorboard=tensorboard)


def check(
    recipe: Recipe,
    overrides: Overrides = None,
    smoke: Smoke = False,
    threads: Threads = None,
    device: Where = None,
) -> None:
    """Validate a recipe, build its networks, and estimate memory, without training."""
    loaded = _load(recipe, overrides, smoke, threads, device)
    from softdimo.cli.check import check as check_recipe

    check_recipe(loaded)


def tokenize(
    recipe: Recipe,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the token cache.", show_default=False)],
    overrides: Overrides = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Add mirrored images (data.mirror=true).")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every shard, and encode a larger sample of images again.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images that are encoded at a time.")] = 64,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Images a shard.")] = 2**15,
    threads: Threads = None,
    device: Where = None,
) -> None:
    """Encode a recipe's images with its tokenizer, once, for the data set `tokens`; goes on where it was stopped."""
    loaded = _load(recipe, [*(overrides or ()), *(["data.mirror=true"] if mirror else [])], False, threads, device)
    from softdimo.inputs.tokenize import tokenize as tokenize_recipe

    index = tokenize_recipe(loaded, out, verify=verify, batch_size=batch_size, shard_size=shard_size)
    counts = " and ".join(f"{split.count} {name.replace('_', ' ')}" for name, split in index.splits.items())
    typer.echo(f"{out} holds the tokens of {counts} images; use it with data='{{use: tokens, path: {out}}}'")


def explain(recipe: Recipe, overrides: Overrides = None, smoke: Smoke = False) -> None:
    """Say what a recipe optimizes, as equations, and what each step costs."""
    loaded = _load(recipe, overrides, smoke)
    from softdimo.cli.explain import explain as explain_recipe

    typer.echo(explain_recipe(loaded))


def sample(
    run: Run,
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", "-l", help="Class names or numbers, comma-separated; all classes in turn by default."),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "--prompts",
            "-p",
            help="A prompt, for a model that draws for text; once for each.",
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts-file", help="A text file with a prompt on each line.", show_default=False)
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", "--number", min=1, help="Images, spread over the labels or prompts; 16, or one a prompt."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file of all images.")] = Path("samples.png"),
    device: Where = None,
) -> None:
    """Draw images from a run's student (or teacher), or from an exported model."""
    from softdimo.cli.drawing import sample as draw
    from softdimo.search.wanted import read_prompts

    texts = [*(prompts or ()), *(read_prompts(prompts_file) if prompts_file else ())]
    draw(run, labels=_split(labels), n=n, seed=seed, out=out, device=device.value if device else "auto", prompts=texts)
    typer.echo(f"wrote {out}")


def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    smoke: Smoke = False,
    threads: Threads = None,
    device: Where = None,
) -> None:
    """Run the eval section only, on a recipe or a finished run."""
    loaded = _load(recipe, overrides, smoke, threads, device)
    from softdimo.run import eval_only

    eval_only(loaded, out)


def search(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A recipe, a run folder, or an exported student.", show_default=False)
    ],
    overrides: Overrides = None,
    labels: Annotated[
        list[str] | None, typer.Option("--labels", "-l", help="Classes to search for: names or numbers, with commas.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A prompt to search for; may be given several times.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts-file", help="A text file of prompts, one a line.", show_default=False)
    ] = None,
    section: Annotated[
        str | None,
        typer.Option("--with", metavar="RECIPE", help="A recipe whose search section is taken.", show_default=False),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="Name of one of its methods; the first by default.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Best of N beside it, at the same number of forward-equivalents.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace what the folder holds.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder; found/<model> (without conditions: the run folder).")
    ] = None,
    smoke: Smoke = False,
    threads: Threads = None,
    device: Where = None,
) -> None:
    """Search at test time: for labels or prompts, or the methods of the search section side by side.

    For every condition the winner, its start and its steps are written as pictures with their scores, and all on one
    page. The same command goes on where it was stopped. Without conditions, methods are compared as `run` does.
    """
    prompts = list(prompt or ())
    if prompts_file is not None:
        from softdimo.search.wanted import read_prompts

        prompts += read_prompts(prompts_file)
    if not (labels or prompts):
        from softdimo.export import is_export

        if section or method or compare or fresh or is_export(Path(model)):
            raise typer.BadParameter("what for? give --labels, --prompt or --prompts-file")
        loaded = _load(model, overrides, smoke, threads, device)
        from softdimo.run import search_only

        search_only(loaded, out)
        return
    from softdimo.cli.find import find

    find(
        model, _split(labels), prompts, out, [*(overrides or ()), *_hardware(threads, device)], section=section,
        method=method, compare=compare, fresh=fresh, smoke=smoke,
    )  # fmt: skip


def statistics(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("statistics.npz"),
    threads: Threads = None,
    device: Where = None,
) -> None:
    """Write statistics of a recipe's real images for a metric's `reference:`, so that others need no images."""
    loaded = _load(recipe, overrides, threads=threads, device=device)
    from softdimo.run import statistics as write

    typer.echo(f"wrote {write(loaded, out)}")


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run folder.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another run folder.", show_default=False)],
) -> None:
    """Show how two runs differ: settings, versions, metrics, search."""
    from softdimo.cli.compare import compare as compare_runs

    compare_runs(a, b)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the exported model.")] = Path("export"),
) -> None:
    """Write a run's generator as a folder that `softdimo.load` and `softdimo sample` read."""
    from softdimo.export import export as export_run

    export_run(run, out)
    typer.echo(f"wrote {out}")


def schema(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; the terminal by default.")] = None,
) -> None:
    """Write a JSON schema of recipes with every installed plugin, for editors."""
    import json

    from softdimo.recipe.schema import json_schema

    broken: list[str] = []
    text = json.dumps(json_schema(broken), indent=1, ensure_ascii=False) + "\n"
    for message in broken:
        print(f"left out: {message}", file=sys.stderr)
    if out is None:
        typer.echo(text, nl=False)
        return
    from softdimo.files import write_text

    write_text(out, text)
    typer.echo(f"wrote {out}; name it in a recipe's first line: # yaml-language-server: $schema={out}")


def new(
    kind: Annotated[Part, typer.Argument(help="Kind of plugin.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Its name in recipes.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; ./softdimo-NAME by default.")
    ] = None,
) -> None:
    """Write a plugin package of your own: entry point, module, contract test."""
    from softdimo.cli.scaffold import scaffold

    folder = scaffold(kind.value, name, out)
    typer.echo(f"wrote {folder}\nnext: pip install -e {folder} && pytest {folder}")


def add(app: typer.Typer) -> None:
    """Register the commands, in the order of the help."""
    for panel, group in {
        "Recipes": (run, check, explain, tokenize, schema),
        "Models": (sample, export),
        "Measuring": (evaluate, search, statistics, compare),
        "Plugins": (new,),
    }.items():
        for command in group:
            name = "eval" if command is evaluate else command.__name__
            app.command(name, rich_help_panel=panel)(command)

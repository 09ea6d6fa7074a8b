"""Write the README's results, benchmarks/README.md and benchmarks/published/README.md: `python benchmarks/readme.py`.

Their tables come from benchmarks/results and benchmarks/published. `--check` only compares.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from softdimo.report.table import markdown_table

sys.path.insert(0, str(Path(__file__).parent))
import papers
import tables

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PUBLISHED = ROOT / "benchmarks" / "published" / "README.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
JOB, LONG, TEXT, TTEO = "animals_softdimo", "animals_softdimo_long", "captions_reward", "captions_tteo"


def load(name: str) -> dict[str, Any]:
    """One file of results/."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def short() -> str:
    """What the README shows."""
    job, long, text = load(JOB), load(LONG), load(TEXT)
    parts = [
        tables.run_line(JOB, job),
        tables.rows(job, tables.MAIN),
        tables.search(job),
        tables.run_line(LONG, long),
        tables.seeds(long),
        tables.run_line(TEXT, text),
        tables.rows(text, tables.CAPTIONS),
        searched(load(TTEO)),
    ]
    return "\n\n".join(parts)


def whole() -> str:
    """benchmarks/README.md: every table, and the command that makes it."""
    job, long = load(JOB), load(LONG)
    parts = [
        "# Measurements\n\nEvery table on this page is made by `python benchmarks/readme.py` from `results/*.json`, "
        "and every one of those files by the command above its table (a run's by `collect.py` from its folder).",
        "## The main job\n\n" + tables.run_line(JOB, job),
        tables.rows(job),
        tables.search(job),
        "## The long recipe\n\n" + tables.run_line(LONG, long),
        tables.seeds(long),
        tables.rows(long),
        "The main job's teacher was swept over guidance by `benchmarks/guidance.py`: `results/guidance/`. The "
        "papers' own tables are in [published/](published/README.md).",
    ]
    for name, section in SECTIONS:
        if (RESULTS / f"{name}.json").is_file():
            parts.append(section(load(name)))
    return "\n\n".join(parts) + "\n"


def ablations(result: dict[str, Any]) -> str:
    """Three ablations."""
    one = result["r_init"]
    trainings = len(one.get("training_seeds", [0]))
    over = f"{trainings} training seeds" if trainings > 1 else f"{len(one['seeds'])} sampling seeds, one training seed"
    option = f" --seeds {trainings}" if trainings > 1 else ""
    return "\n\n".join(
        [
            f"## Ablations\n\n`python benchmarks/ablations.py RUNS{option}` ({tables.made_by(result)}): 400 iterations "
            f"of Di[M]O on the animals job, {one['samples']} images a row, ± over {over}.",
            "![Four panels: Fréchet distance over r_init, with and without an auxiliary, agreement of gradients, one "
            "mask ratio only](results/ablations.png)",
            "r_init, the fraction of mask tokens in x_init:",
            tables.ablation(result, "r_init"),
            "The auxiliary model. Time is that of one iteration on one thread, all variants in turns; state is what "
            "training adds to the frozen teacher: weights, gradients, Adam's averages.",
            tables.ablation(result, "auxiliary"),
            "The consistency assumption: Di[M]O takes the student's Jacobian at x_init instead of x_t. How far x_t is "
            "from x_init (RMS of the embeddings, in units of the table's), and the cosine of the two gradients, at the "
            "end of training:",
            tables.agreement(result),
            "Students that were trained with re-masked states of one mask ratio only:",
            tables.ablation(result, "consistency"),
        ]
    )


def toy(result: dict[str, Any]) -> str:
    """Two coupled coins."""
    return "\n\n".join(
        [
            f"## The exact toy\n\n`python benchmarks/toy.py RUNS` ({tables.made_by(result)}): two coupled binary "
            f"tokens. A student of `recipes/toy.yaml` learns their joint in {result['iterations']} iterations; its "
            f"total variation from the data is summed exactly, for {len(result['seeds'])} training seeds.",
            "![Total variation of every variant](results/toy.png)",
            tables.toy(result),
        ]
    )


def samplers(result: dict[str, Any]) -> str:
    """The teacher under every sampler."""
    return "\n\n".join(
        [
            f"## Samplers of several steps\n\n`python benchmarks/samplers.py RUNS` ({tables.made_by(result)}): the "
            f"teacher of the main job, {result['eval']['samples']} images a row, ± over {len(result['eval']['seeds'])} "
            f"sampling seeds, evaluator {result['eval']['evaluator_hash'][:12]}. A guided step is two passes; one of "
            "theta-trapezoidal is four, and it ends with one more look. Guidance (final scale of z_u + s (z_c - z_u), "
            "and its ramp) was tuned row by row, and the samplers' own settings at 8 steps, by `python "
            "benchmarks/guidance.py recipes/animals_samplers.yaml RUNS` with other seeds: every try is in "
            "`results/guidance/animals_samplers.json`.",
            "![Fréchet distance, recall and accuracy of six samplers against network passes](results/samplers.png)",
            tables.samplers(result),
        ]
    )


def one_step(result: dict[str, Any]) -> str:
    """One step against sixteen."""
    sizes, threads = result["sizes"], result["provenance"]["threads"]
    rounds = len(result["cases"][0]["decode"])
    return "\n\n".join(
        [
            f"## One step against sixteen\n\n`python benchmarks/one_step.py` ({tables.made_by(result)}): the network "
            f"of MaskGit ({sizes['depth']} blocks of width {sizes['width']}, {sizes['parameters'] / 1e6:.0f} M "
            f"parameters, random weights) and the VQGAN decoder for {sizes['image']} x {sizes['image']} pixels, on "
            f"{threads} threads of {result['provenance']['processor']}. The teacher takes 16 guided steps, the student "
            f"one; medians of {rounds} rounds in turn, with the least and the greatest ratio. bf16 is autocast.",
            tables.one_step(result),
        ]
    )


def published() -> str:
    """benchmarks/published/README.md: the papers' tables, and our rows beside them."""
    found = {folder: papers.ours(folder) for folder in papers.IMAGES}
    known: dict[str, set[str]] = {folder: set() for folder in papers.IMAGES}
    parts = [
        "# The tables of the papers\n\nOf Soft-Di[M]O (arXiv 2509.22925) and Di[M]O (arXiv 2503.15457): every number "
        "as printed there, in `*.csv`, with a column `evaluator` of ours for what is known of how it was made. Rows of "
        "unlike evaluators are in tables of their own. Our columns are rows of `benchmarks/results/<folder>/*.json` "
        "(`python benchmarks/collect.py RUN --into FOLDER`), each folder of one evaluator: "
        f"{', '.join(found)}. `recipes/parts/<folder>_metrics.yaml` measures them. This page is made by `python "
        "benchmarks/readme.py`."
    ]
    for paper in papers.TABLES:
        rows, mine = papers.read(paper), {folder: found[folder] for folder in paper.folders}
        for folder in mine:
            known[folder] |= {papers.name_of(paper, line) for lines in rows.values() for line in lines}
        parts += [f"## {paper.title}", *filter(None, [paper.note]), tables.ours(mine), tables.paper(paper, rows, mine)]
    for folder, all_of_it in found.items():
        if all_of_it is not None and (rest := all_of_it.others(known[folder])):
            parts += [f"## Other rows of {folder}", markdown_table({**all_of_it.evaluation, "rows": rest})]
    return "\n\n".join(parts) + "\n"


def speed(result: dict[str, Any]) -> str:
    """What a step costs."""
    return f"## Speed\n\n`python benchmarks/speed.py` ({tables.made_by(result)}).\n\n{tables.speed(result)}"


def memory(result: dict[str, Any]) -> str:
    """What a step needs."""
    return f"## Memory\n\n`python benchmarks/memory.py` ({tables.made_by(result)}).\n\n{tables.memory(result)}"


def captions(result: dict[str, Any]) -> str:
    """Text to image in the small world."""
    return "\n\n".join(
        [
            f"## Captions\n\n{tables.run_line(TEXT, result)} Captions ask for GenEval's tasks, and the judge finds the "
            "animals of an image, as many as there are, their colors and places, and nothing else. `held-out reward` "
            "is log p(caption | image) of the network that gives the Fréchet distance its features.",
            "![Share of captions that images show, task by task](results/captions_reward.png)",
            tables.rows(result),
            searched(load(TTEO)),
            "Optimized and held-out reward are log-odds of p(caption | image). Half of the random inputs give an image "
            "that shows its caption, and log p is about 0 for each of those: it could not tell them apart.",
            "![Reward of the searches, optimized and held out, against their compute](results/captions_tteo.png)",
            "Circles are TTEO, crosses best-of-N; bars are standard errors of each alone.",
        ]
    )


def searched(result: dict[str, Any]) -> str:
    """Search among captions: what was run, and what it found."""
    return f"{tables.searched_line(TTEO, result)} {tables.search(result)}"


SECTIONS: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    (TEXT, captions),
    ("toy", toy),
    ("samplers", samplers),
    ("ablations", ablations),
    ("one_step", one_step),
    ("speed", speed),
    ("memory", memory),
]
"""Benchmarks beside the two runs, in the order of the page."""


def rewritten(readme: str) -> str:
    """The README with its results block made anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{short()}\n{END}{after}"


if __name__ == "__main__":
    readme, page = ROOT / "README.md", ROOT / "benchmarks" / "README.md"
    wanted = {readme: rewritten(readme.read_text(encoding="utf-8")), page: whole(), PUBLISHED: published()}
    stale = [
        str(p.relative_to(ROOT))
        for p, text in wanted.items()
        if not p.is_file() or p.read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(stale)}; run `python benchmarks/readme.py`" if stale else 0)
    for target, text in wanted.items():
        target.write_text(text, encoding="utf-8")

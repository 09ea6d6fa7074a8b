"""Results as Markdown: each function renders one file of results/, for the README or for benchmarks/README.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from papers import COLUMNS, EVALUATORS, IMAGES, Ours, Paper, name_of

from softdimo.report.table import Table, label, markdown_table

Result = Mapping[str, Any]
Published = Mapping[str, Sequence[Mapping[str, str]]]
"""Rows of a paper's table by their evaluator."""
MAIN = ("fd", "recall", "density", "coverage", "accuracy")
CAPTIONS = ("fd", "captions", "counting", "colors", "position", "attribution", "held-out reward")
"""Metrics of the README's tables; benchmarks/README.md has all."""


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; every column but the first is aligned to the right."""
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(str(c) for c in row) + " |" for row in rows)])


def made_by(result: Result) -> str:
    """`softdimo 0.1.0 at 1234, torch 2.14` of a benchmark."""
    found = result["provenance"]
    return f"softdimo {found['softdimo']} at {found['git']}, torch {found['distributions']['torch']}"


def run_line(name: str, result: Result) -> str:
    """What was run, for how long, and by whom it was judged."""
    lock, evaluation = result["lock"], result["eval"]
    seconds = result.get("timing", {}).get("seconds")
    took = f", {seconds / 60:.1f} minutes on {lock['cpus']} cores" if seconds else ""
    measured = evaluation.get("lock", lock)["git"]
    at = lock["git"] if measured == lock["git"] else f"{lock['git']}, measured at {measured}"
    return (
        f"`softdimo run recipes/{name}.yaml`{took} (softdimo {lock['softdimo']} at {at}, "
        f"torch {lock['distributions']['torch']}). Evaluator {evaluation['evaluator_hash'][:12]}: its feature network "
        "and judge took no part in training."
    )


def searched_line(name: str, result: Result) -> str:
    """What was searched, and by which versions."""
    lock = result["search"]["lock"]
    return (
        f"`softdimo run recipes/{name}.yaml` (softdimo {lock['softdimo']} at {lock['git']}, torch "
        f"{lock['distributions']['torch']})."
    )


def rows(result: Result, metrics: Sequence[str] = ()) -> str:
    """The table of metrics of one run, and what its rows of real images mean."""
    return (
        markdown_table(result["eval"], metrics)
        + " `real halves` is the floor: disjoint halves of the training images against each other, all there are. The "
        "accuracy of the real rows is the judge's own."
    )


def search(result: Result) -> str:
    """Test-time search: compute, what was optimized, what was only watched."""
    found = result["search"]
    body = []
    for m in found["methods"]:
        sem = f" ± {m['score_sem']:.4f}" if m["score_sem"] is not None else ""
        held = [f"{value:.4f}" for value in m["held_out"].values()]
        wall = f"{1000 * m['seconds'] / found['conditions']:.1f}"
        body.append([m["name"], f"{m['passes']:g}", wall, f"{m['score_mean']:.4f}{sem}", *held])
    watched = [f"held out: {name}" for name in found["methods"][0]["held_out"]]
    heads = ["method", "forward-equivalents", "ms a condition", "optimized reward", *watched]
    told = f"Test-time search with the student, {found['conditions']} conditions:\n\n{table(heads, body)}"
    return told + paired(found, heads[3:])


def paired(found: Result, rewards: Sequence[str]) -> str:
    """Condition by condition: each method with iterations beside best-of-N at its cost; nothing in older results."""
    body = []
    for m in found["methods"]:
        if "against" in m:
            each = [m["against"]["score"], *m["against"]["held_out"].values()]
            cells = [f"{d['mean']:+.4f} ± {d['sem']:.4f} ({d['higher']} / {d['lower']})" for d in each]
            body.append([f"{m['name']} - {m['against']['name']}", *cells])
    if not body:
        return ""
    what = "Paired differences at equal compute (conditions on which the former is higher / lower):"
    return f"\n\n{what}\n\n{table(['', *rewards], body)}"


def seeds(result: Result, metrics: Sequence[str] = MAIN) -> str:
    """The long recipe: the best teacher row, and its students over training seeds (mean, standard deviation)."""
    made = Table(result["eval"])
    best = min(made.of("teacher"), key=lambda r: made.value(r, "fd"))
    groups: dict[str, list[Result]] = {}
    for row in made.of("student"):
        groups.setdefault(row["name"].split(", training seed")[0], []).append(row)
    labels = {"fd": "Fréchet distance ↓"}
    body: list[list[object]] = [
        [f"best teacher row ({best['name'].removeprefix('teacher, ')})", f"{best['passes']:g}", "–"]
    ]
    body[0] += [made.cell(best, m) for m in metrics]
    for name, members in groups.items():
        line: list[object] = [name, 1, len(members)]
        for m in metrics:
            values = [made.value(r, m) for r in members]
            spread = f" ± {statistics.stdev(values):.{2 if m == 'fd' else 3}f}" if len(values) > 1 else ""
            line.append(f"{statistics.mean(values):.{2 if m == 'fd' else 3}f}{spread}")
        body.append(line)
    heads = ["", "passes", "training seeds", *(labels.get(m, f"{m} ↑") for m in metrics)]
    return table(heads, body) + (
        "\n\n± is the standard deviation over training seeds (over sampling seeds for the teacher); "
        f"{result['eval']['samples']} images a row."
    )


def ablation(result: Result, name: str) -> str:
    """One ablation's students; beside them what auxiliaries cost, or how far x_t is and the cosine of the gradients."""
    found = result[name]
    extras = {"auxiliary": _costs, "consistency": _at_its_ratio}.get(name, lambda result: ((), {}))
    more, cells = extras(result)
    body = []
    for r in found["rows"]:
        shown = [f"{r[m]['value']:.3g} ± {r[m]['sd'] or 0:.2g}" for m in MAIN]
        body.append([r["name"], *shown, *(cells.get(r["name"], [""] * len(more)))])
    return table(["", "Fréchet distance ↓", *(f"{m} ↑" for m in MAIN[1:]), *more], body)


Extra = tuple[Sequence[str], Mapping[str, Sequence[str]]]
"""Heads of more columns, and their cells by row."""


def _costs(result: Result) -> Extra:
    costs = result["costs"].items()
    heads = ("ms/iteration", "state, MiB")
    return heads, {n: [f"{c['milliseconds']:.0f}", f"{c['state_bytes'] / 2**20:.2f}"] for n, c in costs}


def _at_its_ratio(result: Result) -> Extra:
    """Of students of one mask ratio, whose gradients were compared at it."""
    cells = {}
    for student in result["gradients"]:
        if student["name"].startswith("mask ratio"):
            ratio = float(student["name"].split()[2])
            (at,) = (a for a in student["at"] if a["ratio"] == ratio)
            cells[student["name"]] = [f"{at['distance']:.2f}", f"{at['cosine']:.2f}"]
    return (("distance of x_t", "cosine"), cells) if cells else ((), {})


def agreement(result: Result) -> str:
    """Distance of x_t and cosine of the gradients at every mask ratio, beside the student's Fréchet distance."""
    distances = {r["name"]: r["fd"] for name in ("r_init", "consistency") for r in result[name]["rows"]}
    students = [g for g in result["gradients"] if not g["name"].startswith("mask ratio")]
    body = []
    for student in students:
        fd = distances[student["name"]]
        cells = [f"{a['distance']:.2f}: {a['cosine']:.2f}{_spread(a.get('cosine_sd'))}" for a in student["at"]]
        body.append([student["name"], f"{fd['value']:.3g} ± {fd['sd'] or 0:.2g}", *cells])
    ratios = [f"mask ratio {a['ratio']:g}" for a in students[0]["at"]]
    return table(["", "Fréchet distance ↓", *ratios], body)


def _spread(sd: float | None) -> str:
    return "" if sd is None else f" ± {sd:.2f}"


def toy(result: Result) -> str:
    """Every variant of the toy: total variation, mean and range over training seeds."""
    body = [
        [r["group"], r["name"], f"{r['mean']:.4f}", f"{min(r['tv']):.4f} to {max(r['tv']):.4f}", r["note"]]
        for r in result["rows"]
    ]
    body.append(["", "before training", f"{result['start']:.4f}", "", ""])
    body.append(["", "best of independent tokens", f"{result['best_factorized']:.4f}", "", ""])
    return table(["", "", "total variation", "least to most", ""], body)


def memory(result: Result) -> str:
    """The divergence kernel, and the estimate of `check` against an iteration's measured peak."""
    kernel, mib = result["divergence"], 2**20
    alone, both = (
        [f"{kernel[way + more]:.2f}" for way in ("chunked", "whole tensors")]
        for more in ("", ", and the student's gradient")
    )
    rows = [
        [name, f"{m['expected'] / mib:.1f}", f"{m['measured'] / mib:.1f}", f"{100 * m['error']:+.1f} %"]
        for name, m in result["iterations"].items()
    ]
    saved = [[n, *(f"{m[k] / mib:.1f}" for k in ("expected", "measured"))] for n, m in result["lora saves"].items()]
    return "\n\n".join(
        [
            f"Peak of the divergence kernel at {kernel['units']} units of {kernel['classes']} classes, in logit "
            f"tensors: {alone[0]} in chunks, {alone[1]} on whole tensors; with the student's gradient "
            f"{both[0]} and {both[1]}.",
            table(["one iteration, MiB", "`softdimo check` expects", "measured peak", "error"], rows),
            table(["what `auxiliary: {use: lora}` takes away, MiB", "expected", "measured"], saved),
        ]
    )


def speed(result: Result) -> str:
    """One step beside the published loop, where its time goes, and how that grows."""
    large, loops, rounds = result["maskgit"], result["maskgit"]["loops"], 0
    body: list[list[object]] = []
    for name, row in loops.items():
        rounds = len(row["seconds"])
        peak = f"{row['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in row else "–"
        share = f"{row['rate'] / row['product_rate']:.0%}" if "rate" in row else "–"
        body.append([name, f"{row['passes']:g}", f"{row['median']:.2f}", _times(row), peak, share])
    shown = [n for n in loops if n in ("published loop", "softdimo", "softdimo, bf16")]
    parts = [p for p in dict.fromkeys(p for n in shown for p in loops[n]["phases"])
             if any(loops[n]["phases"].get(p, 0.0) >= 0.01 * loops[n]["median"] for n in shown)]  # fmt: skip
    phases = [[p, *(f"{1000 * loops[n]['phases'].get(p, 0.0):.0f}" for n in shown)] for p in parts]
    grown = [
        [what, *(f"{r['median']:.2f}" + (f" ({r['times_as_fast']['median']:.2f} x)" if "times_as_fast" in r else "")
                 for r in found["loops"].values())]
        for what, found in result["growth"].items()
    ]  # fmt: skip
    net, shape = large["teacher"], large["tokens"]
    ((_, small),) = result["animals"].items()
    heads = ", ".join(f"{p} {1000 * t:.0f}" for p, t in small["phases"].items() if t >= 0.01 * small["median"])
    return "\n\n".join(
        [
            f"One step with {net['depth']} layers of width {net['width']}, L = {shape['rows'] * shape['cols']}, "
            f"V = {shape['V']}, batch {large['batch']}, random weights, {rounds} steps of each in turn on "
            f"{result['provenance']['threads']} threads ({_processor(result)}). The published loop is "
            "written down in `published_loop.py`; without its dropout its mathematics is ours. Peak memory is that of "
            "tensors; the rate is that of the step's matrix products, against the best that the processor gave them "
            "alone.",
            table(["", "passes", "seconds", "times as fast", "peak, GiB", "of the rate"], body),
            "Where the milliseconds go:",
            table(["", *shown], phases),
            "How it grows, one size changed at a time; seconds of a step:",
            table(["", *next(iter(result["growth"].values()))["loops"]], grown),
            f"A step of `recipes/animals_dimo.yaml` takes {1000 * small['median']:.0f} ms: {heads}.",
        ]
    )


def _processor(result: Result) -> str:
    found = result["provenance"]
    return ", ".join(filter(None, [found["processor"], found.get("instructions")]))


def _times(row: Result) -> str:
    found = row.get("times_as_fast")
    return "1" if found is None else "{median:.2f} ({lowest:.2f} to {highest:.2f})".format(**found)


def one_step(result: Result) -> str:
    """Teacher and student at the size of MaskGit: seconds per batch, and how many times as long the teacher takes."""
    body: list[list[object]] = []
    for case in result["cases"]:
        teacher, student = (row for row in case.values() if isinstance(row, dict) and "passes" in row)
        body.append(
            [case["precision"], case["batch"], f"{teacher['passes']:g} : {student['passes']:g}"]
            + [f"{row[key]:.2f}" for key in ("seconds", "seconds_decoded") for row in (teacher, student)]
            + ["{median:.1f} ({lowest:.1f} to {highest:.1f})".format(**case[key]) for key in ("ratio", "ratio_decoded")]
        )
    heads = [
        "",
        "batch",
        "passes",
        "teacher, s",
        "student, s",
        "teacher and decode, s",
        "student and decode, s",
        "times as long",
        "times as long, with decode",
    ]
    return table(heads, body)


def samplers(result: Result) -> str:
    """Every sampler and step count: its guidance and own setting, passes, and the metrics of the README."""
    made = Table(result["eval"])
    leading = {m: made.leading(m) for m in MAIN}
    body: list[list[object]] = []
    for i, row in enumerate(made.rows):
        if row["of"] == "teacher":
            cells = [made.cell(row, m) for m in MAIN]
            shown = [f"**{c}**" if i in leading[m] else c for m, c in zip(MAIN, cells, strict=True)]
            body.append([row["name"], _settings(row["sampler"]), f"{row['passes']:g}", *shown])
    heads = ["", "guidance and setting", "passes", "Fréchet distance ↓", *(f"{m} ↑" for m in MAIN[1:])]
    return table(heads, body)


def _settings(sampler: Mapping[str, Any]) -> str:
    guidance = sampler["guidance"]
    ramp = "" if guidance["ramp"] == "constant" else f", {guidance['ramp']}"
    own = [f"{k} {sampler[k]:g}" for k in ("choice_temperature", "theta") if k in sampler]
    own += ["randomize"] if sampler.get("randomize") else []
    return "; ".join([f"{guidance['scale']:g}{ramp}", *own])


def paper(shown: Paper, published: Published, found: Mapping[str, Ours | None]) -> str:
    """One table of a paper, apart by evaluator, with our rows beside; a cell is empty where nothing was run.

    `found` are our rows by folder.
    """
    parts = []
    for evaluator, lines in published.items():
        columns = [c for c in shown.columns or COLUMNS if any(line.get(c) for line in lines)]
        body: list[list[object]] = []
        for line in lines:
            name = name_of(shown, line)
            mine = [_cell(found[COLUMNS[c].folder], name, COLUMNS[c].metric) for c in columns]
            body.append([line["method"], line["steps"], *(line[c] for c in columns), *mine])
        heads = ["published", "steps", *(COLUMNS[c].head for c in columns)]
        heads += [f"our {label(COLUMNS[c].metric)}" for c in columns]
        parts.append(f"{EVALUATORS[evaluator]}\n\n{table(heads, body)}")
    return "\n\n".join(parts)


def _cell(found: Ours | None, name: str, metric: str) -> str:
    row = found.row(name) if found else None
    return Table(found.evaluation).cell(row, metric) if found and row else ""


def ours(found: Mapping[str, Ours | None]) -> str:
    """Who measured our rows."""
    return "\n".join(_ours(folder, rows) for folder, rows in found.items())


def _ours(folder: str, found: Ours | None) -> str:
    if found is None:
        return f"Ours ({folder}): none was run, so our columns are empty."
    result, whole = found.evaluation, IMAGES[folder]
    fewer = f"; fewer images than the {whole:,} of the papers" if result["samples"] < whole else ""
    fewer += " make the distance larger" if fewer and folder in ("imagenet256", "coco30k") else ""
    named = [f"{name}: {about['formula']}" for name, about in result["evaluator"].items() if "formula" in about]
    formulas = f" ({'; '.join(named)})" if named else ""
    return (
        f"Ours ({folder}): {result['samples']} images a row{fewer}. Their evaluator {result['evaluator_hash'][:12]}"
        f"{formulas} is none of the published ones."
    )

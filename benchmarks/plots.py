"""Pictures of benchmark results, for readers who have not seen the code (needs matplotlib, extra `benchmarks`)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import ScalarFormatter

from softdimo_plugins.captions.grammar import TASKS

INK, BLUE, RED = "#333333", "#2f6db5", "#c0483d"
plt.rcParams.update(
    {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
)


def _number(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    return row[metric]["value"], row[metric]["sd"] or 0.0


def ablations(result: Mapping[str, Any], path: Path) -> Path:
    """Four panels: r_init, the auxiliary, agreement of gradients over the distance of x_t, one mask ratio only."""
    figure, ((a, b), (c, d)) = plt.subplots(2, 2, figsize=(10.5, 7.6), layout="constrained")

    rows = result["r_init"]["rows"]
    x = [float(r["name"].split()[-1]) for r in rows]
    y, sd = zip(*(_number(r, "fd") for r in rows), strict=True)
    a.errorbar(x, y, sd, color=BLUE, marker="o", capsize=3)
    for xi, yi, spread in zip(x, y, sd, strict=True):
        a.annotate(f"{yi:.1f}", (xi, yi + spread), xytext=(0, 5), textcoords="offset points", ha="center")
    a.set(yscale="log", xlabel="r_init: fraction of mask tokens in x_init", ylabel="Fréchet distance (lower is better)")
    a.set_title("The start of the student: masks against random tokens", loc="left", fontsize=10)

    rows = result["auxiliary"]["rows"]
    y, sd = zip(*(_number(r, "fd") for r in rows), strict=True)
    places = range(len(rows))
    b.barh(places, y, xerr=sd, color=[RED if r["name"].startswith("no ") else BLUE for r in rows], height=0.6)
    b.set_yticks(list(places), [r["name"] for r in rows])
    for i, (value, spread) in enumerate(zip(y, sd, strict=True)):
        b.annotate(f"{value:.1f}", (value + spread, i), xytext=(4, 0), textcoords="offset points", va="center")
    b.invert_yaxis()
    b.set(xlabel="Fréchet distance (lower is better)", xlim=(0, 1.15 * max(y)))
    b.grid(axis="y", visible=False)
    b.set_title("The auxiliary model", loc="left", fontsize=10)

    reached = {r["name"]: r["fd"]["value"] for r in result["r_init"]["rows"]}
    by_r_init = [g for g in result["gradients"] if g["name"].startswith("r_init")]
    shades = plt.get_cmap("viridis")([0.05, 0.22, 0.4, 0.58, 0.76, 0.92])
    for shade, student in zip(shades, by_r_init, strict=True):
        at = student["at"]
        x, y = [p["distance"] for p in at], [p["cosine"] for p in at]
        name = f"{student['name']} ({reached[student['name']]:.1f})"
        c.errorbar(x, y, [p.get("cosine_sd") or 0.0 for p in at], color=shade, lw=1.3, capsize=2, label=name)
        c.scatter(x, y, [60 * p["ratio"] for p in at], color=shade)
    c.axhline(0, color=INK, lw=0.8)
    c.set(
        xlabel="distance of x_t from x_init (dot: mask ratio of x_t, 0.1 to 0.9)",
        ylabel="cosine of gradients at x_init and at x_t",
    )
    c.legend(frameon=False, fontsize=8, title="(Fréchet distance reached)", title_fontsize=8, loc="lower left")
    c.set_title("The consistency assumption: agreement of gradients", loc="left", fontsize=10)

    rows = result["consistency"]["rows"]
    one = [r for r in rows if r["name"].startswith("mask ratio")]
    x = [float(r["name"].split()[2]) for r in one]
    y, sd = zip(*(_number(r, "fd") for r in one), strict=True)
    d.errorbar(x, y, sd, color=BLUE, marker="o", capsize=3, label="trained at this mask ratio only")
    whole = next(_number(r, "fd")[0] for r in rows if r["name"] == "all mask ratios")
    d.axhline(whole, color=RED, ls="--", label=f"all mask ratios ({whole:.1f})")
    d.set(yscale="log", xlabel="mask ratio of x_t in training", ylabel="Fréchet distance (lower is better)")
    d.legend(frameon=False, fontsize=8)
    d.set_title("Trained at one mask ratio, or at all", loc="left", fontsize=10)

    for axes in (a, d):
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def samplers(result: Mapping[str, Any], path: Path) -> Path:
    """Three panels against network passes: Fréchet distance, recall, accuracy; one line per sampler."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["eval"]["rows"]:
        if row["of"] == "teacher":
            lines.setdefault(row["name"].rpartition(", ")[0], []).append(row)
    figure, panels = plt.subplots(1, 3, figsize=(12.5, 4.6), layout="constrained")
    labels = {"fd": "Fréchet distance (lower is better)", "recall": "recall", "accuracy": "accuracy of the judge"}
    for axes, (metric, label) in zip(panels, labels.items(), strict=True):
        for i, (name, rows) in enumerate(lines.items()):
            rows = sorted(rows, key=lambda r: float(r["passes"]))
            y, sd = zip(*(_number(r["metrics"], metric) for r in rows), strict=True)
            passes = [r["passes"] * (1 + 0.02 * (i - (len(lines) - 1) / 2)) for r in rows]  # apart, where they agree
            axes.errorbar(passes, y, sd, marker="osD^vP"[i % 6], ms=5, lw=1.3, capsize=2, color=f"C{i}", label=name)
        axes.set(xscale="log", xlabel="network passes per image (log scale)", ylabel=label)
        axes.minorticks_off()
        axes.set_xticks([8, 16, 32, 64], ["8", "16", "32", "64"])
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(lines), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def captions(result: Mapping[str, Any], path: Path) -> Path:
    """Share of captions that images show, by task and row."""
    rows = [r for r in result["eval"]["rows"] if r["of"] in ("teacher", "student") and r["decode"] == "hard"]
    tasks = [name for name in rows[0]["metrics"] if name in ("captions", *TASKS)]
    figure, bars = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        y, sd = zip(*(_number(row["metrics"], task) for task in tasks), strict=True)
        at = [k + (i - (len(rows) - 1) / 2) * width for k in range(len(tasks))]
        gray = row["of"] == "teacher"
        color = plt.get_cmap("Greys")(0.35 + 0.15 * i) if gray else f"C{i}"
        bars.bar(at, y, width, yerr=sd, color=color, error_kw={"lw": 0.8}, label=row["name"])
    bars.set_xticks(range(len(tasks)), ["all" if task == "captions" else task for task in tasks])
    bars.set_ylabel("share of images that show their caption")
    bars.legend(frameon=False, ncols=2, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def searches(result: Mapping[str, Any], path: Path, least: float = 12) -> Path:
    """Optimized reward against compute (from `least` forward-equivalents on), and what was only watched."""
    methods = [m for m in result["search"]["methods"] if m["passes"] > 1]
    watched = list(methods[0]["held_out"])
    figure, panels = plt.subplots(1, 1 + len(watched), figsize=(4.6 * (1 + len(watched)), 4.2), layout="constrained")
    for i, method in enumerate(methods):
        tried = not method["name"].startswith("TTEO")
        look = {"color": "0.35" if tried else f"C{i}", "ls": ":" if method["decode"] == "soft" else "-", "lw": 1.4}
        x, scores = zip(*sorted(zip(chain(*method["trace_passes"]), chain(*method["trace"]), strict=True)), strict=True)
        best = [(a, b) for a, b in zip(x, accumulate(scores, max), strict=True) if a >= least]
        panels[0].plot(*zip(*best, strict=True), **look, label=method["name"])
        for axes, key in zip(panels[1:], watched, strict=True):
            aside = method["passes"] + 1.5 * (i - (len(methods) - 1) / 2)  # apart, where they agree
            point = (aside, method["held_out"][key], method["held_out_sem"][key])
            shape = {"fmt": "x" if tried else "o", "ms": 6, "capsize": 3, "color": look["color"]}
            axes.errorbar(*point, **shape, mfc="white" if method["decode"] == "soft" else None, label=method["name"])
    for axes, label in zip(panels, ["optimized reward (log-odds)", *(f"held out: {k}" for k in watched)], strict=True):
        axes.set(xlabel="forward-equivalents a caption", ylabel=label)
        axes.grid(alpha=0.25)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path

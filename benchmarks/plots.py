"""Pictures of benchmark results, for readers who have not seen the code (needs matplotlib, extra `benchmarks`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import ScalarFormatter

RESULTS = Path(__file__).parent / "results"
INK, BLUE, RED = "#333333", "#2f6db5", "#c0483d"
plt.rcParams.update(
    {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
)


def _number(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    return row[metric]["value"], row[metric]["sd"] or 0.0


def ablations(result: Mapping[str, Any]) -> Path:
    """Four panels: r_init, the auxiliary, agreement of gradients over mask ratios, one mask ratio only."""
    figure, ((a, b), (c, d)) = plt.subplots(2, 2, figsize=(10.5, 7.6), layout="constrained")

    rows = result["r_init"]["rows"]
    x = [float(r["name"].split()[-1]) for r in rows]
    y, sd = zip(*(_number(r, "fd") for r in rows), strict=True)
    a.errorbar(x, y, sd, color=BLUE, marker="o", capsize=3)
    for xi, yi in zip(x, y, strict=True):
        a.annotate(f"{yi:.1f}", (xi, yi), xytext=(0, 7), textcoords="offset points", ha="center")
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

    shades = plt.get_cmap("viridis")([0.05, 0.22, 0.4, 0.58, 0.76, 0.92])
    for shade, student in zip(shades, result["gradients"], strict=False):
        at = student["at"]
        c.plot(
            [p["ratio"] for p in at], [p["cosine"] for p in at], color=shade, marker="o", ms=3, label=student["name"]
        )
    c.axhline(0, color=INK, lw=0.8)
    c.set(xlabel="mask ratio of the re-masked state x_t", ylabel="cosine of gradients at x_init and at x_t")
    c.legend(frameon=False, fontsize=8)
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
    path = RESULTS / "ablations.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path

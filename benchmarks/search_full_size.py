"""Test-time search at full size: `python benchmarks/search_full_size.py` (minutes of two cores, about 12 GiB).

MaskGen-L, its tokenizer, its text encoder and CLIP ViT-H/14 as reward, all at their published sizes and with random
weights: how much memory TTEO takes on a CPU, what its time goes to, and that its trace rises step by step where steps
are small. Rewards of random networks mean nothing else. Writes results/search_full_size.json.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from provenance import provenance, write_result

from softdimo import recipe
from softdimo.build import Components
from softdimo.math.rollout import start
from softdimo.memory.sizes import human
from softdimo.search.scoring import Scores, Weighted, decoder
from softdimo_plugins.rewards.clip_score import ClipScore
from softdimo_plugins.search.tteo import TTEO

RECIPE = Path(__file__).parent.parent / "recipes" / "maskgen_dimo.yaml"
PROMPTS = ("a red cube on a blue sphere", "two foxes in the snow")
OVERRIDES = (
    "text_encoder.weights=null", "text_encoder.fresh=true", "tokenizer.weights=null", "tokenizer.fresh=true",
    "teacher.weights=null", "teacher.fresh=true", "train=null",
)  # fmt: skip


def measure(starts: int, iterations: int, lr: float) -> dict[str, Any]:
    """One search for every prompt; bytes are those of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.txt"
        file.write_text("\n".join(PROMPTS), encoding="utf-8")
        loaded = recipe.load(RECIPE, (*OVERRIDES, f"data.path={file}"))
        parts = Components(loaded.recipe, "cpu")
        cond = parts.data.ready(parts.data.conditions(len(PROMPTS)))
    net, tokenizer = parts.require_teacher(), parts.require_tokenizer()
    reward = parts.make(ClipScore(use="clip_score", fresh=True))
    built = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    search = TTEO(
        use="tteo", starts=starts, iterations=iterations, optimizer="normalized", lr=lr, decode="soft", rows=1
    ).build(parts.context())
    scores, generator = Scores([Weighted("clip", reward)]), decoder(net, tokenizer, "soft", recompute=True)
    traces, seconds = [], []
    for i in range(len(PROMPTS)):
        began = time.perf_counter()
        found = search.run(
            generator, scores, lambda c, rng: start(net, c, parts.recipe.init, rng)[1], cond[i : i + 1],
            torch.Generator().manual_seed(i),
        )  # fmt: skip
        seconds.append(time.perf_counter() - began)
        traces.append(found.trace[:, :, 0].tolist())
        print(f"{PROMPTS[i]}: {seconds[-1]:.0f} s, {found.passes:.0f} forward-equivalents")
        for trace in traces[-1]:
            print("  " + "  ".join(f"{value:.4f}" for value in trace))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    parameters = {n: sum(p.numel() for p in m.parameters()) for n, m in (
        ("generator", net), ("tokenizer", tokenizer), ("reward", reward))}  # fmt: skip
    rising = all(b > a for trace in traces for one in trace for a, b in pairwise(one))
    print(f"peak of the process {human(peak)}, of which {human(built)} when all was built; rising: {rising}")
    return {
        "prompts": PROMPTS, "starts": starts, "iterations": iterations, "lr": lr, "passes": search.passes(),
        "parameters": parameters, "built_bytes": built, "peak_bytes": peak, "seconds": seconds, "traces": traces,
        "rising": rising,
    }  # fmt: skip


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, write; returns what is written."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--starts", type=int, default=4)
    ask.add_argument("--iterations", type=int, default=4)
    ask.add_argument("--lr", type=float, default=0.01, help="in units of the table's root mean square")
    asked = ask.parse_args(words)
    result = {"provenance": provenance(), **measure(asked.starts, asked.iterations, asked.lr)}
    print(write_result("search_full_size", result))
    return result


if __name__ == "__main__":
    main()

"""One step against the teacher's 16 guided ones at the size of MaskGit: `python benchmarks/one_step.py`.

Both networks are that of the public weights (24 blocks of width 768, 256 tokens of 1024 codes) with random weights,
which do not change what a pass costs; images are decoded by the VQGAN of 16 x 16 pixels per code. Teacher and student
take turns, and every other round goes backwards; a round ends with one decode, which costs both the same. Passes are
counted while they run. Writes results/one_step.json (`--quick`: tiny sizes, writes nothing).

All takes about nine minutes on two cores, `--batch 4 --precision fp32` alone five. A part replaces its cases in the
file and keeps the others, if they are of the same commit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from instruments import counted
from provenance import RESULTS, provenance, write_result
from torch import Tensor

from softdimo.kinds import Cond, Context, ImageShape, Sampler, Teacher, Tokenizer
from softdimo.math.guidance import Guidance
from softdimo.math.init import Init
from softdimo_plugins.samplers.maskgit import MaskGIT
from softdimo_plugins.samplers.one_step import OneStep
from softdimo_plugins.teachers.maskgit import MaskGit
from softdimo_plugins.tokenizers.vqgan import VQGAN

TEACHER, STUDENT = "teacher, 16 guided steps", "student, one step"
SAMPLERS: dict[str, Sampler] = {
    TEACHER: MaskGIT(use="maskgit", steps=16, guidance=Guidance(scale=4, ramp="linear")),
    STUDENT: OneStep(use="one_step", init=Init(r_init=0.6, sigma=0.1)),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""`bf16` is autocast; weights stay fp32, and are cast in every pass, as autocast does where they are frozen."""
BATCHES = (1, 4)


def networks(quick: bool) -> tuple[Teacher, Tokenizer, dict[str, Any]]:
    """The transformer that teacher and student share the sizes of, the decoder, and these sizes."""
    net, vqgan, side = MaskGit(use="maskgit"), VQGAN(use="vqgan"), 256
    if quick:
        narrow = {"width": 32, "latent": 32, "blocks": 1, "multipliers": (1, 1)}
        net, vqgan, side = net.smoke(), vqgan.model_copy(update=narrow), 8
    image = ImageShape(3, side, side)
    context = Context(image, tuple(map(str, range(net.classes))), _no_parts, vqgan.token_shape(image))
    torch.manual_seed(0)
    made = net.build(context).requires_grad_(False).eval()
    tokenizer = vqgan.build(context).requires_grad_(False).eval()
    sizes = net.model_dump(include={"width", "depth", "heads", "mlp"}) | {
        "tokens": made.shape._asdict(),
        "image": side,
        "parameters": sum(p.numel() for p in made.parameters()),
    }
    return made, tokenizer, sizes


def _no_parts(spec: object) -> Any:
    raise NotImplementedError(f"this benchmark has no {spec}")


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What the work gives, and the seconds it took."""
    began = time.perf_counter()
    out = work()
    return out, time.perf_counter() - began


def measured(net: Teacher, tokenizer: Tokenizer, batch: int, dtype: torch.dtype, times: int) -> dict[str, Any]:
    """Passes, and seconds of every round's samples of teacher and student and of its decode.

    Labels differ within the batch, so that the samples share no pass.
    """
    cond, rng = Cond(torch.arange(batch)), torch.Generator().manual_seed(0)
    rows: dict[str, Any] = {name: {"stated": s.passes(), "sample": []} for name, s in SAMPLERS.items()}
    decode = []
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        tokens = SAMPLERS[STUDENT].sample(net, cond, rng)
        tokenizer.decode(tokens, cond)  # warms up
        for i in range(times):
            for name in list(SAMPLERS)[:: -1 if i % 2 else 1]:
                with counted({"net": net}, batch) as passes:
                    tokens, seconds = timed(partial(SAMPLERS[name].sample, net, cond, rng))
                rows[name]["passes"] = sum(passes.values())
                rows[name]["sample"].append(seconds)
            decode.append(timed(partial(tokenizer.decode, tokens, cond))[1])
    return summed_up(rows, decode)


def summed_up(rows: dict[str, Any], decode: list[float]) -> dict[str, Any]:
    """Medians over the rounds, and how many times as long the teacher takes in a round; without and with its decode."""
    found: dict[str, Any] = {"decode": decode}
    for key, added in (("", [0.0] * len(decode)), ("_decoded", decode)):
        both = [[a + b for a, b in zip(rows[name]["sample"], added, strict=True)] for name in (TEACHER, STUDENT)]
        for name, seconds in zip((TEACHER, STUDENT), both, strict=True):
            rows[name][f"seconds{key}"] = median(seconds)
        times = [a / b for a, b in zip(*both, strict=True)]
        found[f"ratio{key}"] = {"median": median(times), "lowest": min(times), "highest": max(times)}
    return rows | found


def merged(before: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The new cases, and those of an earlier result that were not measured anew, where what they depend on is equal.

    The file that is written here may itself be what differs from the commit.
    """
    was, now = (r["provenance"] | {"git": (r["provenance"]["git"] or "").rstrip("+")} for r in (before, result))
    alike = (was, before["sizes"]) == (now, result["sizes"])
    cases = {(c["precision"], c["batch"]): c for c in [*(before["cases"] if alike else []), *result["cases"]]}
    order = [(p, b) for p in PRECISIONS for b in BATCHES]
    return result | {"cases": [cases[key] for key in order if key in cases]}


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, write; returns what is written."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--quick", action="store_true", help="tiny sizes, two rounds; writes nothing")
    ask.add_argument("--times", type=int, default=5, help="rounds")
    ask.add_argument("--batch", type=int, choices=BATCHES, help="only this one")
    ask.add_argument("--precision", choices=PRECISIONS, help="only this one")
    asked = ask.parse_args(words)
    net, tokenizer, sizes = networks(asked.quick)
    cases = []
    for precision in [asked.precision] if asked.precision else PRECISIONS:
        for batch in [asked.batch] if asked.batch else BATCHES:
            case = measured(net, tokenizer, batch, PRECISIONS[precision], 2 if asked.quick else asked.times)
            cases.append({"precision": precision, "batch": batch} | case)
            print(f"{precision}, batch {batch}:", flush=True)
            for name in SAMPLERS:
                row = case[name]
                print(f"  {name:26}{row['passes']:4g} passes {row['seconds']:9.3f} s", end="")
                print(f"{row['seconds_decoded']:9.3f} s with its decode", flush=True)
            for key in ("ratio", "ratio_decoded"):
                print("  {:26}{median:9.1f} ({lowest:.1f} to {highest:.1f})".format(key, **case[key]), flush=True)
    result = {"sizes": sizes, "cases": cases, "provenance": provenance()}
    if not asked.quick:
        path = RESULTS / "one_step.json"
        if path.is_file():
            result = merged(json.loads(path.read_text(encoding="utf-8")), result)
        print(write_result("one_step", result))
    return result


if __name__ == "__main__":
    main()

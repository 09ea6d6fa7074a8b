"""`softdimo sample`: images of a trained generator, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softdimo import strips
from softdimo.errors import RecipeError
from softdimo.export import load
from softdimo.generator import Generator


def sample(
    where: str | Path,
    labels: Sequence[str] = (),
    n: int | None = None,
    seed: int = 0,
    out: Path = Path("samples.png"),
    device: str = "auto",
    prompts: Sequence[str] = (),
) -> Path:
    """Draw `n` images of a run folder or an export, spread over `labels` (names or numbers), into one PNG.

    Where there is a text encoder, they are spread over `prompts`, one each by default; few prompts head columns.
    """
    generator = load(where, device=device)
    if generator.text is None and prompts:
        raise RecipeError(f"the model in {where} has no text encoder, so it knows no prompts; give --labels")
    if generator.text is not None and (labels or not prompts):
        raise RecipeError(f"the model in {where} draws for text; give --prompts or --prompts-file, and no --labels")
    if generator.text is not None:
        return _sample_prompts(generator, prompts, n or len(prompts), seed, out)
    n = n or 16
    unknown = [
        x for x in labels if x not in generator.classes and not (x.isdigit() and int(x) < len(generator.classes))
    ]
    if unknown:
        raise RecipeError(f"no class is called {', '.join(unknown)}; the classes are {', '.join(generator.classes)}")
    ids = [generator.classes.index(x) if x in generator.classes else int(x) for x in labels]
    chosen = [(ids or list(range(len(generator.classes))))[i % (len(ids) or len(generator.classes))] for i in range(n)]
    return strips.save(strips.grid(generator(labels=chosen, seed=seed).cpu(), max(1, round(n**0.5))), out)


def _sample_prompts(generator: Generator, prompts: Sequence[str], n: int, seed: int, out: Path) -> Path:
    """Images for the prompts in turn: a column for each prompt, or a plain grid where there are more than fit."""
    images = generator(prompts=[prompts[i % len(prompts)] for i in range(n)], seed=seed).cpu()
    if len(prompts) > strips.HEADED:
        return strips.save(strips.grid(images, max(1, round(n**0.5))), out, "; ".join(prompts))
    rows = [images[first : first + len(prompts)] for first in range(0, n, len(prompts))]
    return strips.strip([("", row) for row in rows], out, prompts)

"""The tables of the papers (`published/*.csv`), and rows of our own that stand beside them.

A published row names the evaluator that made it, as far as that is known; rows of unlike evaluators are never in one
table. Our own rows are those of `results/<folder>/*.json` (`collect.py RUN --into FOLDER`), all of one evaluator and
one number of images. One called `<method>, <steps> steps` (`1 step`) stands beside the published row of that name.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provenance import RESULTS

from softdimo.errors import DataError

PUBLISHED = Path(__file__).parent / "published"
COLUMNS = {
    "fid": "FID ↓", "is": "IS ↑", "precision": "precision ↑", "recall": "recall ↑", "density": "density ↑",
    "coverage": "coverage ↑", "coco30k_fid": "COCO FID ↓", "clip": "CLIP ↑", "geneval_overall": "GenEval ↑",
    "hps21_mean": "HPS v2.1 ↑", "overall": "GenEval ↑", "mean": "HPS v2.0 ↑",
}  # fmt: skip
"""Columns that are shown; the files have more (parts of GenEval and HPS)."""
OURS = {
    "fid": "fd", "is": "inception_score", "precision": "precision", "recall": "recall", "density": "density",
    "coverage": "coverage",
}  # fmt: skip
"""The metric of `eval.json` that stands beside a published column."""
EVALUATORS = {
    "cited": "Other methods, as the paper quotes them; by whom and how each was evaluated is not known here.",
    "dimo": "Di[M]O's public code: clean-fid's `legacy_tensorflow` features against statistics of the training images; "
    "Inception score by torch-fidelity; precision to coverage with k = 3 against the 10,000 images of ADM's reference.",
    "soft": "The Soft-Di[M]O paper, whose code is not public; rows of Di[M]O that it repeats are those of Di[M]O's "
    "paper, up to rounding.",
    "dimo_t2i": "Measured by the Di[M]O paper.",
    "redi": "ReDi's paper, which has SDTT too: torch-fidelity's features of clipped images; statistics of the "
    "validation images, or ADM's.",
    "di4c": "Di4C's paper: torch-fidelity's features against the validation images; each image, real or not, is "
    "stretched to its own least and greatest value first.",
    "theta": "The paper of the θ-trapezoidal sampler; its evaluator is not known here.",
    "halton": "Halton's sampler on MaskGit; who measured it, and how, is not known here.",
}


@dataclass(frozen=True)
class Paper:
    """One table of a paper."""

    file: str
    title: str
    folder: str
    """Of results/, where rows of our own are."""
    note: str


TABLES = (
    Paper(
        "table1_imagenet256_maskbit",
        "Table 1 of Soft-Di[M]O: class-conditional ImageNet 256, teacher MaskBit",
        "imagenet256",
        "",
    ),
    Paper(
        "table2_imagenet256_maskgit",
        "Table 2 of Soft-Di[M]O: class-conditional ImageNet 256, teacher MaskGit",
        "imagenet256",
        "The paper prints these rows as one table, but they were made by unlike evaluators, which differ by 0.1 to 0.5 "
        "in FID and by up to 0.06 in precision: small differences between them mean nothing.",
    ),
    Paper(
        "table3_text_to_image",
        "Table 3 of Soft-Di[M]O: text to image",
        "text_to_image",
        "COCO FID is of 30,000 captions through the package T2IBenchmark (MaskGen's own paper uses MJHQ, where FID is "
        "far lower), CLIP is ViT-g-14, HPS is v2.1. The teacher Meissonic is shown at 32 steps; with 48 it is better, "
        "see below.",
    ),
    Paper("dimo_meissonic_geneval", "Di[M]O: GenEval of the student of Meissonic", "text_to_image", ""),
    Paper(
        "dimo_meissonic_hps20",
        "Di[M]O: HPS v2.0 of the student of Meissonic",
        "text_to_image",
        "v2.0 and v2.1 are different models on different scales.",
    ),
)


@dataclass(frozen=True)
class Ours:
    """Rows of our own, of one evaluator."""

    evaluation: Mapping[str, Any]
    """As `eval.json`: evaluator_hash, samples, seeds, rows."""

    def row(self, published: Mapping[str, str]) -> Mapping[str, Any] | None:
        """Our row of the name of a published one."""
        return next((r for r in self.evaluation["rows"] if r["name"] == name_of(published)), None)

    def others(self, published: Sequence[Mapping[str, str]]) -> list[Mapping[str, Any]]:
        """Our rows that none of these published ones is called like."""
        known = {name_of(row) for row in published}
        return [r for r in self.evaluation["rows"] if r["name"] not in known]


def name_of(published: Mapping[str, str]) -> str:
    """What our row beside a published one is called: `MaskGit, 16 steps`."""
    steps = published["steps"]
    return published["method"] if not steps else f"{published['method']}, {steps} step{'s' * (steps != '1')}"


def read(paper: Paper) -> dict[str, list[dict[str, str]]]:
    """The published rows by evaluator, in the order of the paper."""
    found: dict[str, list[dict[str, str]]] = {}
    with (PUBLISHED / f"{paper.file}.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["evaluator"], []).append(row)
    return found


def ours(folder: str, results: Path = RESULTS) -> Ours | None:
    """Our rows of all runs in `results/<folder>`; None where there is none.

    Raises DataError where a file is no collected run, where two were measured by unlike evaluators or with unlike
    numbers of images or seeds, and where two have a row of one name.
    """
    whole: dict[str, Any] = {}
    first, of = "", dict[str, str]()
    for path in sorted((results / folder).glob("*.json")):
        try:
            evaluation = json.loads(path.read_text(encoding="utf-8"))["eval"]
            plan = {key: evaluation[key] for key in ("evaluator_hash", "samples", "seeds")}
            rows = [r for r in evaluation["rows"] if r["of"] in ("teacher", "student")]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a run that benchmarks/collect.py made ({error!r})") from error
        if not whole:
            whole, first = plan | {"rows": []}, path.name
        for key, value in plan.items():
            if value != whole[key]:
                raise DataError(
                    f"{path}: {key} is {value}, but {whole[key]} in {first}; their numbers cannot stand in one column. "
                    "Measure one of them anew, or keep it in another folder"
                )
        for row in rows:
            if row["name"] in of:
                raise DataError(f"{path}: the row '{row['name']}' is in {of[row['name']]} too; rename one of them")
            of[row["name"]] = path.name
        whole["rows"] += rows
    return Ours(whole) if whole else None

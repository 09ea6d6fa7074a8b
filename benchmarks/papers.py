"""The tables of the papers (`published/*.csv`), and rows of our own that stand beside them.

A published row names the evaluator that made it, as far as that is known; rows of unlike evaluators are never in one
table. Our own rows are those of `results/<folder>/*.json` (`collect.py RUN --into FOLDER`), each folder of one
evaluator and one number of images. One called `<method>, <steps> steps` (`1 step`) stands beside the published row of
that name.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from provenance import RESULTS

from softdimo.errors import DataError

PUBLISHED = Path(__file__).parent / "published"
IMAGES = {"imagenet256": 50_000, "coco30k": 30_000, "geneval": 2212, "hpsv2": 3200}
"""Folders of results/ for our rows, and the images of a row in the papers."""


class Column(NamedTuple):
    """A column of a paper, and what of ours stands beside it."""

    head: str
    folder: str
    metric: str
    """In `eval.json`."""


_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_STYLES = ("anime", "concept-art", "paintings", "photo")
_SHORT = {"single_object": "single", "two_object": "two", "concept-art": "concept", "paintings": "painting"}
COLUMNS = {
    "fid": Column("FID ↓", "imagenet256", "fd"),
    "is": Column("IS ↑", "imagenet256", "inception_score"),
    **{name: Column(f"{name} ↑", "imagenet256", name) for name in ("precision", "recall", "density", "coverage")},
    "coco30k_fid": Column("COCO FID ↓", "coco30k", "fd"),
    "clip": Column("CLIP ↑", "coco30k", "clip_score"),
    "geneval_overall": Column("GenEval ↑", "geneval", "geneval"),
    "overall": Column("GenEval ↑", "geneval", "geneval"),
    "hps21_mean": Column("HPS v2.1 ↑", "hpsv2", "hps_v2.1"),
    "mean": Column("HPS v2.0 ↑", "hpsv2", "hps_v2.0"),
    **{
        prefix + _SHORT.get(task, task): Column(f"{task.replace('_', ' ')} ↑", "geneval", f"geneval_{task}")
        for prefix in ("geneval_", "")
        for task in _TASKS
    },
    **{
        f"hps21_{_SHORT.get(style, style)}": Column(f"v2.1 {style} ↑", "hpsv2", f"hps_v2.1_{style}")
        for style in _STYLES
    },
    **{
        {"concept": "concept_art"}.get(short, short): Column(f"v2.0 {style} ↑", "hpsv2", f"hps_v2.0_{style}")
        for style in _STYLES
        for short in [_SHORT.get(style, style)]
    },
}
"""Every column of the files that is a number of an evaluator."""
EVALUATORS = {
    "cited": "Other methods, as the paper quotes them; by whom and how each was evaluated is not known here.",
    "dimo": "Di[M]O's public code: clean-fid's `legacy_tensorflow` features against statistics of the training images; "
    "Inception score by torch-fidelity; precision to coverage with k = 3 against the 10,000 images of ADM's reference.",
    "soft": "The Soft-Di[M]O paper, whose code is not public; rows of Di[M]O that it repeats are those of Di[M]O's "
    "paper, up to rounding.",
    "dimo_t2i": "Di[M]O's paper; its public code saves four PNG files of a prompt for GenEval and JPEG files for HPS, "
    "and calls the official scorers.",
    "redi": "ReDi's paper, which has SDTT too: torch-fidelity's features of clipped images; statistics of the "
    "validation images, or ADM's.",
    "di4c": "Di4C's paper: torch-fidelity's features against the validation images; each image, real or not, is "
    "stretched to its own least and greatest value first.",
    "theta": "The paper of the θ-trapezoidal sampler; its evaluator is not known here.",
    "halton": "Halton's sampler on MaskGit; who measured it, and how, is not known here.",
}


@dataclass(frozen=True)
class Paper:
    """One table of a paper, or some columns of it."""

    file: str
    title: str
    note: str = ""
    columns: tuple[str, ...] = ()
    """Those that are shown; all that the file has when empty."""
    ours: Mapping[str, str] = field(default_factory=dict)
    """What our rows call a method, where another table has it under that name."""

    @property
    def folders(self) -> list[str]:
        """Of results/, where rows of our own are."""
        with (PUBLISHED / f"{self.file}.csv").open(encoding="utf-8", newline="") as file:
            known = [c for c in csv.DictReader(file).fieldnames or () if c in COLUMNS]
        return list(dict.fromkeys(COLUMNS[c].folder for c in self.columns or known))


_STUDENT = {"Di[M]O": "Di[M]O-Meissonic"}
TABLES = (
    Paper("table1_imagenet256_maskbit", "Table 1 of Soft-Di[M]O: class-conditional ImageNet 256, teacher MaskBit"),
    Paper(
        "table2_imagenet256_maskgit",
        "Table 2 of Soft-Di[M]O: class-conditional ImageNet 256, teacher MaskGit",
        "The paper prints these rows as one table, but they were made by unlike evaluators, which differ by 0.1 to 0.5 "
        "in FID and by up to 0.06 in precision: small differences between them mean nothing.",
    ),
    Paper(
        "table3_text_to_image",
        "Table 3 of Soft-Di[M]O: text to image",
        "COCO FID is of 30,000 captions through the package T2IBenchmark (MaskGen's own paper uses MJHQ, where FID is "
        "far lower), CLIP is ViT-g-14, HPS is v2.1. The teacher Meissonic is shown at 32 steps; with 48 it is better, "
        "see below. Of GenEval and HPS, the parts are in the next two tables.",
        ("coco30k_fid", "clip", "geneval_overall", "hps21_mean"),
    ),
    Paper(
        "table3_text_to_image",
        "Table 3 of Soft-Di[M]O: GenEval by task",
        "The mean of the tasks is GenEval. The paper rounds each; the row with TTS averages to 0.625.",
        (*(f"geneval_{_SHORT.get(task, task)}" for task in _TASKS), "geneval_overall"),
    ),
    Paper(
        "table3_text_to_image",
        "Table 3 of Soft-Di[M]O: HPS v2.1 by style",
        'LDM, DALLE 2 and SDXL are rows of HPSv2\'s own page; SDXL is its "SDXL Base 0.9".',
        (*(f"hps21_{_SHORT.get(style, style)}" for style in _STYLES), "hps21_mean"),
    ),
    Paper("dimo_meissonic_geneval", "Di[M]O: GenEval of the student of Meissonic", ours=_STUDENT),
    Paper(
        "dimo_meissonic_hps20",
        "Di[M]O: HPS v2.0 of the student of Meissonic",
        "v2.0 and v2.1 are different models on different scales.",
        ours=_STUDENT,
    ),
)


@dataclass(frozen=True)
class Ours:
    """Rows of our own, of one evaluator."""

    evaluation: Mapping[str, Any]
    """As `eval.json`: evaluator, evaluator_hash, samples, seeds, rows."""

    def row(self, name: str) -> Mapping[str, Any] | None:
        """Our row of that name."""
        return next((r for r in self.evaluation["rows"] if r["name"] == name), None)

    def others(self, known: Collection[str]) -> list[Mapping[str, Any]]:
        """Our rows of no known name."""
        return [r for r in self.evaluation["rows"] if r["name"] not in known]


def name_of(paper: Paper, published: Mapping[str, str]) -> str:
    """What our row beside a published one is called: `MaskGit, 16 steps`."""
    steps, method = published["steps"], paper.ours.get(published["method"], published["method"])
    return method if not steps else f"{method}, {steps} step{'s' * (steps != '1')}"


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
            plan["evaluator"] = evaluation.get("evaluator", {})
            rows = [r for r in evaluation["rows"] if r["of"] in ("teacher", "student")]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a run that benchmarks/collect.py made ({error!r})") from error
        if not whole:
            whole, first = plan | {"rows": []}, path.name
        for key in ("evaluator_hash", "samples", "seeds"):
            if (value := plan[key]) != whole[key]:
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

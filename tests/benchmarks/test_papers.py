"""The papers' tables: every published row is shown, ours beside it, and unlike evaluators never share a column."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import papers
import provenance
import readme
import tables
from collect import collect

from softdimo.errors import DataError

ONE, TWO = papers.TABLES[:2]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder for results."""
    monkeypatch.setattr(provenance, "RESULTS", tmp_path / "results")
    (tmp_path / "results" / "imagenet256").mkdir(parents=True)
    return tmp_path / "results"


def measured(results, run, rows, evaluator="a" * 64, samples=50_000, into="imagenet256", **more):
    """Collect a finished run with these rows: name -> Fréchet distance (and `more` numbers)."""
    others = {name: {"value": value, "sd": None} for name, value in more.items()}
    (results / into).mkdir(exist_ok=True)
    folder = results.parent / run
    folder.mkdir()
    others["recall"] = {"value": 0.5, "sd": None}
    made = [
        {"name": name, "of": "student", "n": samples, "passes": 1.0}
        | {"metrics": {"fd": {"value": fd, "sd": 0.05, "values": [fd, fd]}, **others}}
        for name, fd in rows.items()
    ]
    made.append({"name": "real held out", "of": "real", "n": 9, "metrics": {"fd": {"value": 1.0, "sd": None}}})
    about = {"frechet": {"formula": "frechet/1"}, "data": "images"}
    table = {
        "evaluator": about,
        "evaluator_hash": evaluator,
        "samples": samples,
        "seeds": [0, 1],
        "rows": made,
        "lock": {"command": "x"},
    }
    (folder / "eval.json").write_text(json.dumps(table), encoding="utf-8")
    (folder / "lock.json").write_text(json.dumps({"git": "1234", "command": "x"}), encoding="utf-8")
    return collect(folder, into)


def cells(page, method, steps):
    """The cells of a published row by the heads of its table."""
    heads = []
    for line in page.splitlines():
        words = [w.strip() for w in line.strip("|").split("|")]
        if words[0] == "published":
            heads = words
        elif words[:2] == [method, steps]:
            return dict(zip(heads, words, strict=True))
    raise AssertionError(f"{method} is not there")


def nothing(paper):
    return dict.fromkeys(paper.folders)


@pytest.mark.parametrize("paper", papers.TABLES, ids=lambda p: p.title)
def test_every_published_row_is_shown_under_a_known_evaluator(paper):
    published = papers.read(paper)
    assert set(published) <= set(papers.EVALUATORS)
    page = tables.paper(paper, published, nothing(paper))
    for evaluator, lines in published.items():
        (part,) = (p for p in page.split("\n\n") if f"| {lines[0]['method']} | {lines[0]['steps']} |" in p)
        assert part.count("\n") == len(lines) + 1, f"the table of {evaluator} has other rows too"
        for line in lines:
            shown = cells(page, line["method"], line["steps"])
            for column in set(papers.COLUMNS) & set(paper.columns or line):
                assert shown.get(papers.COLUMNS[column].head, "") == line[column]
            assert not any(value for head, value in shown.items() if head.startswith("our "))


@pytest.mark.parametrize("file", sorted({paper.file for paper in papers.TABLES}))
def test_every_number_of_a_file_is_in_some_table(file):
    shown, about = set(), {"group", "method", "steps", "params", "evaluator"}
    for paper in papers.TABLES:
        if paper.file == file:
            lines = [line for lines in papers.read(paper).values() for line in lines]
            shown |= set(paper.columns or papers.COLUMNS)
    assert set(lines[0]) - about <= shown
    heads = [papers.COLUMNS[c].head for c in set(lines[0]) - about]
    assert len(heads) == len(set(heads))
    assert {papers.COLUMNS[c].folder for c in set(lines[0]) - about} <= set(papers.IMAGES)


@pytest.mark.parametrize(
    ("file", "parts", "whole"),
    [
        ("table3_text_to_image", ("single", "two", "counting", "colors", "position", "color_attr"), "geneval_overall"),
        ("table3_text_to_image", ("anime", "concept", "painting", "photo"), "hps21_mean"),
        ("dimo_meissonic_geneval", ("single", "two", "counting", "colors", "position", "color_attr"), "overall"),
        ("dimo_meissonic_hps20", ("anime", "concept_art", "painting", "photo"), "mean"),
    ],
)
def test_the_papers_own_means_are_those_of_their_parts(file, parts, whole):
    """Which shows that columns are what they are called; a few do not add up, in print."""
    (paper, *_) = (p for p in papers.TABLES if p.file == file)
    before = whole.rpartition("_")[0]
    prefix = f"{before}_" if before else ""
    for line in (line for lines in papers.read(paper).values() for line in lines):
        mean = sum(float(line[prefix + part]) for part in parts) / len(parts)
        close = abs(mean - float(line[whole])) <= 0.0101
        assert close != ((file, whole, line["method"]) in UNEVEN), line


UNEVEN = (
    ("table3_text_to_image", "hps21_mean", "MaskGen-L"),
    ("table3_text_to_image", "hps21_mean", "TDM"),
    ("dimo_meissonic_hps20", "mean", "SwiftBrush v2"),
)
"""Rows whose printed mean is not that of the printed parts."""


def test_what_the_second_paper_says_of_its_student():
    page = tables.paper(TWO, papers.read(TWO), nothing(TWO))
    assert (cells(page, "Soft-Di[M]O", "1")["FID ↓"], cells(page, "MaskGit", "16")["FID ↓"]) == ("6.40", "6.60")


def test_our_rows_land_beside_the_published_ones_of_their_name(results):
    measured(results, "first", {"Di[M]O, 1 step": 6.91, "MaskGit, 16 steps": 6.7})
    path = measured(results, "second", {"Soft-Di[M]O-MaskBit, 1 step": 2.5, "something else": 3.5})
    assert path == results / "imagenet256" / "second.json"
    assert "command" not in path.read_text(encoding="utf-8")
    found = papers.ours("imagenet256", results)
    second, first = (tables.paper(p, papers.read(p), {"imagenet256": found}) for p in (TWO, ONE))
    student = cells(second, "Di[M]O", "1")
    assert student["our Fréchet distance ↓"] == "6.91 ± 0.05"
    assert student["our recall ↑"] == "0.500"
    assert (student["FID ↓"], student["our Inception score ↑"], student["our density ↑"]) == ("6.91", "–", "–")
    assert cells(second, "MaskGit", "16")["our Fréchet distance ↓"] == "6.70 ± 0.05"
    assert not cells(second, "MaskGit", "8")["our Fréchet distance ↓"]
    assert cells(first, "Soft-Di[M]O-MaskBit", "1")["our Fréchet distance ↓"] == "2.50 ± 0.05"
    assert not cells(first, "Soft-Di[M]O-MaskBit + train longer", "1")["our Fréchet distance ↓"]
    known = {papers.name_of(p, row) for p in (ONE, TWO) for lines in papers.read(p).values() for row in lines}
    assert [r["name"] for r in found.others(known)] == ["something else"]
    said = tables.ours({"imagenet256": found})
    assert "a" * 12 in said
    assert "(frechet: frechet/1)" in said
    assert "fewer" not in said


def test_text_to_image_is_measured_by_several_evaluators(results, monkeypatch):
    """Each column comes from the folder of its evaluator; HPS v2.0 never stands beside v2.1."""
    name = "Di[M]O-Meissonic, 1 step"
    measured(results, "coco", {name: 38.0}, into="coco30k", samples=30_000, clip_score=0.321)
    measured(results, "geneval", {name: 0.0}, into="geneval", samples=2212, geneval=0.44, geneval_two_object=0.52)
    more = {"hps_v2.1": 28.6, "hps_v2.1_photo": 30.4, "hps_v2.0": 28.1, "hps_v2.0_photo": 27.9}
    measured(results, "hps", {name: 0.0}, into="hpsv2", samples=3200, evaluator="c" * 64, **more)
    found = {folder: papers.ours(folder, results) for folder in papers.IMAGES}

    def ours_of(paper, method):
        page = tables.paper(paper, papers.read(paper), {folder: found[folder] for folder in paper.folders})
        row = cells(page, method, "1")
        return {head: value for head, value in row.items() if head.startswith("our ") and value not in ("", "–")}

    whole, tasks, styles, dimo_geneval, dimo_hps = papers.TABLES[2:]
    assert ours_of(whole, "Di[M]O-Meissonic") == {
        "our Fréchet distance ↓": "38.00 ± 0.05", "our CLIP score ↑": "0.321", "our GenEval ↑": "0.440",
        "our HPS v2.1 ↑": "28.6",
    }  # fmt: skip
    assert ours_of(whole, "Soft-Di[M]O-Meissonic") == {}
    assert ours_of(tasks, "Di[M]O-Meissonic") == {"our GenEval two object ↑": "0.520", "our GenEval ↑": "0.440"}
    assert ours_of(styles, "Di[M]O-Meissonic") == {"our HPS v2.1 photo ↑": "30.4", "our HPS v2.1 ↑": "28.6"}
    assert ours_of(dimo_geneval, "Di[M]O") == {"our GenEval two object ↑": "0.520", "our GenEval ↑": "0.440"}
    assert ours_of(dimo_hps, "Di[M]O") == {"our HPS v2.0 photo ↑": "27.9", "our HPS v2.0 ↑": "28.1"}
    assert not any("2.1" in head for head in cells(tables.paper(dimo_hps, papers.read(dimo_hps), found), "Di[M]O", "1"))

    monkeypatch.setattr(papers, "ours", lambda folder, results=results: found[folder])
    page = readme.published()
    assert page.count("| 38.00 ± 0.05 |") == 1
    assert "## Other rows" not in page, "the student of Di[M]O's tables is the one of Table 3"
    assert "Ours (hpsv2): 3200 images a row. Their evaluator cccccccccccc" in page


@pytest.mark.parametrize(
    ("changed", "said"), [({"evaluator": "b" * 64}, "evaluator_hash"), ({"samples": 5000}, "samples is 5000")]
)
def test_unlike_evaluators_are_refused(results, changed, said):
    measured(results, "first", {"Di[M]O, 1 step": 6.9})
    measured(results, "second", {"MaskGit, 16 steps": 6.6}, **changed)
    with pytest.raises(DataError, match=rf"second\.json: {said}.*first\.json"):
        papers.ours("imagenet256", results)


def test_two_rows_of_one_name_are_refused(results):
    measured(results, "first", {"Di[M]O, 1 step": 6.9})
    measured(results, "second", {"Di[M]O, 1 step": 6.8})
    with pytest.raises(DataError, match=r"second\.json: the row 'Di\[M\]O, 1 step' is in first\.json too"):
        papers.ours("imagenet256", results)


def test_a_file_that_is_no_run_is_named(results):
    (results / "imagenet256" / "other.json").write_text('{"rows": []}', encoding="utf-8")
    with pytest.raises(DataError, match=r"other\.json is not a run"):
        papers.ours("imagenet256", results)


@pytest.mark.parametrize(
    ("folder", "images", "said"),
    [
        ("imagenet256", 5000, "fewer images than the 50,000 of the papers make the distance larger"),
        ("coco30k", 5000, "fewer images than the 30,000 of the papers make the distance larger"),
        ("geneval", 553, "fewer images than the 2,212 of the papers. Their"),
        ("hpsv2", 320, "fewer images than the 3,200 of the papers. Their"),
    ],
)
def test_fewer_images_than_the_papers_are_said(results, folder, images, said):
    assert "empty" in tables.ours({folder: papers.ours(folder, results)})
    measured(results, "first", {"Di[M]O, 1 step": 12.0}, samples=images, into=folder)
    assert said in tables.ours({folder: papers.ours(folder, results)})

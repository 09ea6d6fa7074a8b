from __future__ import annotations

from pathlib import Path

from softdimo.report.folder import Folder
from softdimo.report.results import metrics_part
from softdimo.report.search import search_part
from tests.report.fake import evaluation, row, search, write_json
from tests.report.test_svg import data


def charts(part: str) -> dict[str, dict]:
    figures = ["<figure" + f.split("</figure>")[0] for f in part.split("<figure")[1:]]
    return {f.split("<b>")[1].split("</b>")[0]: data(f) for f in figures if "data-chart" in f}


def test_ways_of_sampling_are_lines_of_their_own(tmp_path: Path) -> None:
    rows = [
        row(f"{use} {steps}", "teacher", steps, 20.0 / steps, 0.9, sampler={"use": use})
        for use in ("random_order", "maskgit")
        for steps in (8, 2, 4)
    ]
    write_json(tmp_path / "eval.json", evaluation() | {"rows": [*rows, row("s", "student", 1, 5.0, 0.9)]})
    part = metrics_part(Folder(tmp_path))
    assert part is not None
    lines = {s["n"]: s["x"] for s in charts(part)["Fréchet distance ↓"]["s"]}
    assert lines == {"teacher, random order": [2, 4, 8], "teacher, maskgit": [2, 4, 8], "s": [1]}


def test_reservations_of_metrics_are_shown(tmp_path: Path) -> None:
    write_json(
        tmp_path / "eval.json", evaluation() | {"rows": [row("s", "student", 1, 5.0, 0.9, notes=["use more images"])]}
    )
    assert "s: use more images" in str(metrics_part(Folder(tmp_path)))


def test_sweeps_samplers_and_seeds_are_told(tmp_path: Path) -> None:
    settings = {"use": "one_step", "temperature": 7.0, "top_k": None, "init": {"r_init": 0.6, "sigma": None}}
    swept = row("s, temperature 7", "student", 1, 5.0, 0.9, sampler=settings) | {"sweep": {"temperature": [1.0, 7.0]}}
    write_json(tmp_path / "eval.json", evaluation() | {"seeds": [4, 5], "rows": [swept, row("r", "real", 0, 5.0, 0.9)]})
    part = str(metrics_part(Folder(tmp_path)))
    assert part.count("temperature was swept (1.0, 7.0): whoever quotes the best of these rows chose it") == 1
    assert "Samplers, seeds 4, 5" in part
    assert "use: one_step, temperature: 7.0, init: {r_init: 0.6}" in part


def test_without_numbers_there_is_no_section(tmp_path: Path) -> None:
    assert metrics_part(Folder(tmp_path)) is None
    write_json(tmp_path / "eval.json", evaluation() | {"rows": []})
    assert metrics_part(Folder(tmp_path)) is None
    assert search_part(Folder(tmp_path)) is None


def test_search_scores_stand_against_their_cost(tmp_path: Path) -> None:
    write_json(tmp_path / "search.json", search())
    found = charts(str(search_part(Folder(tmp_path))))
    assert [(s["n"], s["x"], s["y"]) for s in found["Score"]["s"]][-1] == ("TTEO, 4 starts", [52.0], [-0.06])
    assert found["second judge (held out)"]["s"][2]["y"] == [0.975]
    traces = {s["n"]: s for s in found["Best so far"]["s"]}
    assert traces["best of 4"]["x"] == [1, 2, 3, 4]
    assert traces["TTEO, 4 starts"]["x"] == [4, 16, 28, 40, 52]
    assert "one step, argmax" not in traces


def test_rewards_that_are_optimized_together_have_columns(tmp_path: Path) -> None:
    found = search()
    for method in found["methods"]:
        method["rewards"] = {"clip": 0.31, "hps": 0.28}
    found["methods"][-1]["calibration"] = 8
    write_json(tmp_path / "search.json", found)
    source = str(search_part(Folder(tmp_path)))
    for said in (">clip<", ">hps<", ">0.310<", "over 8 random starts of the same condition"):
        assert said in source
    write_json(tmp_path / "search.json", search())
    plain = str(search_part(Folder(tmp_path)))
    assert ">clip<" not in plain
    assert "random starts of the same condition" not in plain

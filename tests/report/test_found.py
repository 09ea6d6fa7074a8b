"""The page of test-time searches: everything inside, numbers that are those of the results, pictures within bounds."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softdimo.report import found_page
from softdimo.report.found import publish, record
from softdimo.report.found_card import LARGEST, thinned, thumbnail
from softdimo.search.scoring import Scores, Weighted
from softdimo.search.wanted import of_labels
from softdimo_plugins.search.best_of_n import BestOfN
from softdimo_plugins.search.tteo import TTEO
from tests.helpers import CLASSES
from tests.report.test_page import EVIL, Page
from tests.search.test_scoring import Bright, Deep
from tests.search.test_winners import ABOUT, searcher

ASKED = of_labels(["ant", "cow", "ant"], CLASSES)


def made(folder: Path, asked=ASKED, **changes) -> Path:
    searcher(**({"compare": True} | changes)).run(asked, folder)
    return folder


def written(folder: Path, asked=ASKED, **about) -> str:
    return publish(folder, ABOUT | about, [each.key for each in asked]).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("found"))


@pytest.fixture(scope="module")
def source(folder: Path) -> str:
    return written(folder)


def said(source: str) -> str:
    return " ".join("".join(Page(source).text).split())


def test_it_is_self_contained(source: str) -> None:
    page = Page(source)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[\w+/=]+", "", source))
    assert page.all("link") == []
    assert all("src" not in s for s in page.all("script"))
    assert all(re.match(r"data:image/(png|jpeg);base64,", image["src"]) for image in page.all("img"))
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_every_condition_shows_start_steps_winner_and_comparison(folder: Path, source: str) -> None:
    page = Page(source)
    whole = record(folder, ABOUT, [each.key for each in ASKED])
    labels = [image["alt"] for image in page.all("img")]
    for result in whole["conditions"]:
        assert len(result["shown"]) == 7
    each = ["no search", "winner", "best of 20", "start", "step 1", "step 2", "step 3"]
    assert labels == [f"{text}: {name}" for text in ("ant", "cow", "ant") for name in each]
    with Image.open(folder / "conditions" / whole["conditions"][1]["key"] / "winner.png") as file:
        raw = base64.b64decode(page.all("img")[8]["src"].partition(",")[2])
        with Image.open(io.BytesIO(raw)) as shown:
            assert np.array_equal(np.asarray(shown), np.asarray(file)), "the very picture"


def test_the_numbers_are_those_of_the_results(folder: Path, source: str) -> None:
    from softdimo.report.scale import number

    text = said(source)
    whole = record(folder, ABOUT, [each.key for each in ASKED])
    for result in whole["conditions"]:
        for row in result["shown"].values():
            assert number(row["score"]) in text
            assert number(row["held_out"]["right"]) in text
    for what in (
        "Test-time search: ant (2 times), cow", "tiny, a one-step student, drew 3 conditions",
        "20 forward-equivalents", "score · 1 forward-equivalent", "Best of 20 random inputs", "ant, search 2",
        "a forward pass of the student counts 1, its backward 2", "right, held out", "3 conditions side by side",
        "The search raised the score of",
    ):  # fmt: skip
        assert what in text, what
    assert 'aria-label="e_best = arg max_e R"' in source


def test_each_start_has_a_curve(source: str) -> None:
    assert source.count("How all 4 starts climbed") == 0
    assert source.count("How all 2 starts climbed") == 3
    assert source.count(", the winner&quot;") >= 3


def test_several_rewards_have_rows_of_their_own(tmp_path: Path) -> None:
    score = Scores([Weighted("bright", Bright()), Weighted("deep", Deep())], pool=4)
    text = said(written(made(tmp_path, score=score), score=["bright", "deep"]))
    assert "24 forward-equivalents: 4 for the units of the rewards, 20 for the search" in text
    assert "4 per condition found mean and deviation of each reward" in text
    assert "highest score (bright + deep)" in text


def test_a_search_without_steps_has_no_start(tmp_path: Path) -> None:
    source = written(made(tmp_path, method=BestOfN(n=5), compare=False))
    names = [image["alt"].partition(": ")[2] for image in Page(source).all("img")]
    assert names == ["no search", "winner"] * 3
    assert "Best so far" in source
    assert "climb on which" not in source


def test_starts_that_stopped_say_so(tmp_path: Path) -> None:
    method = TTEO(starts=2, iterations=9, unit=0.3, lr=30.0, patience=1)
    text = said(written(made(tmp_path, ASKED[:1], method=method), ASKED[:1], settings={"iterations": 9}))
    assert re.search(r"starts stopped after \d and \d steps", text)


def test_one_condition_and_none(tmp_path: Path) -> None:
    text = said(written(made(tmp_path, ASKED[:1]), ASKED[:1]))
    assert "drew 1 condition." in text
    assert "All together" not in text
    text = said(written(tmp_path / "none"))
    assert "3 conditions not searched yet; the same command again goes on" in text


def test_a_held_out_reward_that_falls_is_told(folder: Path) -> None:
    whole = record(folder, ABOUT, [each.key for each in ASKED])
    for result in whole["conditions"]:
        result["shown"]["winner"]["held_out"]["right"] = -5.0
    assert "right, which nothing optimized, fell" in said(found_page.page(whole, folder))
    for result in whole["conditions"]:
        result["shown"]["winner"]["held_out"]["right"] = None
    assert "which nothing optimized" not in said(found_page.page(whole, folder))


def test_text_of_others_stays_text(folder: Path) -> None:
    whole = record(folder, ABOUT, [each.key for each in ASKED])
    for result in whole["conditions"]:
        result["text"] = EVIL
    whole |= {"method": EVIL, "model": EVIL, "reward": EVIL, "held_out": [EVIL], "settings": {EVIL: EVIL}}
    for result in whole["conditions"]:
        for row in result["shown"].values():
            row["held_out"] = {EVIL: 1.0}
    page = Page(found_page.page(whole, folder))
    assert not any(image["src"] == "x" for image in page.all("img"))
    assert len(page.all("script")) == 1


def test_many_pictures_are_left_in_their_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found_page, "BUDGET", 1)
    whole = record(folder, ABOUT, [each.key for each in ASKED])
    page = Page(found_page.page(whole, folder))
    assert len(page.all("img")) == 7, "the first condition, which used up the budget"
    links = [a["href"] for a in page.all("a")]
    assert len(links) == 14
    assert all((folder / link).is_file() for link in links)


def test_few_of_many_steps_are_shown() -> None:
    names = ["one_step", "start", *(f"step_{i}" for i in range(1, 51)), "winner"]
    shown = thinned(names)
    assert shown[:3] == ["one_step", "winner", "start"]
    assert len(shown) == 11
    assert shown[-1] == "step_50"
    assert thinned(["one_step", "winner"]) == ["one_step", "winner"]
    assert thinned(["one_step", "start", "step_1", "winner"]) == ["one_step", "winner", "start", "step_1"]


def test_large_pictures_are_reduced_and_packed(tmp_path: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (600, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    source, width = thumbnail(tmp_path / "photo.png")
    assert width == 400
    assert source.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as shown:
        assert max(shown.size) == LARGEST
    Image.fromarray(noise[:20, :20]).save(tmp_path / "small.png")
    source, width = thumbnail(tmp_path / "small.png")
    assert (width, source.startswith("data:image/png;base64,")) == (20, True)
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as shown:
        assert np.array_equal(np.asarray(shown), noise[:20, :20])

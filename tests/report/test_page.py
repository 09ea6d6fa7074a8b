from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from softdimo.errors import CheckpointError
from softdimo.report import write
from softdimo.report.html import VOID
from softdimo.report.sections import thin
from tests.report.fake import evaluation, full_run, write_json, write_yaml

EVIL = """<script>alert("1")</script>'"><img src=x onerror=alert(2)>"""


class Page(HTMLParser):
    """Checks that elements nest, and gathers ids, links, sources, texts."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(full_run(tmp_path_factory.mktemp("runs"))).read_text(encoding="utf-8")


def test_it_is_self_contained(source: str) -> None:
    page = Page(source)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[\w+/=]+", "", source))
    assert page.all("link") == []
    assert all("src" not in s for s in page.all("script"))
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_numbers_are_there(source: str) -> None:
    text = " ".join("".join(Page(source).text).split())
    for said in (
        "Soft-Di[M]O on animal silhouettes", "600 iterations of 48 samples", "9.4 ± 0.3", "62.3 ± 1.9", "0.958± 0.006",
        "The teacher needs 31 passes to match the student's one", "Di[M]O (arXiv 2503.15457), equations 4-8",
        "softdimo_plugins/losses/gan.py", "set so that its gradient at the logits has 0.3 x the norm of that of dimo",
        "TTEO, 4 starts", "−0.060± 0.020", "auxiliary lag +0.61 nats", "softdimo run recipes/animals.yaml", "2.14.1",
        "TTEO, 4 starts against best of 52, argmaxscore0.021± 0.00413147",
        "1000 samples per row", "animals:9f86d081884c…", "reference size", "r_init: 0.6",
    ):  # fmt: skip
        assert said in text, said


def test_it_shows_every_stage(source: str) -> None:
    text = "".join(Page(source).text)
    for title in ("Convolutional VQ, 49 tokens", "Masked diffusion teacher", "Di[M]O", "Judge"):
        assert title in text
    for chart in ("Divergence", "Loss of each term", "Token entropy", "Auxiliary lag", "Discriminator", "Reward",
                  "Gradient norm", "Weight", "perplexity", "Accuracy", "Best so far"):  # fmt: skip
        assert f"<b>{chart}</b>" in source


def test_it_is_accessible(source: str) -> None:
    page = Page(source)
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert all(a["href"][1:] in ids for a in page.all("a"))
    assert all(i["alt"] for i in page.all("img"))
    assert "columns: bear, bird" in page.all("img")[0]["alt"]
    assert all(s.get("aria-label") or s.get("aria-hidden") for s in page.all("svg"))
    assert all(m.get("aria-label") for m in page.all("math"))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert sum("hidden" not in i for i in page.all("img")) == 2  # the newest strip, and a search


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    bright, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_colors_have_contrast_in_both_modes(source: str) -> None:
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in source.split(":root {")[1:3])
    for colors in (light, dark):
        for ground in ("page", "card", "wash"):
            for ink in ("ink", "muted", "accent"):
                assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
        assert contrast(colors["warn"], colors["warn-wash"]) >= 4.5
        assert contrast(colors["muted"], colors["soft"]) >= 4.5
        assert all(contrast(colors[f"c{i}"], colors["card"]) >= 3 for i in range(8))


def test_untrusted_text_never_becomes_markup(tmp_path: Path) -> None:
    run = full_run(tmp_path, title=EVIL)
    made = evaluation()
    for row in made["rows"]:
        row["name"] = f"{row['name']} {EVIL}"
        row["metrics"] = {f"{k} {EVIL}": v for k, v in row["metrics"].items()}
    made["evaluator"]["frechet"][EVIL] = EVIL
    write_json(run / "eval.json", made)
    write_json(run / "lock.json", {"recipe": EVIL, "command": [EVIL], "distributions": {EVIL: EVIL}})
    (run / "health.txt").write_text(EVIL)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["train"]["terms"][0] |= {"name": EVIL, "use": EVIL}
    recipe["data"]["use"] = EVIL
    write_yaml(run / "recipe.yaml", recipe)
    log = (run / "log.csv").read_text().splitlines()
    quoted = EVIL.replace('"', '""')
    (run / "log.csv").write_text("\n".join([f'{log[0]},"{quoted}/loss"', *(f"{line},1.0" for line in log[1:])]))
    source = write(run).read_text(encoding="utf-8")
    page = Page(source)
    assert len(page.all("script")) == 1
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert EVIL in "".join(page.text)


def test_missing_parts_are_absent(tmp_path: Path) -> None:
    write_yaml(tmp_path / "recipe.yaml", {"title": "nothing yet"})
    page = Page(write(tmp_path).read_text(encoding="utf-8"))
    assert [s["id"] for s in page.all("section")] == ["reproduce"]
    assert page.all("nav") == []
    assert page.all("figure") == []


def test_a_run_in_the_middle_of_training(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    for name in ("eval.json", "search.json", "lock.json", "health.txt"):
        (run / name).unlink()
    page = Page(write(run).read_text(encoding="utf-8"))
    assert [s["id"] for s in page.all("section")] == ["objective", "samples", "curves", "reproduce"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run folder"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_search_picture_outside_the_run_is_not_embedded(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    made = (run / "search" / "TTEO_4_starts.png").rename(tmp_path / "secret.png")
    search = {
        "conditions": 1,
        "methods": [{"name": "m", "passes": 1, "score_mean": 0.0}],
        "pictures": {"m": f"../{made.name}"},
    }
    write_json(run / "search.json", search)
    assert "Pictures: m" not in write(run).read_text(encoding="utf-8")


def test_strips_are_thinned_to_their_budget(tmp_path: Path) -> None:
    files = []
    for i in range(60):
        files.append(tmp_path / f"{i:03d}.png")
        files[-1].write_bytes(b"x" * 100)
    assert thin(files, 10**9)[-1] == files[-1]
    assert len(thin(files, 10**9)) == 40
    assert thin(files, 350) == [files[0], files[30], files[-1]]
    assert thin(files, 10) == [files[-1]]
    assert thin([], 10) == []

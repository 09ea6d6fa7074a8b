"""The page: one HTML file with its style, script, charts and pictures inside."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from softdimo import __version__
from softdimo.report.folder import Folder
from softdimo.report.headline import about, headline
from softdimo.report.html import Html, tag
from softdimo.report.results import metrics_part
from softdimo.report.search import search_part
from softdimo.report.sections import (
    health_part,
    lineage_part,
    objective_part,
    reproduce_part,
    samples_part,
    tiles,
)
from softdimo.report.table import Table

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(folder: Folder) -> str:
    """The report of a run folder as HTML."""
    found = headline(folder)
    parts = [
        objective_part(folder),
        samples_part(folder),
        metrics_part(folder),
        search_part(folder),
        lineage_part(folder.stages),
        health_part(folder),
        reproduce_part(folder),
    ]
    shown = [p for p in parts if p is not None]
    title = folder.title
    top = tag(
        "header",
        tag("p", "softdimo run", class_="over"),
        tag("h1", title),
        tag("p", about(folder), class_="lead"),
        [tiles(found, Table(folder.evaluation)), tag("p", found.verdict, class_="verdict")] if found else None,
        tag("nav", [_link(p) for p in shown], aria_label="Sections") if len(shown) > 1 else None,
    )
    by = folder.lock.get("softdimo", __version__)
    return document(title, top, shown, f"Written by softdimo {by} from the run folder {folder.path.name}.")


def document(title: str, top: Html, sections: Sequence[Html], foot: str, *styles: str) -> str:
    """A page with its style and script inside, `styles` (files of this package) besides the common one."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="generator", content=f"softdimo {__version__}"),
        tag("title", title),
        tag("style", [_asset(name) for name in ("style.css", *styles)]),
    )
    body = tag("body", top, tag("main", sections), tag("footer", foot), tag("script", _asset("page.js")))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _link(section: Html) -> Html:
    """A link to a section, from its own id and heading."""
    name = section.split('<h2 id="', 1)[1].split("-title", 1)[0]
    title = Html(section.split("</h2>", 1)[0].rsplit(">", 1)[1])
    return tag("a", title, href=f"#{name}")


def _asset(name: str) -> Html:
    """A file of this package, which is ours and therefore markup."""
    return Html((resources.files("softdimo.report") / name).read_text(encoding="utf-8"))

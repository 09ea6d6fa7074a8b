"""HTML and SVG as values: text is escaped unless it is `Html`, so untrusted titles cannot become markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

VOID = {"br", "hr", "img", "meta", "input", "col", "link"}


class Html(str):
    """Text that is already markup."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. Children that are not `Html` are escaped, None is skipped, lists are flattened.

    Attributes: a trailing `_` is dropped, other `_` become `-`; None and False leave the attribute out, True is bare.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escape(str(value))}"')
    head = f"<{' '.join(parts)}>"
    return Html(head) if name in VOID else Html(f"{head}{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Concatenate children, escaping what is not markup."""
    out: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            out.append(child)
        elif isinstance(child, list | tuple):
            out.append(join(child))
        else:
            out.append(escape(str(child)))
    return Html("".join(out))


def table(heads: Sequence[object], rows: Iterable[tuple[str, Iterable[object]]], caption: str = "") -> Html:
    """A table that scrolls sideways on small screens. A row is (css class, cells); the first cell is its header.

    Without any head there is no row of heads.
    """
    body = []
    for css, cells in rows:
        first, *rest = cells
        body.append(tag("tr", tag("th", first, scope="row"), [tag("td", c) for c in rest], class_=css or None))
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption, class_="sr") if caption else None,
            tag("thead", tag("tr", [tag("th", h, scope="col") for h in heads])) if any(heads) else None,
            tag("tbody", body),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption or None,
    )


def details(summary: object, *body: object, id: str | None = None) -> Html:
    """A folded part."""
    return tag("details", tag("summary", summary), *body, id=id)


def prose(sentence: str) -> Html:
    """A sentence whose `backticked` parts become code."""
    return join([tag("code", part) if i % 2 else part for i, part in enumerate(sentence.split("`"))])

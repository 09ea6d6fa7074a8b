"""Equations from one plain notation: as Unicode text for the terminal, as MathML for the report.

`E_t sum_{masked i} D(p_phi^i || p_psi^i)(x_t)`: `_` and `^` make scripts, braces group, Greek letters, `sum`, `prod`
and `grad` are spelled out. Imports no torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from softdimo.report.html import Html, tag

_LETTERS = "alpha beta gamma delta epsilon zeta eta theta lambda mu nu xi pi rho sigma tau phi chi psi omega"
GREEK = {name: unicodedata.lookup(f"GREEK SMALL LETTER {name.replace('lambda', 'lamda').upper()}")
         for name in _LETTERS.split()}  # fmt: skip
SYMBOLS = {
    "sum": "∑", "prod": "∏", "grad": "∇", "||": "‖", "~": "∼", "<=": "≤", ">=": "≥", "->": "→", "!=": "≠", "*": "·",
    "-": "−", "+-": "±", "inf": "∞",
}  # fmt: skip
_TOKEN = re.compile(r"\s+|\d+(?:\.\d+)?(?:e-?\d+)?|\|\||<=|>=|->|!=|\+-|[^\W\d_]+|.", re.UNICODE)
_BIG = {"∑", "∏"}


def text(equation: str) -> str:
    """The equation with Greek letters and symbols, scripts left as written: `∑_{masked i} D(p_φ^i ‖ p_ψ^i)(x_t)`."""
    out = "".join(GREEK.get(t, SYMBOLS.get(t, t)) for t in _TOKEN.findall(equation))
    return re.sub(r"[ \t]+", " ", re.sub(r"([_^])\{([^\W_]+)\}", r"\1\2", out)).strip()


def mathml(equation: str, display: bool = True) -> Html:
    """The equation as a `<math>` element; `;` separates lines."""
    lines = [_Parser(line.strip()).row() for line in equation.split(";") if line.strip()]
    if len(lines) == 1:
        body = lines[0]
    else:
        body = tag("mtable", [tag("mtr", tag("mtd", line, style="text-align:left")) for line in lines])
    return tag("math", body, display="block" if display else "inline", aria_label=text(equation))


def prose(sentence: str) -> str:
    """A sentence with its Greek words as letters: `match p_psi to p_phi` -> `match p_ψ to p_φ`."""
    words = re.compile(rf"(?<![^\W_])({'|'.join(GREEK)})(?![^\W_])")
    return words.sub(lambda m: GREEK[m[1]], sentence)


def weighted_sum(left: str, parts: Sequence[tuple[str, str]]) -> str:
    """`left = w1 L_1 + w2 L_2`, a weight of 1 left out and negative weights subtracted. Parts are (weight, symbol)."""
    out = ""
    for weight, symbol in parts:
        negative = weight.startswith("-")
        weight = weight.removeprefix("-")
        sign = ("-" if negative else "") if not out else (" - " if negative else " + ")
        out += sign + (symbol if weight == "1" else f"{weight} {symbol}")
    return f"{left} = {out or '0'}"


class _Parser:
    """Recursive descent over the tokens of one line. Anything unexpected is shown as it is written."""

    def __init__(self, line: str) -> None:
        self.tokens: list[str] = _TOKEN.findall(line)
        self.at = 0

    def peek(self, ahead: int = 0) -> str:
        place = self.at + ahead
        return self.tokens[place] if place < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def row(self, end: str = "") -> Html:
        items: list[Html] = []
        while self.peek() and self.peek() != end:
            if self.peek().isspace():
                self.space(items)
                continue
            items.append(self.scripted())
        if self.peek():
            self.take()
        return tag("mrow", items)

    def space(self, items: list[Html]) -> None:
        """A blank shows only between two words, or where two or more were written after a comma."""
        blank, before = self.take(), self.tokens[self.at - 2] if self.at > 1 else ""
        words = before[-1:].isalnum() and self.peek()[:1].isalnum() and not {before, self.peek()} & set(SYMBOLS)
        if len(blank) > 1 or words or (before in ("]", ")", "}") and self.peek()[:1].isalpha()):
            items.append(tag("mspace", width="1em" if len(blank) > 1 else "0.25em"))

    def scripted(self) -> Html:
        name = self.peek()
        base = self.atom()
        below = above = None
        while self.peek() in ("_", "^"):
            mark = self.take()
            script = self.atom() if self.peek() else tag("mrow")
            below, above = (script, above) if mark == "_" else (below, script)
        if name == "E" and (above is None and (below is not None or self.peek() == "[")):
            base = tag("mi", "𝔼", mathvariant="normal")
        if below is None and above is None:
            return base
        big = SYMBOLS.get(name) in _BIG
        if below is not None and above is not None:
            return tag("munderover" if big else "msubsup", base, below, above)
        kind = ("munder" if big else "msub") if below is not None else ("mover" if big else "msup")
        return tag(kind, base, below or above)

    def atom(self) -> Html:
        token = self.take()
        if token == "{":
            return self.row("}")
        if token in GREEK:
            return tag("mi", GREEK[token])
        if token in SYMBOLS:
            return tag("mo", SYMBOLS[token], stretchy="false" if token == "||" else None)
        if token[0].isdigit():
            return tag("mn", token)
        if token[0].isalpha():
            return tag("mi", token)
        return tag("mo", token, stretchy="false" if token in "()[]|" else None)

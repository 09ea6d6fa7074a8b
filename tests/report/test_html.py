from __future__ import annotations

from softdimo.report.html import Html, details, join, prose, table, tag


def test_text_is_escaped_and_markup_is_kept() -> None:
    assert tag("p", "<b> & 'x'", tag("b", "y")) == "<p>&lt;b&gt; &amp; &#x27;x&#x27;<b>y</b></p>"


def test_attributes_are_escaped_named_and_left_out() -> None:
    made = tag("a", "x", href='"><script>', class_="c", aria_label=None, hidden=True, data_x=0, open=False)
    assert made == '<a href="&quot;&gt;&lt;script&gt;" class="c" hidden data-x="0">x</a>'


def test_void_elements_have_no_end() -> None:
    assert tag("img", src="x", alt="") == '<img src="x" alt="">'


def test_lists_are_flattened_and_none_is_skipped() -> None:
    assert join(["a", None, ["b", ("<", tag("i"))]]) == "ab&lt;<i></i>"


def test_a_table_has_row_and_column_headers() -> None:
    made = table(["", "n"], [("best", ["<row>", 3])], "<caption>")
    assert '<tr class="best"><th scope="row">&lt;row&gt;</th><td>3</td></tr>' in made
    assert '<th scope="col">n</th>' in made
    assert 'aria-label="&lt;caption&gt;"' in made


def test_details_and_prose() -> None:
    assert details("s", "b", id="x") == '<details id="x"><summary>s</summary>b</details>'
    assert prose("a `<b>` c") == "a <code>&lt;b&gt;</code> c"
    assert isinstance(prose(""), Html)

"""HTML and SVG as values: everything that is not markup already is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_VOID = frozenset({"br", "hr", "img", "link", "meta"})
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is markup and needs no escaping."""

    __slots__ = ()


Content = str | int | float | None | Iterable["Content"]
"""Content of an element. Plain strings are escaped; None is omitted."""


def printable(text: str) -> str:
    """Return the text without control characters (except newline and tab) and without direction marks."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def join(*content: Content) -> Markup:
    """Return pieces of content as one piece of markup."""
    return Markup("".join(_render(piece) for piece in content))


def tag(element: str, *content: Content, **attributes: str | int | float | None) -> Markup:
    """Return an element. Attribute names: `class_` is `class`, other `_` become `-`; None omits the attribute."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(printable(_number(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in _VOID:
        return Markup(f"<{element}{shown}>")
    return Markup(f"<{element}{shown}>{join(*content)}</{element}>")


def table(head: Sequence[Content], rows: Iterable[Sequence[Content]], *, caption: str, text: int = 1) -> Markup:
    """Return a table; the first `text` columns contain words, the others numbers (right-aligned)."""

    def cells(element: str, row: Sequence[Content]) -> Markup:
        return join(
            tag(
                "th" if column == 0 else element,
                content,
                class_=None if column < text else "number",
                scope=("col" if element == "th" else "row") if column == 0 or element == "th" else None,
            )
            for column, content in enumerate(row)
        )

    body = [tag("tr", cells("td", row)) for row in rows]
    inner = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", cells("th", head))) if head else None,
        tag("tbody", body),
    )
    return tag("div", inner, class_="scroll")


def _render(piece: Content) -> str:
    if piece is None:
        return ""
    if isinstance(piece, Markup):
        return str.__str__(piece)
    if isinstance(piece, str):
        return html.escape(printable(piece))
    if isinstance(piece, int | float):
        return _number(piece)
    return "".join(_render(each) for each in piece)


def _number(value: str | int | float) -> str:
    """Round a coordinate to a hundredth: smaller files, same picture."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

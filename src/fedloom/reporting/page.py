"""Builds the HTML page of a report: one file, no script, no external resources."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fedloom.core import files
from fedloom.core.errors import StorageFull, UsageError
from fedloom.reporting.markup import Content, Markup, join, tag

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content policy of the page: display only. Even markup that was not escaped could load and run nothing."""


def page(title: str, *body: Content) -> str:
    """Return a whole HTML document."""
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    return join(Markup("<!doctype html>\n"), tag("html", head, tag("body", tag("main", *body)), lang="en"), "\n")


def section(title: str, *body: Content) -> Markup:
    """Return a part of the page, with a heading that can be linked to."""
    name = "-".join(title.lower().split())
    return tag("section", tag("h2", title, id=name), *body, aria_labelledby=name)


def facts(rows: dict[str, Content], caption: str) -> Markup:
    """Return names and values as a definition list."""
    pairs = [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows.items()]
    return tag("div", tag("h3", caption), tag("dl", pairs, class_="facts"))


def collapsible(title: str, *body: Content) -> Markup:
    """Return long content, collapsed until opened."""
    return tag("details", tag("summary", title), *body)


def write_page(path: Path, document: str) -> Path:
    """Write a document atomically.

    Raises:
        StorageFull: the disk is full.
        UsageError: the path cannot be written; the message says why.
    """
    try:
        files.write(path, document)
    except OSError as exc:
        if files.is_full(exc):
            raise StorageFull(f"{path}: no space left for the page ({len(document):,} characters)") from exc
        raise UsageError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
    return path

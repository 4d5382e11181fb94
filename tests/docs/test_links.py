"""Every relative link leads somewhere, and every page can be found from the index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fedloom_docs_pages import ROOT, anchors, links, pages

_PAGES = pages()


def _local(page: Path) -> list[tuple[Path, str]]:
    """The files a page links to, and the fragment in each."""
    targets = [target for target in links(page) if "://" not in target and not target.startswith("mailto:")]
    split = [target.partition("#") for target in targets]
    return [((page.parent / path).resolve() if path else page, fragment) for path, _, fragment in split]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, fragment in _local(page):
        assert path.exists(), f"{page.relative_to(ROOT)} links to {path}, which is not there"
        if fragment:
            assert fragment in anchors(path), f"{page.relative_to(ROOT)}: {path.name} has no heading for #{fragment}"


def _reached(start: Path, follow: Callable[[Path], list[tuple[Path, str]]] = _local) -> set[Path]:
    seen: set[Path] = set()
    waiting = [start]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".md" and page.exists():
            seen.add(page)
            waiting += [path for path, _ in follow(page)]
    return seen


def test_every_page_is_in_the_index() -> None:
    listed = {path for path, _ in _local(ROOT / "docs" / "README.md")}
    assert {path for path in (ROOT / "docs").rglob("*.md") if path.parent != ROOT / "docs"} <= listed


def test_every_page_is_reached_from_the_readme() -> None:
    assert set((ROOT / "docs").rglob("*.md")) <= _reached(ROOT / "README.md")


def test_every_picture_is_shown() -> None:
    shown = {path for page in _PAGES for path, _ in _local(page)}
    assert set((ROOT / "docs" / "pictures").iterdir()) <= shown


def test_the_links_of_a_page_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A head: `code`, dots.\n[a](b.md#c) ![d](e.svg)\n`[f](g)`\n```\n[h](i)\n```\n", encoding="utf-8")
    assert links(page) == ["b.md#c", "e.svg"]
    assert anchors(page) == {"a-head-code-dots"}

"""Markdown as the tests of the documentation see it: pages, their fenced blocks, their links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_MARK = re.compile(r"<!-- try: (run|parse|show|output|files|save (?P<name>[\w.-]+))( on \w+)? -->")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\s*$")
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    language: str
    text: str
    mark: str | None
    """`run`, `parse`, `show`, `output`, `files` or `save NAME`, each with `on MACHINE` or without; None where no
    comment stands above it."""


def pages() -> list[Path]:
    """Every Markdown file that belongs to the project."""
    folders = ("docs", "src", "examples", "benchmarks", "deploy", "proto")
    below = (path for folder in folders for path in (ROOT / folder).rglob("*.md"))
    return sorted([*ROOT.glob("*.md"), *(path for path in below if "node_modules" not in path.parts)])


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    opened: tuple[int, str, int, str | None] | None = None
    inside: list[str] = []
    mark: str | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, inside = (number, fence["language"], len(fence["indent"]), mark), []
        elif opened is not None and line.strip() == "```":
            start, language, _, above = opened
            found.append(Block(str(page.relative_to(ROOT)), start, language, "\n".join(inside) + "\n", above))
            opened, mark = None, None
        elif opened is not None:
            inside.append(line[opened[2] :])
        elif line.strip():
            comment = _MARK.fullmatch(line.strip())
            mark = line.strip()[len("<!-- try: ") : -len(" -->")] if comment else None
    return found


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page, code left out."""
    prose: list[str] = []
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.strip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            prose.append(re.sub(r"`[^`]*`", "`", line))
    return [match["target"] for match in _LINK.finditer("\n".join(prose))]


def anchors(page: Path) -> set[str]:
    """The fragments that headings of a page can be reached by."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}

"""`python -m fedloom.cli.reference [--check] FOLDER`: write the reference, or say whether it is up to date.

Parts of other pages that are written from the code, too, stand between marks in them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedloom.cli.reference import commands, errors, plugins, records, settings, trust

PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings.render,
    "cli.md": commands.render,
    "plugins.md": plugins.render,
    "errors.md": errors.render,
    "records.md": records.render,
}

PARTS: Mapping[str, Callable[[], str]] = {"../explanation/trust.md": trust.render}
"""Pages, by their path from the reference's folder, that have a part written from the code."""
BEGIN, END = "<!-- Begin: written by `make docs` from the code; do not edit. -->", "<!-- End -->"


def write(folder: Path) -> None:
    """Write every page, and the parts of other pages."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, render in PAGES.items():
        (folder / name).write_text(render(), encoding="utf-8")
    for name in PARTS:
        if (folder / name).is_file():
            (folder / name).write_text(_with_part(folder, name), encoding="utf-8")


def stale(folder: Path) -> list[str]:
    """Return the names of the pages that are missing or out of date."""
    parts = [
        name
        for name in PARTS
        if (folder / name).is_file() and (folder / name).read_text(encoding="utf-8") != _with_part(folder, name)
    ]
    return parts + [
        name
        for name, render in PAGES.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != render()
    ]


def _with_part(folder: Path, name: str) -> str:
    """Return a page with its part written anew."""
    before, begin, rest = (folder / name).read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{folder / name}: expected the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{PARTS[name]()}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedloom.cli.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is outdated")
    parser.add_argument("folder", type=Path, help="folder of the pages, such as docs/reference")
    given = parser.parse_args(arguments)
    if not given.check:
        write(given.folder)
        return 0
    found = stale(given.folder)
    if found:
        print(f"outdated in {given.folder}: {', '.join(found)}. Run `make docs`.", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

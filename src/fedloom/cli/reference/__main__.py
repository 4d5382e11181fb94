"""`python -m fedloom.cli.reference [--check] FOLDER`: write the reference, or say whether it is up to date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedloom.cli.reference import commands, errors, records, settings

PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings.render,
    "cli.md": commands.render,
    "errors.md": errors.render,
    "records.md": records.render,
}


def write(folder: Path) -> None:
    """Write every page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, render in PAGES.items():
        (folder / name).write_text(render(), encoding="utf-8")


def stale(folder: Path) -> list[str]:
    """Names of the pages that are missing or differ from what would be written now."""
    return [
        name
        for name, render in PAGES.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != render()
    ]


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

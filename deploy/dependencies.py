"""Print what fedloom needs at run time, one requirement a line: the image installs it before the code is copied."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Return the dependencies of a project, and those of its extras that are named, each once."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    groups = project.get("optional-dependencies", {})
    unknown = [name for name in extras if name not in groups]
    if unknown:
        raise SystemExit(f"EXTRAS: expected some of {', '.join(sorted(groups))}, got {', '.join(unknown)}")
    lines = [*project["dependencies"], *(line for name in extras for line in _expanded(project["name"], groups, name))]
    return list(dict.fromkeys(lines))


def _expanded(project: str, groups: dict[str, list[str]], extra: str) -> list[str]:
    """Return an extra's requirements, those of the project's own extras it names put in."""
    found: list[str] = []
    for line in groups[extra]:
        own = re.fullmatch(rf"{re.escape(project)}\[(.+)\]", line)
        inner = own[1].split(",") if own else []
        found += [each for name in inner for each in _expanded(project, groups, name.strip())] if own else [line]
    return found


if __name__ == "__main__":
    wanted = [name.strip() for name in sys.argv[1].split(",") if name.strip()]
    print(*requirements(Path(__file__).parents[1] / "pyproject.toml", wanted), sep="\n")

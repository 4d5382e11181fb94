"""Print what fedloom needs at run time, one requirement a line: the image installs it before the code is copied."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The dependencies of a project, and those of its optional groups that are named."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    groups = project.get("optional-dependencies", {})
    unknown = [name for name in extras if name not in groups]
    if unknown:
        raise SystemExit(f"EXTRAS: expected some of {', '.join(sorted(groups))}, got {', '.join(unknown)}")
    return [*project["dependencies"], *(line for name in extras for line in groups[name])]


if __name__ == "__main__":
    wanted = [name.strip() for name in sys.argv[1].split(",") if name.strip()]
    print(*requirements(Path(__file__).parents[1] / "pyproject.toml", wanted), sep="\n")

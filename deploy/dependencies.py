"""Print requirements for pip, one a line: what the image and a device install before fedloom itself.

dependencies.py wanted EXTRAS     what fedloom and its extras (separated by commas) need at run time
dependencies.py versions          the versions of the lock files, without hashes: constraints
dependencies.py locked REPORT     the lock's lines, with hashes, of what pip says it would install (--dry-run --report)
"""

from __future__ import annotations

import json
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


def versions(*locks: Path) -> list[str]:
    """Return the lines of lock files without hashes and comments."""
    lines = (line for lock in locks for line in _entries(lock))
    return [line.partition(" \\\n")[0].strip() for line in lines]


def locked(lock: Path, report: Path) -> list[str]:
    """Return the entries of a lock, with hashes, of the packages in a report of pip's."""
    values = json.loads(report.read_text(encoding="utf-8"))
    names = {_normal(each["metadata"]["name"]) for each in values["install"]}
    return [entry for entry in _entries(lock) if _normal(entry.partition("==")[0]) in names]


def _entries(lock: Path) -> list[str]:
    """Return the requirements of a lock file, each with the lines of hashes that belong to it."""
    found: list[str] = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            found[-1] += f"\n{line}"
        elif line and not line.startswith("#"):
            found.append(line)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip().partition("[")[0]).lower()


def main(command: str, *arguments: str) -> list[str]:
    """Return the lines that a command prints."""
    top = Path(__file__).parents[1]
    if command == "wanted":
        names = [name.strip() for name in arguments[0].split(",") if name.strip()]
        return requirements(top / "pyproject.toml", names)
    if command == "versions":
        return versions(top / "requirements.lock", top / "requirements-torch.lock")
    if command == "locked":
        return locked(top / "requirements.lock", Path(arguments[0]))
    raise SystemExit(f"expected wanted, versions or locked, got {command!r}")


if __name__ == "__main__":
    print(*main(*sys.argv[1:]), sep="\n")

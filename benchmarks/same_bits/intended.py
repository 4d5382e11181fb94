"""The list of intended differences, and what it makes of a preset's comparison."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from benchmarks.same_bits.errors import WrongInput

INTENDED = Path(__file__).parent / "intended.toml"


@dataclass(frozen=True)
class Entry:
    """One intended difference."""

    preset: str
    commit: str
    """The commit that made the difference, by its whole name."""
    reason: str
    full_length_only: bool = False


class Kind(StrEnum):
    """How the comparison of one preset ended."""

    EQUAL = "equal"
    EXCUSED = "intended"
    DIFFERS = "DIFFERS"
    NEEDLESS = "NEEDLESS ENTRY"
    SKIPPED = "skipped"

    @property
    def passes(self) -> bool:
        return self not in (Kind.DIFFERS, Kind.NEEDLESS)


@dataclass(frozen=True)
class Verdict:
    """How the comparison of one preset ended, and why."""

    kind: Kind
    lines: Sequence[str] = ()


def read_entries(resolve: Callable[[str], str], path: Path = INTENDED) -> list[Entry]:
    """Read the list; `resolve` gives a commit's whole name.

    Raises:
        WrongInput: an entry has another form, or names a commit that is not in the repository.
    """
    with path.open("rb") as file:
        table: dict[str, object] = tomllib.load(file)
    entries = table.get("intended", [])
    if set(table) - {"intended"} or not isinstance(entries, list):
        raise WrongInput(f"{path.name}: expected [[intended]] tables and nothing else, got {', '.join(table)}")
    return [_entry(each, f"{path.name}: entry {number}", resolve) for number, each in enumerate(entries, 1)]


def counting(entries: Sequence[Entry], commits: Collection[str]) -> list[Entry]:
    """Return the entries whose commit lies in BASE..HEAD; the others say nothing about this comparison."""
    return [each for each in entries if each.commit in commits]


def judge(lines: Sequence[str], entries: Sequence[Entry], *, shortened: bool) -> Verdict:
    """Judge a preset by what differs and by the entries that count and name it.

    Args:
        lines: what differs; empty where nothing does.
        entries: the counting entries of this preset.
        shortened: the preset was not run in full. An entry with `full_length_only` then expects equal results, and
            excuses nothing.
    """
    visible = [each for each in entries if not (each.full_length_only and shortened)]
    if not lines and visible:
        reported = [f"commit {each.commit[:12]} is entered ({each.reason}), but nothing differs" for each in visible]
        return Verdict(Kind.NEEDLESS, reported)
    if not lines:
        return Verdict(Kind.EQUAL)
    if visible:
        return Verdict(Kind.EXCUSED, [*(f"commit {each.commit[:12]}: {each.reason}" for each in visible), *lines])
    hidden = [f"commit {each.commit[:12]} is entered as visible in full length only" for each in entries]
    return Verdict(Kind.DIFFERS, [*lines, *hidden])


def _entry(value: object, where: str, resolve: Callable[[str], str]) -> Entry:
    allowed = {"preset", "commit", "reason", "full_length_only"}
    if not isinstance(value, dict) or not set(value) <= allowed:
        raise WrongInput(f"{where}: expected a table with {', '.join(sorted(allowed))}, got {value!r}")
    full_length_only = value.get("full_length_only", False)
    if not isinstance(full_length_only, bool):
        raise WrongInput(f"{where}: expected full_length_only as true or false, got {full_length_only!r}")
    try:
        commit = resolve(_text(value, "commit", where))
    except WrongInput as exc:
        raise WrongInput(f"{where}: {exc}") from exc
    return Entry(_text(value, "preset", where), commit, _text(value, "reason", where), full_length_only)


def _text(value: Mapping[str, object], key: str, where: str) -> str:
    found = value.get(key)
    if not isinstance(found, str) or not found.strip():
        raise WrongInput(f"{where}: expected {key} as a text, got {found!r}")
    return found

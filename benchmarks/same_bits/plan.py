"""Which runs are made: each preset inline and with two processes, shortened as `shortened.toml` says."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.same_bits.errors import WrongInput

RUNTIMES: Mapping[str, tuple[str, ...]] = {
    "inline": ("--runtime", "inline"),
    "process": ("--runtime", "process", "--workers", "2"),
}
"""Runtime -> its options of `fedloom run`."""
SHORTENED = Path(__file__).parent / "shortened.toml"


@dataclass(frozen=True)
class Length:
    """How a preset is run: `--set` settings that shorten it, and the preset whose run folder it starts from."""

    settings: tuple[str, ...] = ()
    needs: str | None = None
    seconds: float = 30.0
    """About how long a run takes inline; longer runs start first. A preset that is not in the table gets a guess."""

    def describe(self) -> str:
        """Name the length in a table."""
        return "shortened" if self.settings else "full"


Lengths = Mapping[str, Length]


@dataclass(frozen=True)
class Job:
    """One run of one preset."""

    preset: str
    runtime: str
    length: Length
    key: str
    """Digest of everything that shortens the run, that of the preset it needs included."""

    @property
    def name(self) -> str:
        return f"{self.preset}-{self.runtime}-{self.key}"


def read_lengths(path: Path = SHORTENED) -> Lengths:
    """Read the table of shortened presets.

    Raises:
        WrongInput: a key is unknown or of another type, or a preset needs one that is missing or needs another itself.
    """
    with path.open("rb") as file:
        table: dict[str, object] = tomllib.load(file)
    lengths = {preset: _length(entry, f"{path.name}: [{preset}]") for preset, entry in table.items()}
    for preset, length in lengths.items():
        if length.needs is not None and (length.needs not in lengths or lengths[length.needs].needs is not None):
            raise WrongInput(
                f"{path.name}: [{preset}] needs {length.needs!r}; expected a preset of this table that needs no other"
            )
    return lengths


def full(lengths: Lengths) -> Lengths:
    """Take the shortening away; what a preset needs stays."""
    return {preset: Length((), length.needs, length.seconds) for preset, length in lengths.items()}


def job(preset: str, runtime: str, lengths: Lengths) -> Job:
    """Plan one run. A preset that the table lacks is run in full."""
    length = lengths.get(preset, Length())
    needed = [] if length.needs is None else [length.needs, *lengths[length.needs].settings]
    key = hashlib.sha256(json.dumps([*length.settings, needed]).encode()).hexdigest()[:12]
    return Job(preset, runtime, length, key)


def in_order(jobs: Iterable[Job], lengths: Lengths) -> list[Job]:
    """Order runs: those that others need first (added where they are missing), then the longest first."""
    wanted = list(jobs)
    needed = {each.length.needs for each in wanted if each.length.needs is not None}
    first = [job(preset, "inline", lengths) for preset in sorted(needed)]
    rest = [each for each in wanted if each not in first]
    return [*first, *sorted(rest, key=lambda each: (-each.length.seconds, each.preset, each.runtime))]


def _length(entry: object, where: str) -> Length:
    if not isinstance(entry, dict) or not set(entry) <= {"settings", "needs", "seconds"}:
        raise WrongInput(f"{where}: expected a table with settings, seconds and perhaps needs, got {entry!r}")
    settings, needs, seconds = entry.get("settings", []), entry.get("needs"), entry.get("seconds", 30.0)
    if not isinstance(settings, list) or not all(isinstance(each, str) and "=" in each for each in settings):
        raise WrongInput(f'{where}: expected settings as a list of "key=value", got {settings!r}')
    if needs is not None and not isinstance(needs, str):
        raise WrongInput(f"{where}: expected needs as a preset's name, got {needs!r}")
    if not isinstance(seconds, int | float):
        raise WrongInput(f"{where}: expected seconds as a number, got {seconds!r}")
    return Length(tuple(settings), needs, float(seconds))

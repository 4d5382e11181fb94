"""A run's folder as one value: what reports and comparisons read.

Reading is forgiving where a run may have been killed (no summary, a last line cut short) and strict everywhere else.
"""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from fedloom.core.errors import UsageError
from fedloom.core.history import RoundRecord, RunSummary, Traffic
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import ClientFailure
from fedloom.core.text import dotted

EXPERIMENT = "experiment.toml"
RUN = "run.json"
ROUNDS = "rounds.jsonl"
EVENTS = "events.jsonl"
WORKLOAD = "workload.json"
SUMMARY = "summary.json"
REPORT = "report.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """Everything a run has written so far."""

    path: Path
    experiment: Mapping[str, Any]
    """The resolved settings, as the TOML has them."""
    rounds: tuple[RoundRecord, ...]
    """By rising round; where a resumed run did a round twice, the later one."""
    events: tuple[Mapping[str, Any], ...] = ()
    """Lines of `events.jsonl`: `event` (its class), `at` (ISO time), and its fields."""
    workload: WorkloadInfo | None = None
    summary: RunSummary | None = None
    """None while the run goes on, and after it was killed."""
    run_id: str

    @classmethod
    def read(cls, path: str | Path) -> RunFolder:
        """Read a run's folder.

        Raises:
            UsageError: no folder, not a run's, or a file in it is damaged; the message names the file and the line.
        """
        path = require_run_folder(path)
        try:
            experiment = tomllib.loads((path / EXPERIMENT).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise UsageError(f"{path / EXPERIMENT}: not readable as TOML: {exc}") from exc
        by_round = {record.round: record for record in _records(path / ROUNDS)}
        return cls(
            path=path,
            run_id=str((_json(path / RUN) or {}).get("run_id", path.resolve().name)),
            experiment=experiment,
            rounds=tuple(by_round[number] for number in sorted(by_round)),
            events=tuple(_events(path / EVENTS)),
            workload=_workload(path / WORKLOAD),
            summary=_summary(path / SUMMARY),
        )

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.experiment.get("name", self.run_id))

    @property
    def status(self) -> str:
        """`done`, `failed`, `interrupted`, or `unfinished` where no session of the run has ended in order."""
        return self.summary.status if self.summary else "unfinished"

    @property
    def population(self) -> int:
        """Clients in the federation."""
        return int(self.experiment.get("clients", 1))

    @property
    def planned_rounds(self) -> int:
        """Rounds the experiment asks for."""
        planned = self.experiment.get("rounds", "open")
        return len(self.rounds) if planned == "open" else int(planned)

    @property
    def traffic(self) -> Traffic:
        """The sum over all rounds."""
        return sum((record.traffic for record in self.rounds), Traffic())

    @property
    def seconds(self) -> float:
        """Wall-clock seconds: the summary's, or the rounds' where there is none."""
        return self.summary.seconds if self.summary else sum(record.timing.total_s for record in self.rounds)

    @property
    def failures(self) -> list[ClientFailure]:
        """Every missing answer, those of a last round that never ended too: often they are why it did not."""
        finished = self.rounds[-1].round if self.rounds else 0
        told = [failure for record in self.rounds for failure in record.failures]
        open_round = [
            ClientFailure(**event["failure"])
            for event in self.events
            if event.get("event") == "ClientLost" and event["failure"]["round"] > finished
        ]
        return told + open_round

    def last_event(self, kind: str) -> Mapping[str, Any] | None:
        """The newest event of a class, by its name."""
        return next((event for event in reversed(self.events) if event.get("event") == kind), None)

    def settings(self) -> dict[str, Any]:
        """The experiment's settings by dotted key."""
        return dotted(self.experiment)


def require_run_folder(path: str | Path) -> Path:
    """The path, if it is a run's folder.

    Raises:
        UsageError: it is not; the message names what is missing.
    """
    path = Path(path)
    if not path.is_dir():
        found = "is a file" if path.exists() else f"does not exist (looked in {Path.cwd()})"
        raise UsageError(f"expected a run's folder, but {str(path)!r} {found}")
    if not (path / EXPERIMENT).is_file():
        raise UsageError(
            f"{str(path)!r} is not a run's folder: it has no {EXPERIMENT}. Give the folder that `fedloom run` printed, "
            "such as runs/<id>"
        )
    return path


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file, numbered from 1; a last line without its end was being written and is left."""
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as exc:
            if number == len(lines):
                return
            raise UsageError(f"{path}, line {number}: not JSON ({exc}); the file is damaged") from exc
        if not isinstance(value, dict):
            raise UsageError(f"{path}, line {number}: expected a JSON object, got {type(value).__name__}")
        yield number, value


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Events, without lines that were cut short: a session killed while writing leaves one, and the next goes on."""
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def _records(path: Path) -> Iterator[RoundRecord]:
    for number, value in _lines(path):
        try:
            yield RoundRecord.model_validate(value)
        except pydantic.ValidationError as exc:
            raise UsageError(f"{path}, line {number}: not a round record: {_first(exc)}") from exc


def _summary(path: Path) -> RunSummary | None:
    value = _json(path)
    if value is None:
        return None
    try:
        return RunSummary.model_validate(value)
    except pydantic.ValidationError as exc:
        raise UsageError(f"{path}: not a run's summary: {_first(exc)}") from exc


def _workload(path: Path) -> WorkloadInfo | None:
    value = _json(path)
    if value is None:
        return None
    known = {key: value[key] for key in ("client_sizes", "label_counts", "label_names", "watch") if value.get(key)}
    return WorkloadInfo(data=value.get("data") or {}, **known)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError as exc:
        raise UsageError(f"{path}: not JSON ({exc}); the file is damaged") from exc
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _first(exc: pydantic.ValidationError) -> str:
    error = exc.errors()[0]
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"

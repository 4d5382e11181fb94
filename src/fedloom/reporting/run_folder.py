"""A run's folder as one value: what reports and comparisons read."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedloom.core import run_files
from fedloom.core.errors import UsageError
from fedloom.core.history import RoundRecord, RunSummary, Traffic
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.provenance import recorded_code
from fedloom.core.records import ClientFailure, Info, JsonObject
from fedloom.core.text import dotted


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """Everything a run has written so far."""

    path: Path
    experiment: Info
    """The resolved settings, as in the TOML."""
    rounds: tuple[RoundRecord, ...]
    """In order; if a resumed run repeated a round, the later one."""
    events: tuple[Info, ...] = ()
    """Lines of `events.jsonl`: `event` (its class), `at` (ISO time), and its fields."""
    workload: WorkloadInfo | None = None
    summary: RunSummary | None = None
    """None while the run is running, and after it was killed."""
    run_id: str
    code: Mapping[str, str] = field(default_factory=dict)
    """Code that the run began with, by its name: digests of copied files, a commit, versions of packages."""

    @classmethod
    def read(cls, path: str | Path) -> RunFolder:
        """Read a run's folder.

        Raises:
            UsageError: no folder, not a run's, or a file in it is damaged; the message names the file and the line.
        """
        path = require_run_folder(path)
        try:
            experiment = tomllib.loads((path / run_files.EXPERIMENT).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise UsageError(f"{path / run_files.EXPERIMENT}: not valid TOML: {exc}") from exc
        by_round = {record.round: record for record in run_files.read_rounds(path)}
        return cls(
            path=path,
            run_id=run_files.read_run_id(path),
            experiment=experiment,
            rounds=tuple(by_round[number] for number in sorted(by_round)),
            events=tuple(run_files.read_events(path)),
            workload=run_files.read_workload(path),
            summary=run_files.read_summary(path),
            code=recorded_code(path),
        )

    @property
    def name(self) -> str:
        """Return the experiment's name."""
        return str(self.experiment.get("name", self.run_id))

    @property
    def status(self) -> str:
        """Return `done`, `failed`, `interrupted`, or `unfinished` if no session of the run has ended in order."""
        return self.summary.status if self.summary else "unfinished"

    @property
    def population(self) -> int:
        """Return the number of clients; if they are sites, of those that have joined."""
        clients = self.experiment.get("clients", 1)
        return clients if isinstance(clients, int) else len(self.workload.data.get("sites", ())) if self.workload else 0

    @property
    def planned_rounds(self) -> int | None:
        """Return the experiment's number of rounds; None if open."""
        planned = self.experiment.get("rounds", "open")
        return None if planned == "open" else int(planned)

    @property
    def label_counts(self) -> npt.NDArray[np.float64] | None:
        """Return examples by client and class, shape (clients, classes); None if the workload does not say."""
        counts = self.workload.label_counts if self.workload else ()
        return np.asarray(counts, np.float64) if len(counts) else None

    @property
    def traffic(self) -> Traffic:
        """Return the sum over all rounds."""
        return sum((record.traffic for record in self.rounds), Traffic())

    @property
    def seconds(self) -> float:
        """Return wall-clock seconds: the summary's, otherwise the rounds'."""
        return self.summary.seconds if self.summary else sum(record.timing.total_s for record in self.rounds)

    @property
    def failures(self) -> list[ClientFailure]:
        """Return every missing update, including those of a last round that never ended."""
        finished = self.rounds[-1].round if self.rounds else 0
        reported = [failure for record in self.rounds for failure in record.failures]
        open_round = [
            ClientFailure(**event["failure"])
            for event in self.events
            if event.get("event") == "ClientLost" and event["failure"]["round"] > finished
        ]
        return reported + open_round

    def last_event(self, kind: str) -> Info | None:
        """Return the newest event of a class, by its name."""
        return next((event for event in reversed(self.events) if event.get("event") == kind), None)

    def settings(self) -> JsonObject:
        """Return the experiment's settings by dotted key."""
        return dotted(self.experiment)


@contextlib.contextmanager
def of_any_origin(*paths: Path) -> Iterator[None]:
    """Name run folders whose files a block cannot draw: they may be of anybody's making.

    Raises:
        UsageError: in place of an error that the content of their files has caused.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as exc:
        where = ", ".join(map(str, paths))
        raise UsageError(
            f"{where}: the files of the run do not fit together ({type(exc).__name__}: {exc}). Were they changed, or "
            "written by another version of fedloom? FEDLOOM_DEBUG=1 shows where"
        ) from exc


def require_run_folder(path: str | Path) -> Path:
    """Return the path, if it is a run's folder.

    Raises:
        UsageError: it is not; the message says what is missing.
    """
    path = Path(path)
    if not path.is_dir():
        found = "is a file" if path.exists() else f"does not exist (looked in {Path.cwd()})"
        raise UsageError(f"expected a run's folder, but {str(path)!r} {found}")
    if not (path / run_files.EXPERIMENT).is_file():
        raise UsageError(
            f"{str(path)!r} is not a run's folder: it has no {run_files.EXPERIMENT}. Give the folder that "
            "`fedloom run` printed, such as runs/<id>"
        )
    return path

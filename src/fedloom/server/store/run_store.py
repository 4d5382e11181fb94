"""Storage of a run: its experiment, its rounds, its checkpoints, its result. On disk, or in memory for temporary runs.

`core.run_files` lists the files of a run's folder. Important ones are written next to their target, flushed to disk,
and renamed.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pydantic

from fedloom.core.config import Experiment
from fedloom.core.events import Event
from fedloom.core.history import Choice, RosterLine, RoundRecord, RunSummary
from fedloom.core.pinned import Pinned
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import Array, Arrays, JsonObject, Record

_HOLDERS = "holders"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a run needs to resume after `round`."""

    round: int
    strategy: Record
    selection: Record
    seconds: float
    """Wall-clock seconds the run has taken so far, all sessions together."""
    holders: Mapping[str, Array] = field(default_factory=dict)
    """Clients that have read pinned records, by the records' digests."""
    pinned: Mapping[str, Pinned] = field(default_factory=dict)
    """The pinned records the states name, by digest; stored next to the checkpoint, not in it."""
    population: int = 0
    """Number of clients the selection's state is made for."""
    best: str = ""
    """Digest of the pinned state of the best round's strategy; empty without any."""
    best_round: int = 0
    """That round."""

    @property
    def final_round(self) -> int:
        """Return the round that the model so far is of."""
        return self.best_round if self.best else self.round

    @property
    def final_strategy(self) -> Record:
        """Return the strategy's state of `final_round`."""
        return self.pinned[self.best] if self.best else self.strategy

    def record(self) -> Record:
        """Return the checkpoint as one record that refers to pinned records without including them."""
        groups = {f"strategy:{name}": arrays for name, arrays in self.strategy.groups.items()}
        groups |= {f"selection:{name}": arrays for name, arrays in self.selection.groups.items()}
        groups |= {_HOLDERS: self.holders} if self.holders else {}
        return Record(
            groups,
            {
                "round": self.round,
                "seconds": self.seconds,
                "population": self.population,
                "strategy": {"groups": list(self.strategy.groups), "info": self.strategy.info},
                "selection": {"groups": list(self.selection.groups), "info": self.selection.info},
                "pinned": list(self.pinned),
                **({"best": {"state": self.best, "round": self.best_round}} if self.best else {}),
            },
        )

    @classmethod
    def from_record(
        cls, record: Record, load: Callable[[list[str]], Mapping[str, Pinned]] = lambda digests: {}
    ) -> Checkpoint:
        """Return the checkpoint of a record (inverse of `record`); `load` gets pinned records by their digests."""

        def part(name: str) -> Record:
            head = record.info[name]
            return Record({group: record.groups[f"{name}:{group}"] for group in head["groups"]}, head["info"])

        return cls(
            int(record.info["round"]),
            part("strategy"),
            part("selection"),
            float(record.info["seconds"]),
            record.groups.get(_HOLDERS, {}),
            load(record.info["pinned"]),
            int(record.info["population"]),
            str(best["state"]) if (best := record.info.get("best")) else "",
            int(best["round"]) if best else 0,
        )


class RunStore(Protocol):
    """Storage of one run's results."""

    run_id: str

    @property
    def folder(self) -> Path | None:
        """Return the run's folder; None in memory."""

    def claimed(self) -> AbstractContextManager[None]:
        """Hold the run for one session; raises `RunExists` where another session, of any process, has it."""

    def begin(self, experiment: Experiment) -> None:
        """Write the experiment down, on disk with copies of the code that it refers to by path."""

    def experiment(self) -> Experiment:
        """Return the stored experiment."""

    def changed_code(self) -> list[str]:
        """Return a sentence for each file or folder of code that has changed since the run began."""

    def save_workload(self, info: WorkloadInfo) -> None:
        """Store the workload's description."""

    def workload(self) -> WorkloadInfo | None:
        """Return the workload's description."""

    def append_round(self, record: RoundRecord) -> None:
        """Add a round's record."""

    def rounds(self, upto: int | None = None) -> list[RoundRecord]:
        """Return the recorded rounds; with `upto`, later ones are deleted."""

    def append_choice(self, choice: Choice) -> None:
        """Add a round's choice."""

    def choices(self, upto: int | None = None) -> list[Choice]:
        """Return the recorded choices; with `upto`, later ones are deleted."""

    def append_roster(self, line: RosterLine) -> None:
        """Add a round's roster. Returns when it is safe on disk."""

    def rosters(self) -> list[RosterLine]:
        """Return the recorded rosters; none if clients are no sites."""

    def append_event(self, event: Event) -> None:
        """Add one of `core.events`."""

    def save_checkpoint(self, checkpoint: Checkpoint, keep: int) -> None:
        """Save, then delete all but the newest `keep`. Returns when it is safe on disk."""

    def latest_checkpoint(self) -> Checkpoint | None:
        """Return the newest valid checkpoint; None if there is none yet."""

    def save_client(self, client: int, round: int, exchange: int, state: Record) -> None:
        """Store a client's new state."""

    def client(self, client: int, before: tuple[int, int]) -> Record | None:
        """Return a client's newest state from before (round, exchange)."""

    def prune_clients(self, round: int) -> None:
        """Delete states that no resume from `round` on can need."""

    def save_update(self, round: int, client: int, update: Record) -> None:
        """Store what a client changed in a round."""

    def save_start(self, start: Record) -> None:
        """Store what the run begins with in place of the workload's initial model."""

    def start(self) -> Record | None:
        """Return what the run begins with; None for the workload's initial model."""

    def save_model(self, arrays: Arrays) -> None:
        """Store the final arrays."""

    def save_summary(self, summary: RunSummary) -> None:
        """Store the summary."""

    def discard(self) -> None:
        """Delete the run: its input was wrong, so nothing is worth storing."""


_JSON = pydantic.TypeAdapter[object](object)


def _is_record(value: object) -> bool:
    return isinstance(value, pydantic.BaseModel) or dataclasses.is_dataclass(value)


def event_json(event: Event) -> JsonObject:
    """Return an event as one JSON object, with its kind and the current time."""
    values = {}
    for each in dataclasses.fields(event):
        value = getattr(event, each.name)
        values[each.name] = _JSON.dump_python(value, mode="json") if _is_record(value) else value
    return {"event": type(event).__name__, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), **values}


def new_run_id(name: str) -> str:
    """Return a new run id: time, name, and four letters against collisions."""
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{word}-{secrets.token_hex(2)}"

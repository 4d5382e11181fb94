"""What a run keeps: its experiment, its rounds, its checkpoints, its result. On disk, or in memory for throw-away runs.

`core.run_files` lists the files of a run's folder. One that matters is written beside its place, flushed to the disk,
and renamed into it.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pydantic

from fedloom.core.config import Experiment
from fedloom.core.events import Event
from fedloom.core.history import Choice, RoundRecord, RunSummary
from fedloom.core.pinned import Pinned
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import Array, Arrays, JsonObject, Record

_HOLDERS = "holders"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All a run needs to go on after `round`."""

    round: int
    strategy: Record
    selection: Record
    seconds: float
    """Wall-clock seconds the run has taken so far, all sessions together."""
    holders: Mapping[str, Array] = field(default_factory=dict)
    """Clients that have read pinned records, by the records' digests."""
    pinned: Mapping[str, Pinned] = field(default_factory=dict)
    """The pinned records the states name, by digest; kept beside the checkpoint, not in it."""
    population: int = 0
    """Clients the selection's state is made for."""

    def record(self) -> Record:
        """As one record, pinned records named but left out."""
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
            },
        )

    @classmethod
    def from_record(
        cls, record: Record, load: Callable[[list[str]], Mapping[str, Pinned]] = lambda digests: {}
    ) -> Checkpoint:
        """The inverse of `record`; `load` gets pinned records by their digests."""

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
        )


class RunStore(Protocol):
    """Where one run's results go."""

    run_id: str

    @property
    def folder(self) -> Path | None:
        """The run's folder; None in memory."""

    def begin(self, experiment: Experiment) -> None:
        """Write the experiment down."""

    def experiment(self) -> Experiment:
        """The experiment as it was written down."""

    def save_workload(self, info: WorkloadInfo) -> None:
        """Keep what the workload said about itself."""

    def workload(self) -> WorkloadInfo | None:
        """What the workload said about itself."""

    def append_round(self, record: RoundRecord) -> None:
        """Add a round's record."""

    def rounds(self, upto: int | None = None) -> list[RoundRecord]:
        """The rounds recorded; with `upto`, later ones are dropped for good."""

    def append_choice(self, choice: Choice) -> None:
        """Add what was chosen in a round."""

    def choices(self, upto: int | None = None) -> list[Choice]:
        """The choices recorded; with `upto`, later ones are dropped for good."""

    def append_event(self, event: Event) -> None:
        """Add one of `core.events`."""

    def save_checkpoint(self, checkpoint: Checkpoint, keep: int) -> None:
        """Save, then drop all but the newest `keep`. Returns when it is safe on the disk."""

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest sound checkpoint; None where there is none yet."""

    def save_client(self, client: int, round: int, exchange: int, state: Record) -> None:
        """Keep what a client asked to have back."""

    def client(self, client: int, before: tuple[int, int]) -> Record | None:
        """What a client last asked to have back before (round, exchange)."""

    def prune_clients(self, round: int) -> None:
        """Forget what no resume from `round` on can need."""

    def save_model(self, arrays: Arrays) -> None:
        """Keep the final arrays."""

    def save_summary(self, summary: RunSummary) -> None:
        """Keep the summary."""

    def discard(self) -> None:
        """Leave nothing of the run: its input was wrong, so there is nothing to keep."""


_JSON = pydantic.TypeAdapter[object](object)


def _is_record(value: object) -> bool:
    return isinstance(value, pydantic.BaseModel) or dataclasses.is_dataclass(value)


def event_json(event: Event) -> JsonObject:
    """An event as one JSON object, with its kind and the time now."""
    values = {}
    for each in dataclasses.fields(event):
        value = getattr(event, each.name)
        values[each.name] = _JSON.dump_python(value, mode="json") if _is_record(value) else value
    return {"event": type(event).__name__, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), **values}


def new_run_id(name: str) -> str:
    """A name for a run: when, what, and four letters against collisions."""
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{word}-{secrets.token_hex(2)}"

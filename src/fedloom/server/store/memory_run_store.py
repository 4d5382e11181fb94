"""Stores a temporary run in memory; nothing is left of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from fedloom.core import frames
from fedloom.core.config import Experiment
from fedloom.core.errors import NotFound
from fedloom.core.events import Event
from fedloom.core.history import Choice, RosterLine, RoundRecord, RunSummary
from fedloom.core.pinned import Pinned
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import Arrays, Record
from fedloom.server.store.run_store import Checkpoint


class MemoryRunStore:
    """A run that leaves nothing on disk."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.events: list[Event] = []
        self.summary: RunSummary | None = None
        self.model: Arrays | None = None
        self._experiment: Experiment | None = None
        self._workload: WorkloadInfo | None = None
        self._rounds: list[RoundRecord] = []
        self._choices: list[Choice] = []
        self._rosters: list[RosterLine] = []
        self._checkpoints: list[bytes] = []
        self._pinned: Mapping[str, Pinned] = {}
        self._clients: dict[int, list[tuple[tuple[int, int], bytes]]] = {}
        self._start: bytes | None = None

    @property
    def folder(self) -> Path | None:
        return None

    def claimed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def begin(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def experiment(self) -> Experiment:
        if self._experiment is None:
            raise NotFound(f"run {self.run_id!r} was never started")
        return self._experiment

    def changed_code(self) -> list[str]:
        return []

    def save_workload(self, info: WorkloadInfo) -> None:
        self._workload = info

    def workload(self) -> WorkloadInfo | None:
        return self._workload

    def append_round(self, record: RoundRecord) -> None:
        self._rounds.append(record)

    def rounds(self, upto: int | None = None) -> list[RoundRecord]:
        if upto is not None:
            self._rounds = [record for record in self._rounds if record.round <= upto]
        return list(self._rounds)

    def append_choice(self, choice: Choice) -> None:
        self._choices.append(choice)

    def choices(self, upto: int | None = None) -> list[Choice]:
        if upto is not None:
            self._choices = [choice for choice in self._choices if choice.round <= upto]
        return list(self._choices)

    def append_roster(self, line: RosterLine) -> None:
        self._rosters.append(line)

    def rosters(self) -> list[RosterLine]:
        return list(self._rosters)

    def append_event(self, event: Event) -> None:
        self.events.append(event)

    def save_checkpoint(self, checkpoint: Checkpoint, keep: int) -> None:
        self._checkpoints = [*self._checkpoints, bytes(frames.encode(checkpoint.record()))][-keep:]
        self._pinned = checkpoint.pinned

    def latest_checkpoint(self) -> Checkpoint | None:
        if not self._checkpoints:
            return None
        return Checkpoint.from_record(frames.decode(self._checkpoints[-1]), lambda digests: self._pinned)

    def save_client(self, client: int, round: int, exchange: int, state: Record) -> None:
        states = [item for item in self._clients.get(client, []) if item[0] != (round, exchange)]
        self._clients[client] = sorted([*states, ((round, exchange), bytes(frames.encode(state)))])

    def client(self, client: int, before: tuple[int, int]) -> Record | None:
        older = [frame for at, frame in self._clients.get(client, []) if at < before]
        return frames.decode(older[-1]) if older else None

    def prune_clients(self, round: int) -> None:
        for client, states in self._clients.items():
            needed = [item for item in states if item[0] < (round + 1, 0)][-1:]
            self._clients[client] = needed + [item for item in states if item[0] >= (round + 1, 0)]

    def save_update(self, round: int, client: int, update: Record) -> None:
        pass  # nobody can read it later

    def save_start(self, start: Record) -> None:
        self._start = bytes(frames.encode(start))

    def start(self) -> Record | None:
        return None if self._start is None else frames.decode(self._start)

    def save_model(self, arrays: Arrays) -> None:
        self.model = arrays

    def save_summary(self, summary: RunSummary) -> None:
        self.summary = summary

    def discard(self) -> None:
        self._rounds, self._choices, self._rosters, self._checkpoints, self._clients = [], [], [], [], {}

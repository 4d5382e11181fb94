"""Events of a run, as values: written to `events.jsonl`, shown live, streamed to watchers, counted as metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedloom.core.history import RoundRecord, RunSummary
from fedloom.core.records import ClientFailure, JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStarted:
    """The run is about to do its first round (or the first after a resume)."""

    run_id: str
    name: str
    rounds: int | None
    first_round: int
    clients: int
    cohort: int
    group_size: int
    num_parameters: int
    runtime: str
    workers: int
    where: str
    """Description: `Ray at 10.0.0.1:6379`, `2 processes on this machine`, `this process`."""
    data: JsonObject = field(default_factory=dict)
    """The workload's `describe().data`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundStarted:
    """The cohort is chosen and its jobs are going out."""

    run_id: str
    round: int
    cohort: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientsDone:
    """Progress within a round: the number of clients whose results have arrived."""

    run_id: str
    round: int
    done: int
    cohort: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientLost:
    """A client's update is missing from its round."""

    run_id: str
    failure: ClientFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundFinished:
    """A round is over, its state saved or about to be."""

    run_id: str
    record: RoundRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeChanged:
    """An agent connected or disconnected."""

    node: str
    state: Literal["online", "lost", "left"]
    """`lost` if its stream broke, `left` if it signed off or the server closed it."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRefused:
    """A node rejected work of a run or failed at it; another node takes it if there is one."""

    run_id: str
    round: int
    node: str
    kind: str
    """The part of the node's policy that forbids it: `workload`, `code`, `data`, `bytes`, `hours` or `hook`. `result`:
    its result was rejected. `failure`: it could not load the workload, or not create the initial model."""
    reason: str
    """Description; for a failure its stage, the error's type, and the message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """Something a person should know that is not an error."""

    run_id: str
    message: str
    waits_for: str | None = None
    """What the run waits for from now on; empty if it waits no more; None in notices about anything else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFinished:
    """The run ended: done, failed or interrupted."""

    run_id: str
    summary: RunSummary


Event = (
    RunStarted
    | RoundStarted
    | ClientsDone
    | ClientLost
    | RoundFinished
    | NodeChanged
    | NodeRefused
    | Notice
    | RunFinished
)

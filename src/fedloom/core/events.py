"""What happens in a run, as values: written to `events.jsonl`, shown live, streamed to watchers, counted as metrics."""

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
    """In words: `Ray at 10.0.0.1:6379`, `2 processes on this machine`, `this process`."""
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
    """Progress inside a round: so many of its clients have answered."""

    run_id: str
    round: int
    done: int
    cohort: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientLost:
    """A client's answer is missing from its round."""

    run_id: str
    failure: ClientFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundFinished:
    """A round is over, its state saved or about to be."""

    run_id: str
    record: RoundRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeChanged:
    """An agent came or left."""

    node: str
    state: Literal["online", "lost", "left"]
    """`lost` when its stream broke, `left` when it said so or the server ended it."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRefused:
    """A node would not, or could not, do work of a run, which goes to another one where there is one."""

    run_id: str
    round: int
    node: str
    kind: str
    """What the node's own policy is against: `workload`, `code`, `data`, `bytes`, `hours` or `hook`. `result`: what it
    sent was refused. `failure`: it could not load the workload, or not make the initial model."""
    reason: str
    """In words; of a failure its stage, the error's type, and the message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """Something a person should know that is not an error."""

    run_id: str
    message: str
    waits_for: str | None = None
    """What the run waits for from now on; empty where it waits no more; None in notices about anything else."""


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

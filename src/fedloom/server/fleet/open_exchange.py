"""An exchange in progress: its groups, their assignment, and the results for the run."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from fedloom.core.errors import FedloomError, PolicyRefused
from fedloom.core.messages import GroupKey, GroupResult, Refusal
from fedloom.core.records import ClientFailure, Job, Record
from fedloom.server.fleet.payloads import Offer
from fedloom.server.fleet.planned import ExchangeKey, PlannedExchange

UPLOAD_BYTES, UPLOAD_FACTOR = 16 << 20, 16
"""Bytes a node may upload for a group whatever the model, and for each client and the sum as a multiple of the model:
sums are float64, and strategies and rules keep several arrays of the model's shapes."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An accepted result, its payloads decoded; or the reason a group will never have one."""

    index: int
    node: str
    result: GroupResult | None
    total: Record | None = None
    states: Mapping[int, Record] = field(default_factory=dict)
    """New states of the clients, by client."""
    lost: str = ""
    """Why the group failed on every node."""
    stage: str = "worker"
    error: str = "WorkerDied"

    @classmethod
    def refused(cls, index: int, only: str, reasons: str) -> Self:
        """Return the end of a group that `only` this node, or every node, refuses for good."""
        error = f"{PolicyRefused.__module__}.{PolicyRefused.__name__}"
        lost = f"refused by {only or 'every node'}: {reasons}"
        return cls(index=index, node=only, result=None, lost=lost, stage="policy", error=error)


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """A group's assignment to a node."""

    node: str
    since: float
    """Monotonic seconds."""


class OpenExchange:
    """An exchange in progress: its run reads results here, the coordinator adds them.

    Args:
        planned: the run's request.
        labels: nodes with all these labels may serve it.
    """

    def __init__(self, planned: PlannedExchange, labels: Mapping[str, str] | None = None) -> None:
        self.run, self.round, self.exchange = planned.run.spec, planned.round, planned.index
        self.spec, self.groups = planned.exchange, planned.groups
        self.accumulator, self.rules, self.measure = _part_names(planned)
        """Names of the exchange's parts as nodes get them."""
        self.max_attempts = planned.run.max_attempts
        groups, reserve, answered = planned.groups, planned.reserve, planned.answered
        out = [index for index in range(len(groups)) if index not in reserve and index not in answered]
        order = sorted(out, key=lambda index: (-groups[index].work, index))
        self.pending: deque[int] = deque(order)
        self.inputs: dict[str, Offer] = {}
        self.states: dict[int, Offer] = {}
        self._read: dict[tuple[tuple[str, ...], ...], dict[str, Offer]] = {}
        """Inputs by what groups' jobs name: the same for most groups."""
        self.preparing: set[str] = set()
        """Localities for which an input of the groups is being prepared."""
        self.done: set[int] = set(answered)
        self.run_acknowledges = planned.run_acknowledges
        """Whether results are acknowledged only when the run calls `acknowledge`, after storing them."""
        self.unacknowledged: dict[int, str] = {}
        """Accepted results the run has yet to store, and their nodes."""
        self.deaths: dict[int, int] = {}
        self.answers: queue.SimpleQueue[Answer | FedloomError] = queue.SimpleQueue()
        self.reading: set[tuple[int, str]] = set()
        """Results that are being decoded and vetted, by group and node."""
        self.taken: set[tuple[int, str]] = set()
        """Accepted results, by group and node: a duplicate names payloads that are used up."""
        self.duplicates = self.reassigned = 0
        self.reassigns = planned.exchange.reassign
        """Whether a group may be reassigned."""
        self._assignees: dict[int, set[str]] = {}
        """Every node a group has been assigned to so far; only their results count."""
        self.has_affinity = any(group.prefer or group.only for group in groups) or not self.reassigns
        """Whether any group is bound to a node."""
        self._labels = labels or {}
        self.vet = planned.vet
        """Checks the sums of agents on other machines."""
        self.terms = planned.terms
        self.begun = 0.0
        """When its groups became assignable (monotonic seconds)."""
        self.backoff_until: dict[str, float] = {}
        """Nodes that refused or sent rejected results, and until when (monotonic seconds)."""
        self.refusals: dict[str, Refusal] = {}
        """The last refusal by each node, or of its result."""
        self.failed: dict[tuple[int, str], ClientFailure] = {}
        """Failures after which a group was reassigned, by group and node, in order of arrival."""
        self.reported: set[tuple[str, str]] = set()
        """Nodes and kinds of the refusals the run has reported."""
        self.reserve = set(reserve) - self.done
        """Groups that are pushed only in place of failed ones."""
        self.clients = self._jobs(range(len(groups))) - self._jobs(self.reserve)
        """Jobs of the groups that are not in reserve."""

    def bind(self, index: int, name: str) -> None:
        """Note a node that a group is assigned to."""
        self._assignees.setdefault(index, set()).add(name)

    def was_assigned(self, index: int, name: str) -> bool:
        """Return whether a group is, or was, assigned to a node."""
        return name in self._assignees.get(index, ())

    def assignees(self, index: int) -> Collection[str]:
        """Return every node that a group is, or was, assigned to."""
        return self._assignees.get(index, ())

    def assigned_to(self, name: str) -> Iterator[int]:
        """Yield the groups that are, or were, assigned to a node and have no result yet."""
        return (index for index, names in self._assignees.items() if name in names and index not in self.done)

    def upload_bytes(self, index: int, model_bytes: int) -> int | None:
        """Return how many bytes a group's answer can need: its sum, or its updates, and states of its clients.

        Args:
            index: of the group.
            model_bytes: the largest inputs that any exchange of the run has had; 0 before there were any.

        Returns:
            None if nothing is known yet, as for the group that makes the initial model.
        """
        group = self.groups[index]
        if not model_bytes or any(job.kind == "init" for job in group.jobs):
            return None
        states = sum(self.states[client].size for client in group.states)
        return UPLOAD_BYTES + UPLOAD_FACTOR * ((len(group.jobs) + 1) * model_bytes + states)

    def disown(self, name: str) -> None:
        """Forget the assignments of a node that is no longer a member."""
        for names in self._assignees.values():
            names.discard(name)

    def only(self, index: int) -> str:
        """Return the only node a group may go to; empty for any."""
        bound = () if self.reassigns else self._assignees.get(index, ())
        return self.groups[index].only or next(iter(bound), "")

    def fits(self, labels: Mapping[str, str]) -> bool:
        """Return whether a node with these labels serves the run."""
        return all(labels.get(key) == value for key, value in self._labels.items())

    def labels_text(self) -> str:
        """Return the labels a node needs, in words."""
        return ", ".join(f"{key}={value}" for key, value in sorted(self._labels.items())) or "any labels"

    def wants(self, name: str, labels: Mapping[str, str], now: float) -> bool:
        """Return whether a node may get groups of this exchange."""
        return self.fits(labels) and self.backoff_until.get(name, 0.0) <= now

    def reads(self, index: int) -> tuple[Mapping[str, Offer], Mapping[int, Offer]]:
        """Return a group's payloads: inputs by name, and states by client."""
        group = self.groups[index]
        return self._inputs_of(group.jobs), {client: self.states[client] for client in group.states}

    def _inputs_of(self, jobs: tuple[Job, ...]) -> Mapping[str, Offer]:
        named = tuple(dict.fromkeys(job.inputs for job in jobs))
        if named not in self._read:
            inputs = sorted({name for inputs in named for name in inputs})
            self._read[named] = {name: self.inputs[name] for name in inputs}
        return self._read[named]

    def is_read_by(self, name: str, sha256: str) -> bool:
        """Return whether a group that a node has yet to answer reads the payload of this digest."""
        read = (offers.values() for index in self.assigned_to(name) for offers in self.reads(index))
        return any(offer.sha256 == sha256 for offers in read for offer in offers)

    def settled(self, index: int, name: str) -> bool:
        """Return whether a group needs nothing more from a node."""
        return index in self.done or (index, name) in self.failed

    def release(self, indices: Collection[int]) -> None:
        """Make groups of the reserve pending."""
        self.clients += self._jobs(self.reserve.intersection(indices))
        self.reserve.difference_update(indices)
        self.pending.extend(indices)

    def _jobs(self, indices: Iterable[int]) -> int:
        """Return the number of jobs in some groups."""
        return sum(len(self.groups[index].jobs) for index in indices)

    @property
    def in_work(self) -> int:
        """Return the number of assigned groups."""
        return len(self.groups) - len(self.pending) - len(self.reserve) - len(self.done)

    @property
    def name(self) -> ExchangeKey:
        """Return its run, round, and index in the round: the prefix of its groups' keys."""
        return ExchangeKey(self.run.run_id, self.round, self.exchange)

    def key(self, index: int) -> GroupKey:
        """Return the key of one of its groups."""
        return GroupKey(self.run.run_id, self.round, self.exchange, index)


def _part_names(planned: PlannedExchange) -> tuple[str, tuple[str, ...], str | None]:
    exchange, on_wire = planned.exchange, planned.run.on_wire
    rules = tuple(map(on_wire, exchange.rules))
    return on_wire(exchange.accumulator), rules, None if exchange.measure is None else on_wire(exchange.measure)

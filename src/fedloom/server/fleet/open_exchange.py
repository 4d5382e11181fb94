"""An exchange in progress: its groups, who has which, and the answers on their way to the run."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from fedloom.core.errors import BadMessage, FedloomError
from fedloom.core.messages import GroupKey, GroupResult, Refusal, RunSpec
from fedloom.core.records import ClientFailure, Exchange, Job, Record
from fedloom.server.fleet.payloads import Offer
from fedloom.server.fleet.vetting import Vet


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An accepted result, its payloads decoded; or the reason a group will never have one."""

    index: int
    node: str
    result: GroupResult | None
    total: Record | None = None
    states: Mapping[int, Record] = field(default_factory=dict)
    """What clients asked to have back, by client."""
    lost: str = ""
    """Why nobody could do the group."""
    stage: str = "worker"
    error: str = "WorkerDied"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedGroup:
    """Jobs folded together, and how much work they look like (any unit)."""

    jobs: tuple[Job, ...]
    work: float
    states: Mapping[int, Record] = field(default_factory=dict)
    prefer: str = ""
    """The node that has what the group needs; another one takes it only when that node is gone."""
    only: str = ""
    """The node the group is for, whose own client it is; no other ever takes it."""

    def check(self, result: GroupResult) -> None:
        """An answer must be about the clients that were asked, each once."""
        asked = sorted(job.client for job in self.jobs)
        told = sorted([report.client for report in result.reports] + [failure.client for failure in result.failures])
        if asked != told:
            raise BadMessage(f"group {result.key}: asked clients {asked}, the answer is about {told}")
        strangers = sorted(set(result.states) - {report.client for report in result.reports})
        if strangers:
            raise BadMessage(f"group {result.key}: states of clients {strangers}, which have not reported")
        if result.total is None and result.reports:
            raise BadMessage(f"group {result.key}: {len(result.reports)} clients reported, but no accumulator came")

    def trouble(self, result: GroupResult) -> ClientFailure | None:
        """The failure of a group that is the node's more than its clients': another node may be able to do it.

        That is one before any client's turn (the workload, its data or the rule could not be loaded there), and any at
        the initial model, which is no client's.
        """
        if result.reports or not result.failures:
            return None
        anybody = all(job.kind == "init" for job in self.jobs)
        return result.failures[0] if anybody or all(failure.stage == "load" for failure in result.failures) else None


class OpenExchange:
    """An exchange in progress: its run reads answers here, the coordinator puts them."""

    def __init__(
        self,
        run: RunSpec,
        round: int,
        exchange: int,
        spec: Exchange,
        groups: Sequence[PlannedGroup],
        reserve: Collection[int] = (),
        labels: Mapping[str, str] | None = None,
        vet: Vet | None = None,
        answered: Collection[int] = (),
        run_acknowledges: bool = False,
    ) -> None:
        self.run, self.round, self.exchange, self.spec, self.groups = run, round, exchange, spec, groups
        out = [index for index in range(len(groups)) if index not in reserve and index not in answered]
        order = sorted(out, key=lambda index: (-groups[index].work, index))
        self.pending: deque[int] = deque(order)
        self.inputs: dict[str, Offer] = {}
        self.states: dict[int, Offer] = {}
        self.preparing: set[str] = set()
        """Localities for which something the groups read is being prepared."""
        self.done: set[int] = set(answered)
        self.run_acknowledges = run_acknowledges
        """Whether an answer is acknowledged only when the run says so, which has made it safe first."""
        self.unacknowledged: dict[int, str] = {}
        """Accepted answers the run has yet to make safe, and the nodes they came from."""
        self.deaths: dict[int, int] = {}
        self.answers: queue.SimpleQueue[Answer | FedloomError] = queue.SimpleQueue()
        self.reading: set[tuple[int, str]] = set()
        """Results that are being decoded and vetted, by group and node."""
        self.taken: set[tuple[int, str]] = set()
        """Results that were taken, by group and node: a copy that comes again names payloads that are used up."""
        self.duplicates = self.reassigned = 0
        self.choosy = any(group.prefer or group.only for group in groups)
        """Whether any group has a node it belongs to."""
        self._labels = labels or {}
        self.vet = vet
        """Checks the sums of agents on other machines."""
        self.unwilling: dict[str, float] = {}
        """Nodes that refused, or sent what was refused, and until when (monotonic seconds)."""
        self.refusals: dict[str, Refusal] = {}
        """The last refusal by each node, or of what it sent."""
        self.failed: dict[tuple[int, str], ClientFailure] = {}
        """Failures after which a group was given to another node, by group and node, in the order they came."""
        self.told: set[tuple[str, str]] = set()
        """Nodes and kinds of the refusals the run has told of."""
        self.reserve = set(reserve) - self.done
        """Groups that go out only when others are lost."""

    def fits(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels serves the run."""
        return all(labels.get(key) == value for key, value in self._labels.items())

    def wants(self, name: str, labels: Mapping[str, str], now: float) -> bool:
        """Whether a node may get groups of this exchange."""
        return self.fits(labels) and self.unwilling.get(name, 0.0) <= now

    def reads(self, index: int) -> tuple[dict[str, Offer], dict[int, Offer]]:
        """What a group reads: inputs by name, and states by client."""
        group = self.groups[index]
        inputs = sorted({name for job in group.jobs for name in job.inputs})
        return {name: self.inputs[name] for name in inputs}, {client: self.states[client] for client in group.states}

    def settled(self, index: int, name: str) -> bool:
        """Whether nothing more is wanted of a node for a group."""
        return index in self.done or (index, name) in self.failed

    @property
    def in_work(self) -> int:
        """Groups that agents hold."""
        return len(self.groups) - len(self.pending) - len(self.reserve) - len(self.done)

    @property
    def name(self) -> tuple[str, int, int]:
        """Its run, round, and index in that: what its groups' keys begin with."""
        return self.run.run_id, self.round, self.exchange

    def key(self, index: int) -> GroupKey:
        """The name of one of its groups."""
        return GroupKey(self.run.run_id, self.round, self.exchange, index)

"""Messages between server and agents, as values. `proto.v1.codec` writes them as wire messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from fedloom.core.records import ClientFailure, ClientReport, Contents, Groups, Info, Job, Record

PROTOCOL = 2
"""Version of the wire both sides must use."""
MAX_METRICS = 256
"""Limit of the metrics of one client's report."""
MAX_INFO = 1 << 20
"""Limit of the info of one client's report, as JSON; characters."""
MAX_PAYLOAD_BYTES = 16 << 30
"""Limit of a record that a node sends or receives."""
MAX_NAME = 256
"""Characters in a name, such as a metric's or a kind of error's."""
MAX_TEXT = 64 << 10
"""Characters of a traceback or message that are sent; longer texts are truncated."""
MAX_NOTICES = 8
"""Notices in a result, and those that a run shows."""


class GroupKey(NamedTuple):
    """Names one group of one exchange for all time: results are accepted once per key."""

    run_id: str
    round: int
    exchange: int
    """Index of the exchange within its round, from 0."""
    group: int
    """Index of the group within its exchange, from 0, in cohort order."""

    def __str__(self) -> str:
        return f"{self.run_id}/{self.round}.{self.exchange}.{self.group}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PayloadRef:
    """Reference to a frame by the nearest way: this process, this host's memory, the message, the wire."""

    size: int
    """Bytes of the frame."""
    record: Record | None = None
    """The record itself, inside one process."""
    shared: str = ""
    """File name in the host's depot."""
    inline: bytes = b""
    """The frame, if it is small."""
    sha256: str = ""
    """Digest of the frame, for its download or upload."""
    pinned: bool = False
    """Whether the record never changes, so that an agent caches it under its digest."""

    @property
    def in_memory(self) -> bool:
        """Return whether it moves through memory, so that its bytes are neither in a message nor in a stream."""
        return self.record is not None or bool(self.shared)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Clients whose jobs run and are aggregated on one agent, in order."""

    key: GroupKey
    jobs: tuple[Job, ...]
    inputs: Mapping[str, PayloadRef] = field(default_factory=dict)
    knobs: Info = field(default_factory=dict)
    accumulator: str = "mean"
    rules: tuple[str, ...] = ()
    updates: Contents = "model"
    measure: str | None = None
    park: bool = False
    collects: int | None = None
    states: Mapping[int, PayloadRef] = field(default_factory=dict)
    """Stored states of the clients, by client."""
    clients: int = 0
    """Jobs of the exchange, all groups together; 0 if the server does not state it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupResult:
    """A group's outcome: one partial accumulator, a report for each successful client, a failure for the others."""

    key: GroupKey
    total: PayloadRef | None
    """The accumulator's record; None if every client failed."""
    reports: tuple[ClientReport, ...] = ()
    failures: tuple[ClientFailure, ...] = ()
    states: Mapping[int, PayloadRef] = field(default_factory=dict)
    busy_s: float = 0.0
    """Seconds the agent spent on the group."""
    notices: tuple[str, ...] = ()
    """What the user of the run should know that is no error; an agent reports each once, at most `MAX_NOTICES`."""

    @property
    def payloads(self) -> list[PayloadRef]:
        """Return all its payloads."""
        return [*([self.total] if self.total is not None else []), *self.states.values()]


INSTANCE = "instance"
"""Key of an agent's facts: a random identifier of the running agent, the same in all of its sessions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """An agent introduces itself."""

    node: str
    """The node's persistent name."""
    session: str
    """A fresh identifier for each connection attempt of one process; an older session of the node is replaced."""
    protocol: int = PROTOCOL
    facts: Info = field(default_factory=dict)
    """Host name, process id, cores, devices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """The server's response: its limits, and the depot for agents on its own host."""

    heartbeat_s: float
    max_payload_bytes: int
    chunk_bytes: int
    depot_path: str = ""
    depot_nonce: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """An experiment an agent is about to get groups of, resolved, as JSON."""

    run_id: str
    experiment: Info
    submitter_name: str = ""
    """Who has submitted the run; empty on a server without members."""
    submitter_role: str = ""
    """`user` or `admin`; empty on a server without members."""
    data: Info = field(default_factory=dict)
    """What every node's data must agree with (`core.data_schema`); empty before there is an initial model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inquiry:
    """Requests a node's verdict on a run that is being submitted: whether its policy allows it."""

    id: str
    spec: RunSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """An agent's reply to an inquiry."""

    id: str
    kind: str = ""
    """Why the run is refused, as in `Refusal`; empty if the policy allows it."""
    reason: str = ""
    retry_s: float = 0.0
    """Seconds after which a retry may succeed; 0 if it never will."""

    @property
    def is_final(self) -> bool:
        """Return whether the node refuses the run, now and later."""
        return bool(self.kind) and not self.retry_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Ack:
    """A result arrived; the agent can drop it."""

    key: GroupKey
    status: str
    """`accepted`, `duplicate`, `stale`, or `rejected` (the message says why)."""
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """Groups of this exchange are no longer wanted; those not begun are dropped."""

    run_id: str
    round: int
    exchange: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """The agent is alive and has these groups (waiting, running, or done and not yet acknowledged)."""

    groups: tuple[GroupKey, ...] = ()
    missing_runs: tuple[str, ...] = ()
    """Runs of its groups whose experiment never arrived."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """The agent will not do a group: its owner's policy is against it."""

    key: GroupKey
    kind: str
    """Reason: `workload`, `code`, `data`, `bytes`, `hours`, `hook`, `submitter` or `helpers` of the policy; `result` if
    the server rejected the node's result, `failure` if the node failed at work another may be able to do."""
    reason: str
    retry_s: float = 0.0
    """Seconds after which a retry may succeed; 0 if it never will."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOver:
    """A run has ended; the agent can drop what it cached for it."""

    run_id: str
    resumable: bool = False
    """Whether it may still be resumed, which needs the client states stored on a node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodbye:
    """One side is leaving on purpose."""

    reason: str = ""
    come_back: bool = False
    """From a server that will be back: the agent reconnects until it succeeds."""


ToAgent = RunSpec | Group | Ack | Cancel | Goodbye | RunOver | Inquiry
FromAgent = GroupResult | Heartbeat | Goodbye | Refusal | Verdict


class Channel(Protocol):
    """An agent's view of the server.

    Messages may be lost, repeated or late on a bad channel; agent and coordinator handle that. Every
    method may raise `ServerUnreachable`, after which `open` starts afresh.
    """

    def open(self, hello: Hello) -> Welcome:
        """Connect, or connect again."""

    def send(self, message: FromAgent) -> None:
        """Send a message to the server; returns without waiting for delivery."""

    def receive(self, timeout_s: float) -> ToAgent | None:
        """Return the next message of the server, or None after `timeout_s` seconds without one."""

    def fetch(self, ref: PayloadRef) -> Record:
        """Return the record behind a reference; its arrays are read-only."""

    def store(self, record: Record, run_id: str) -> PayloadRef:
        """Store a run's record for the server. Memory from `lease` is sent without a copy if possible."""

    def lease(self, record: Record, run_id: str) -> Groups:
        """Return writable arrays shaped like the record's, in memory that `store` can send without a copy."""

    def recycle(self, run_id: str) -> None:
        """Reuse the memory leased or stored for the run so far: it has been aggregated or discarded."""

    def close(self) -> None:
        """Close the connection."""

"""Who does what: agents with their mailboxes, exchanges with their groups, and nothing that polls.

Groups are pushed to agents that have room, longest first; a result is accepted once per key and handed to the run that
waits for it. When an agent vanishes its groups go to another. Heartbeats say what an agent holds, so lost messages
are noticed on both sides and repeated.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from fedloom.core.errors import BadMessage, FedloomError, LimitExceeded, NotFound, PolicyRefused, ServerUnreachable
from fedloom.core.events import NodeChanged
from fedloom.core.messages import (
    PROTOCOL,
    Ack,
    Cancel,
    FromAgent,
    Goodbye,
    Group,
    GroupKey,
    GroupResult,
    Heartbeat,
    Hello,
    PayloadRef,
    Refusal,
    RunOver,
    RunSpec,
    Welcome,
)
from fedloom.core.records import ClientFailure, Exchange
from fedloom.server.nodes import Mailbox, Node
from fedloom.server.open_exchange import Answer, OpenExchange, PlannedGroup
from fedloom.server.payloads import CHUNK_BYTES, Offer, PayloadStore
from fedloom.server.vetting import Vet

MAX_HELD = 3
"""Groups an agent is given at most before it has answered for one."""
HEARTBEAT_S = 2.0
"""Seconds between an agent's heartbeats."""
LOST_AFTER_S = 20.0
"""Seconds of silence after which an attached agent counts as lost."""
MAX_NODES = 10_000
"""Agents known at a time; those that have been gone longest are forgotten first."""
GRACE_S = 3.0
"""Seconds a disconnected agent may take to come back before its groups go elsewhere."""


class Coordinator:
    """Mailboxes on one side, runs on the other. Thread-safe.

    Args:
        payloads: where broadcasts and uploads live.
        on_node: called with every change of an agent's state.
        max_attempts: how often a group may lose its agent.
        grace_s: seconds a disconnected agent may take to come back.
        by_labels: whether a run's `fleet.labels` choose its nodes; a simulation's workers have none.
    """

    def __init__(
        self,
        payloads: PayloadStore,
        on_node: Callable[[NodeChanged], None] = lambda event: None,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        lost_after_s: float = LOST_AFTER_S,
        grace_s: float = GRACE_S,
        by_labels: bool = False,
    ) -> None:
        self.payloads, self._by_labels = payloads, by_labels
        self._on_node = on_node
        self._heartbeat_s, self._lost_after_s, self._grace_s = heartbeat_s, lost_after_s, grace_s
        self._changed = threading.Condition()
        self._nodes: dict[str, Node] = {}
        self._open: dict[tuple[str, int, int], OpenExchange] = {}
        self._stale: dict[str, int] = {}
        """Results that came too late, for each run there has been an exchange of."""
        self._closed = False
        self.hopeless = ""
        """Why there will be no more agents, where that is so."""
        self._housekeeper = threading.Thread(target=self._keep_house, name="fedloom-housekeeper", daemon=True)
        self._housekeeper.start()

    # The agents' side

    def register(self, hello: Hello, locality: str, labels: Mapping[str, str] | None = None) -> Welcome:
        """Know a node, or its new session.

        Args:
            hello: its introduction.
            locality: `process`, `host` or `remote`.
            labels: what the registry says about it.

        Raises:
            BadMessage: it speaks another version of the protocol.
            LimitExceeded: there are `MAX_NODES` agents already.
            ServerUnreachable: the server is on its way out.
        """
        if hello.protocol != PROTOCOL:
            raise BadMessage(
                f"node {hello.node!r} speaks protocol {hello.protocol}, this server {PROTOCOL}: "
                "install the same fedloom version on both"
            )
        with self._changed:
            if self._closed:
                raise ServerUnreachable("the server is shutting down")
            old = self._nodes.get(hello.node)
            node = Node(hello, locality, labels=labels or {})
            if old is not None:
                node.assigned, node.gone_since = old.assigned, time.monotonic()
                node.bytes_down, node.bytes_up = old.bytes_down, old.bytes_up
                node.groups_done, node.busy_s = old.groups_done, old.busy_s
                if old.mailbox is not None:  # the same agent come back, which will not read this, or a second one
                    old.mailbox.put(Goodbye(reason=f"another agent took the name {hello.node!r}; names must differ"))
                    old.mailbox.close()
            else:
                self._make_room()
            self._nodes[hello.node] = node
        depot = self.payloads.depot if locality == "remote" else None
        return Welcome(
            heartbeat_s=self._heartbeat_s,
            max_payload_bytes=self.payloads.max_payload_bytes,
            chunk_bytes=CHUNK_BYTES,
            depot_path=str(depot.path) if depot else "",
            depot_nonce=depot.nonce if depot else "",
        )

    def attach(self, node: str, session: str, locality: str | None = None) -> Mailbox:
        """Open the stream of a registered session.

        Raises:
            NotFound: no such session.
            ServerUnreachable: the server is on its way out.
        """
        with self._changed:
            if self._closed:
                raise ServerUnreachable("the server is shutting down")
            known = self._session(node, session)
            known.locality = locality or known.locality
            if known.mailbox is not None:
                known.mailbox.close()
            known.mailbox, known.seen, known.gone_since = Mailbox(), time.monotonic(), None
            mailbox = known.mailbox
        self._on_node(NodeChanged(node=node, state="online"))
        with self._changed:
            self._dispatch()
            self._changed.notify_all()
        return mailbox

    def detach(self, node: str, session: str, reason: str, mailbox: Mailbox | None = None) -> None:
        """The stream of a session ended; unless it comes back soon its groups go elsewhere.

        A stream that names its mailbox ends only itself, not another one the session has opened since.
        """
        with self._changed:
            known = self._nodes.get(node)
            if known is None or known.hello.session != session or known.mailbox is None:
                return
            if mailbox is not None and known.mailbox is not mailbox:
                return
            known.mailbox.close()
            known.mailbox, known.gone_since = None, time.monotonic()
            state = "left" if self._closed else "lost"
            self._changed.notify_all()
        self._on_node(NodeChanged(node=node, state=state, reason=reason))

    def receive(self, node: str, session: str, message: FromAgent) -> None:
        """Take a message of an agent; answers go to its mailbox."""
        match message:
            case Heartbeat():
                self._heartbeat(node, session, message)
            case GroupResult():
                self._result(node, session, message)
            case Refusal():
                self._refusal(node, session, message)
            case Goodbye():
                self.leave(node, session, message.reason)

    def leave(self, node: str, session: str, reason: str) -> None:
        """An agent leaves on purpose, or is known to be dead: its groups go elsewhere at once."""
        with self._changed:
            known = self._nodes.get(node)
            if known is None or (session and known.hello.session != session):
                return
            if known.mailbox is not None:
                known.mailbox.close()
            known.mailbox, known.gone_since = None, time.monotonic()
            self._requeue(node, known, set(), reason or "the agent left")
            self.payloads.forget(node)
        self._on_node(NodeChanged(node=node, state="left", reason=reason))

    def label(self, node: str, labels: Mapping[str, str]) -> None:
        """A node's labels have changed."""
        with self._changed:
            if node in self._nodes:
                self._nodes[node].labels = labels
                self._dispatch()

    def count_bytes(self, node: str, *, down: int = 0, up: int = 0) -> None:
        """Account for bytes that crossed to or from a node."""
        with self._changed:
            if node in self._nodes:
                self._nodes[node].bytes_down += down
                self._nodes[node].bytes_up += up

    # The runs' side

    @contextlib.contextmanager
    def exchange(
        self,
        run: RunSpec,
        round: int,
        exchange: int,
        spec: Exchange,
        groups: Sequence[PlannedGroup],
        reserve: Collection[int] = (),
        vet: Vet | None = None,
    ) -> Iterator[OpenExchange]:
        """Put groups out; inside the block their answers arrive in `answers`. Leaving it cancels what is not done.

        Groups in reserve (by index) wait until they are released. `vet` checks sums from other machines.
        """
        labels = run.experiment.get("fleet", {}).get("labels", {}) if self._by_labels else {}
        opened = OpenExchange(run, round, exchange, spec, groups, reserve, labels, vet)
        opened.inputs = self.payloads.offer_all(run.run_id, spec.inputs)
        for group in groups:
            opened.states |= {client: self.payloads.offer(record) for client, record in group.states.items()}
        name = (run.run_id, round, exchange)
        try:
            with self._changed:
                self._open[name] = opened
                self._stale.setdefault(run.run_id, 0)
                self._dispatch()
            yield opened
        finally:
            with self._changed:
                del self._open[name]
                for node in self._nodes.values():
                    mine = [key for key in node.assigned if key[:3] == name]
                    for key in mine:
                        del node.assigned[key]
                    if mine and node.mailbox is not None:
                        node.mailbox.put(Cancel(run_id=run.run_id, round=round, exchange=exchange))
                self._dispatch()
            for offer in (*opened.inputs.values(), *opened.states.values()):
                self.payloads.withdraw(offer)

    def release(self, opened: OpenExchange, indices: Collection[int]) -> None:
        """Put groups out that were in reserve."""
        with self._changed:
            opened.reserve -= set(indices)
            opened.pending.extend(indices)
            self._dispatch()

    def holders(self, opened: OpenExchange) -> dict[int, str]:
        """Which agent has which group of an exchange now."""
        with self._changed:
            keys = {opened.key(index): index for index in range(len(opened.groups))}
            return {keys[key]: name for name, node in self._nodes.items() for key in node.assigned if key in keys}

    def announce(self, run: RunSpec) -> None:
        """Tell every agent of a run that is about to start, so that all load its data at the same time."""
        with self._changed:
            for node in self._nodes.values():
                self._tell(node, run)

    def forget_run(self, run_id: str) -> None:
        """A run is over: agents need keep nothing for it."""
        with self._changed:
            self._stale.pop(run_id, None)
            for node in self._nodes.values():
                if run_id in node.told_runs:
                    node.told_runs.discard(run_id)
                    if node.mailbox is not None:
                        node.mailbox.put(RunOver(run_id=run_id))

    def retain(self, run: RunSpec, digests: Collection[str]) -> None:
        """Of the run's pinned records only these are still wanted."""
        self.payloads.retain(run.run_id, digests)

    def wait_for_agents(self, count: int, timeout_s: float) -> int:
        """Wait until `count` agents are online; returns how many are."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.online >= count, timeout_s)
            return self.online

    @property
    def closed(self) -> bool:
        """Whether the agents have been sent away."""
        return self._closed

    @property
    def online(self) -> int:
        """Agents attached right now."""
        return sum(node.online for node in self._nodes.values())

    def groups_done(self, node: str) -> int:
        """Groups a node has finished, all its sessions together."""
        with self._changed:
            known = self._nodes.get(node)
            return sum(known.groups_done.values()) if known is not None else 0

    def give_up(self, reason: str) -> None:
        """Whoever starts the agents cannot keep them alive: runs that wait for them fail with this reason."""
        with self._changed:
            self.hopeless = reason
            self._changed.notify_all()

    def check_session(self, node: str, session: str) -> None:
        """Raise `NotFound` unless this is the node's present session."""
        with self._changed:
            self._session(node, session)

    def rows(self) -> list[dict[str, Any]]:
        """Every node, as the Control service lists them."""
        with self._changed:
            now = time.monotonic()
            return [
                {
                    "node": name,
                    "state": ("busy" if node.assigned else "online") if node.online else "lost",
                    "facts_json": json.dumps(node.hello.facts),
                    "labels": dict(node.labels),
                    "wire_bytes_down": node.bytes_down,
                    "wire_bytes_up": node.bytes_up,
                    "groups_done": sum(node.groups_done.values()),
                    "last_seen_s": now - node.seen,
                }
                for name, node in sorted(self._nodes.items())
            ]

    def nodes(self) -> dict[str, Node]:
        """A snapshot of the agents, by name."""
        with self._changed:
            return dict(self._nodes)

    def take_stale(self, run_id: str) -> int:
        """Results of a run that came too late since this was last asked."""
        with self._changed:
            count = self._stale.get(run_id, 0)
            self._stale[run_id] = 0
            return count

    def close(self, reason: str = "the server is shutting down", *, come_back: bool = False) -> None:
        """Send every agent away, for good or until the server is back."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            for node in self._nodes.values():
                if node.mailbox is not None:
                    node.mailbox.put(Goodbye(reason=reason, come_back=come_back))
                    node.mailbox.close()
            self._changed.notify_all()
        self._housekeeper.join()

    # Under the lock

    def _make_room(self) -> None:
        """Forget the agents that have been away longest, where there are too many."""
        if len(self._nodes) < MAX_NODES:
            return
        away = [name for name, node in self._nodes.items() if not node.online and not node.assigned]
        if not away:
            raise LimitExceeded(f"{MAX_NODES} agents are connected; no more can be taken")
        for name in sorted(away, key=lambda name: self._nodes[name].seen)[: MAX_NODES // 10]:
            del self._nodes[name]
            self.payloads.forget(name)

    def _session(self, node: str, session: str) -> Node:
        known = self._nodes.get(node)
        if known is None or known.hello.session != session:
            raise NotFound(f"node {node!r} has no session {session!r} here; register first")
        return known

    def _tell(self, node: Node, run: RunSpec) -> None:
        if node.mailbox is not None and run.run_id not in node.told_runs:
            node.told_runs.add(run.run_id)
            node.mailbox.put(run)

    def _dispatch(self) -> None:
        """Push pending groups to agents with room, the least busy first; of several runs, to the one served least."""
        # A session's first heartbeat says what it still holds; before that nobody can tell what it needs.
        held = {name: len(node.assigned) for name, node in self._nodes.items() if node.online and not node.fresh}
        wanting = {name for name, holds in held.items() if holds <= 1}
        waiting = [(opened, self._willing(opened, held)) for opened in self._open.values() if opened.pending]
        while waiting:
            place = min(waiting, key=lambda place: place[0].in_work)
            opened, willing = place
            choice = _choose(opened, held, willing, wanting)
            if choice is None:
                waiting.remove(place)
                continue
            index, name = choice
            opened.pending.remove(index)
            held[name] += 1
            try:
                self._push(name, self._nodes[name], opened, index)
            except FedloomError as exc:  # the run's own trouble, such as full memory, must not hit an agent's call
                opened.pending.clear()
                opened.answers.put(exc)

    def _willing(self, opened: OpenExchange, names: Collection[str]) -> set[str]:
        """Those of the agents that may get groups of an exchange."""
        now = time.monotonic()
        return {name for name in names if opened.wants(name, self._nodes[name].labels, now)}

    def _push(self, name: str, node: Node, opened: OpenExchange, index: int) -> None:
        assert node.mailbox is not None
        self._tell(node, opened.run)
        planned, spec = opened.groups[index], opened.spec
        wanted = {name for job in planned.jobs for name in job.inputs}
        offers = {name: opened.inputs[name] for name in sorted(wanted)}
        states = {client: opened.states[client] for client in planned.states}
        node.assigned[opened.key(index)] = time.monotonic()
        node.mailbox.put(
            Group(
                key=opened.key(index),
                jobs=planned.jobs,
                inputs={key: self._refer(node, offer) for key, offer in offers.items()},
                knobs=spec.knobs,
                accumulator=spec.accumulator,
                rule=spec.rule,
                measure=spec.measure,
                hold=spec.hold,
                collects=spec.collects,
                states={client: self._refer(node, offer) for client, offer in states.items()},
            )
        )

    def _refer(self, node: Node, offer: Offer) -> PayloadRef:
        """A reference for a node, with its bytes counted where no message or stream will count them."""
        ref = self.payloads.ref(offer, node.locality)
        if _beside_the_wire(ref) and node.hello.session not in offer.told:
            offer.told.add(node.hello.session)
            node.bytes_down += ref.size
        return ref

    def _heartbeat(self, name: str, session: str, message: Heartbeat) -> None:
        with self._changed:
            node = self._session(name, session)
            now, node.seen = time.monotonic(), time.monotonic()
            held = set(message.held)
            for run in [opened.run for opened in self._open.values()]:
                if run.run_id in message.missing_runs:
                    node.told_runs.discard(run.run_id)
                    self._tell(node, run)
            if node.fresh:
                node.fresh = False
                self._requeue(name, node, held, "the agent was restarted")
            for key, pushed in list(node.assigned.items()):
                if key not in held and now - pushed > 1.5 * self._heartbeat_s:
                    del node.assigned[key]
                    opened = self._open.get(key[:3])
                    if opened is not None and key.group not in opened.done:
                        opened.pending.appendleft(key.group)
            for key in held - set(node.assigned):
                opened = self._open.get(key[:3])
                if opened is None or opened.settled(key.group, name):
                    self._ack(node, key, "stale" if opened is None else "duplicate")
                elif key.group < len(opened.groups):
                    node.assigned[key] = now
                    if key.group in opened.pending:
                        opened.pending.remove(key.group)
            self._dispatch()

    def _refusal(self, name: str, session: str, refusal: Refusal) -> None:
        """A node's policy is against a group: it gets no more of the exchange, for a while or for good."""
        key = refusal.key
        with self._changed:
            node = self._session(name, session)
            node.seen = time.monotonic()
            known = node.assigned.pop(key, None) is not None
            self._ack(node, key, "refused")
            opened = self._open.get(key[:3])
            if opened is None or not known or key.group in opened.done:
                return
            opened.refusals[name] = refusal
            opened.unwilling[name] = time.monotonic() + refusal.retry_s if refusal.retry_s else math.inf
            opened.pending.appendleft(key.group)
            self._give_up_refused(opened)
            self._dispatch()

    def _give_up_refused(self, opened: OpenExchange) -> None:
        """Groups that every node they could go to refuses for good are lost."""
        never = {name for name, until in opened.unwilling.items() if until == math.inf}
        able = {name for name, node in self._nodes.items() if node.online and opened.fits(node.labels)}
        for index in list(opened.pending):
            only = opened.groups[index].only
            if (only and only in never) or (not only and never and able <= never):
                reasons = "; ".join(f"{name}: {opened.refusals[name].reason}" for name in sorted(never)[:3])
                opened.pending.remove(index)
                opened.done.add(index)
                lost = Answer(
                    index=index,
                    node=only,
                    result=None,
                    lost=f"refused by {only or 'every node'}: {reasons}",
                    stage="policy",
                    error=f"{PolicyRefused.__module__}.{PolicyRefused.__name__}",
                )
                opened.answers.put(lost)

    def _result(self, name: str, session: str, result: GroupResult) -> None:
        key = result.key
        with self._changed:
            node = self._session(name, session)
            node.seen = time.monotonic()
            opened = self._open.get(key[:3])
            if opened is None or opened.settled(key.group, name):
                status = "stale" if opened is None else "duplicate"
                self.payloads.drop(name, _refs(result))
                if opened is not None:
                    opened.duplicates += 1
                elif key.run_id in self._stale:
                    self._stale[key.run_id] += 1
                node.assigned.pop(key, None)
                self._ack(node, key, status)
                return
            if key.group >= len(opened.groups):
                self.payloads.drop(name, _refs(result))
                self._ack(node, key, "rejected", f"this exchange has {len(opened.groups)} groups, counted from 0")
                return
            try:
                _check_clients(result, opened.groups[key.group])
                total = self.payloads.take(name, result.total) if result.total is not None else None
                if opened.vet is not None and total is not None and node.locality == "remote":
                    opened.vet(total, [report.client for report in result.reports])
                states = {client: self.payloads.take(name, ref) for client, ref in result.states.items()}
            except FedloomError as exc:
                self.payloads.drop(name, _refs(result))
                self._ack(node, key, "rejected", exc.public_message())
                self._turn_away(opened, key, name, node, exc)
                self._dispatch()
                return
            trouble = _own_trouble(result, opened.groups[key.group])
            if trouble is not None and self._pass_on(opened, key, name, trouble):
                self._ack(node, key, "accepted")
                self._dispatch()
                return
            opened.done.add(key.group)
            if key.group in opened.pending:  # it had been taken from this agent, which then answered after all
                opened.pending.remove(key.group)
            for other in self._nodes.values():
                other.assigned.pop(key, None)
            node.groups_done[key.run_id] = node.groups_done.get(key.run_id, 0) + 1
            node.busy_s[key.run_id] = node.busy_s.get(key.run_id, 0.0) + result.busy_s
            node.bytes_up += sum(
                ref.size for ref in (result.total, *result.states.values()) if ref is not None and _beside_the_wire(ref)
            )
            self._ack(node, key, "accepted")
            self._dispatch()
        opened.answers.put(Answer(index=key.group, node=name, result=result, total=total, states=states))

    def _turn_away(self, opened: OpenExchange, key: GroupKey, name: str, node: Node, exc: FedloomError) -> None:
        """A result was no good: others get the agent's groups of the exchange; it gets none while there are others."""
        opened.refusals[name] = Refusal(key=key, kind="result", reason=f"{type(exc).__name__}: {exc}")
        opened.unwilling[name] = math.inf if self._others(opened, name) else time.monotonic() + 2 * self._grace_s
        for held in [other for other in node.assigned if other[:3] == key[:3] and other != key]:
            del node.assigned[held]
            opened.pending.appendleft(held.group)
        if node.assigned.pop(key, None) is not None:
            self._lose(opened, key.group, name, opened.refusals[name].reason)

    def _pass_on(self, opened: OpenExchange, key: GroupKey, name: str, failure: ClientFailure) -> bool:
        """Give a group that a node failed at to another one; False where every node that is here has been asked.

        The node gets no more of the exchange, so each is asked once, however many there are.
        """
        if opened.groups[key.group].only or not self._others(opened, name):
            return False
        opened.failed[key.group, name] = failure
        opened.refusals[name] = Refusal(key=key, kind="failure", reason=failure.words)
        opened.unwilling[name] = math.inf
        held = self._nodes[name].assigned.pop(key, None) is not None
        if held and not any(key in other.assigned for other in self._nodes.values()):
            opened.pending.appendleft(key.group)
        return True

    def _others(self, opened: OpenExchange, name: str) -> set[str]:
        """Nodes other than this one that may get groups of an exchange, now or later."""
        return {
            other
            for other, node in self._nodes.items()
            if other != name
            and node.online
            and opened.fits(node.labels)
            and opened.unwilling.get(other, 0.0) < math.inf
        }

    def _ack(self, node: Node, key: GroupKey, status: str, message: str = "") -> None:
        """Answer a result. Nobody waits for the good answer, so that goes along with what is pushed next."""
        if node.mailbox is not None:
            put = node.mailbox.put_by if status == "accepted" else node.mailbox.put
            put(Ack(key=key, status=status, message=message))

    def _requeue(self, name: str, node: Node, held: set[GroupKey], reason: str) -> None:
        """Give a vanished agent's groups to others."""
        for key in [key for key in node.assigned if key not in held]:
            del node.assigned[key]
            opened = self._open.get(key[:3])
            if opened is not None and key.group not in opened.done:
                self._lose(opened, key.group, name, reason)
        self._dispatch()

    def _lose(self, opened: OpenExchange, index: int, name: str, reason: str) -> None:
        """A group lost its agent; put it back, or give up on it."""
        opened.deaths[index] = deaths = opened.deaths.get(index, 0) + 1
        limit = int(opened.run.experiment.get("round", {}).get("max_attempts", 3))
        if deaths < limit:
            opened.reassigned += 1
            opened.pending.appendleft(index)
            return
        opened.done.add(index)
        opened.answers.put(Answer(index=index, node=name, result=None, lost=f"{reason} ({deaths} attempts)"))

    def _keep_house(self) -> None:
        """Notice agents that went silent, and disconnected ones whose grace is over."""
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, timeout=self._heartbeat_s / 4):
                    return
                now = time.monotonic()
                for node in self._nodes.values():
                    if node.mailbox is not None:
                        node.mailbox.flush()
                silent = [
                    (name, node.hello.session)
                    for name, node in self._nodes.items()
                    if node.online and node.locality != "process" and now - node.seen > self._lost_after_s
                ]
                if any(opened.unwilling for opened in self._open.values()):
                    self._dispatch()  # a refusal may be over
                for name, node in self._nodes.items():
                    if node.gone_since is not None and now - node.gone_since > self._grace_s and node.assigned:
                        self._requeue(name, node, set(), "the agent's process ended or its connection broke")
                deaf = [(name, n.hello.session) for name, n in self._nodes.items() if n.mailbox and n.mailbox.overflown]
            for name, session in silent:
                self.detach(name, session, f"no heartbeat for {self._lost_after_s:.0f} s")
            for name, session in deaf:
                self.detach(name, session, "it does not read what it is sent")


def _choose(
    opened: OpenExchange, held: Mapping[str, int], willing: Collection[str], wanting: Collection[str]
) -> tuple[int, str] | None:
    """The next group to push, and to whom; None while nobody has room.

    One group in hand and one waiting hides the way to the server and back. Agents are filled up only when they are down
    to one, so that groups, and their results, travel together. Near the end a waiting group would only be kept from an
    idle neighbour.

    Args:
        opened: whose groups.
        held: groups each agent holds by now.
        willing: agents that may get any of them.
        wanting: agents that held at most one before this was begun.
    """
    most = MAX_HELD if len(opened.pending) > len(willing) else 1
    for index in opened.pending:
        prefer, only = opened.groups[index].prefer, opened.groups[index].only
        names = [only] if only else [prefer] if prefer in willing else willing
        free = [(held[name], name) for name in names if name in willing and name in wanting and held[name] < most]
        if free:
            return index, min(free)[1]
        if not opened.choosy:
            return None
    return None


def _beside_the_wire(ref: PayloadRef) -> bool:
    """Whether a payload moves through memory, so that its bytes are neither in a message nor in a stream."""
    return ref.record is not None or bool(ref.shared)


def _refs(result: GroupResult) -> list[PayloadRef]:
    """Everything a result brings along."""
    return [*([result.total] if result.total is not None else []), *result.states.values()]


def _own_trouble(result: GroupResult, planned: PlannedGroup) -> ClientFailure | None:
    """The failure of a group that is the node's more than its clients': another node may be able to do it.

    That is one before any client's turn (the workload, its data or the rule could not be loaded there), and any at the
    initial model, which is no client's.
    """
    if result.reports or not result.failures:
        return None
    anybody = all(job.kind == "init" for job in planned.jobs)
    return result.failures[0] if anybody or all(failure.stage == "load" for failure in result.failures) else None


def _check_clients(result: GroupResult, planned: PlannedGroup) -> None:
    """An answer must be about the clients that were asked, each once."""
    asked = sorted(job.client for job in planned.jobs)
    told = sorted([report.client for report in result.reports] + [failure.client for failure in result.failures])
    if asked != told:
        raise BadMessage(f"group {result.key}: asked clients {asked}, the answer is about {told}")
    strangers = sorted(set(result.states) - {report.client for report in result.reports})
    if strangers:
        raise BadMessage(f"group {result.key}: states of clients {strangers}, which have not reported")
    if result.total is None and result.reports:
        raise BadMessage(f"group {result.key}: {len(result.reports)} clients reported, but no accumulator came")

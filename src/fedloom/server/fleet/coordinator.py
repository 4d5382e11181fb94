"""Coordinates agents and runs: agent sessions, incoming messages, open exchanges.

A result is accepted once per key and passed to the run that waits for it. Heartbeats list an agent's groups, so lost
messages are noticed on both sides and repeated. Which agent gets which group is `dispatch.py`, what becomes of a result
`results.py`, questions about nodes `fleet_view.py`.

One lock guards all of this, and every agent's calls need it, so it is taken for bookkeeping only. Work that grows with
the model (copying, hashing, decoding, vetting, freeing) is done without it: before an exchange opens, and
between finding out what a result is for and checking that this still holds.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Literal

from fedloom.core.clock import SYSTEM_CLOCK, Clock
from fedloom.core.errors import BadMessage, FedloomError, NotFound, ServerUnreachable
from fedloom.core.events import NodeChanged
from fedloom.core.messages import (
    PROTOCOL,
    FromAgent,
    Goodbye,
    GroupKey,
    GroupResult,
    Heartbeat,
    Hello,
    Refusal,
    Verdict,
    Welcome,
)
from fedloom.server.fleet.dispatch import Dispatch
from fedloom.server.fleet.fleet_view import FleetView
from fedloom.server.fleet.holdings import holders, holdings
from fedloom.server.fleet.inquiries import Inquiries
from fedloom.server.fleet.node_table import NodeTable
from fedloom.server.fleet.nodes import Mailbox
from fedloom.server.fleet.open_exchange import Answer, Holding, OpenExchange
from fedloom.server.fleet.payloads import CHUNK_BYTES, PayloadStore
from fedloom.server.fleet.planned import PlannedExchange, RunFacts
from fedloom.server.fleet.preparation import Preparation
from fedloom.server.fleet.results import Results, Unwanted

HEARTBEAT_S = 2.0
"""Seconds between an agent's heartbeats."""
LOST_AFTER_S = 20.0
"""Seconds of silence after which an attached agent counts as disconnected."""
STUCK_S = 5.0
"""Seconds an agent may continue cancelled work while groups wait that no other one can do."""
GRACE_S = 3.0
"""Seconds a disconnected agent may take to reconnect before its groups are reassigned."""


class Coordinator(FleetView):
    """Connects agents and runs: sessions with mailboxes, exchanges with results. Thread-safe.

    Args:
        payloads: broadcasts and uploads.
        on_node: called with every change of an agent's state.
        grace_s: seconds a disconnected agent may take to reconnect.
        by_labels: whether a run's `fleet.labels` choose its nodes; a simulation's workers have none.
        clock: for silence, grace, refusals that end, and messages that are repeated.
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
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        nodes = NodeTable(payloads, clock, lost_after_s=lost_after_s, grace_s=grace_s)
        super().__init__(nodes, threading.Condition(), by_labels=by_labels)
        self.payloads, self._clock = payloads, clock
        self._on_node = on_node
        self._heartbeat_s, self._lost_after_s = heartbeat_s, lost_after_s
        self._preparation = Preparation(payloads, self._prepared)
        self._dispatch = Dispatch(
            self._nodes,
            payloads,
            self._preparation.soon,
            clock,
            repeat_s=1.5 * heartbeat_s,
            pause_s=2 * grace_s,
            grace_s=grace_s,
        )
        self._results = Results(self._nodes, self._dispatch, payloads)
        self._inquiries = Inquiries(clock)
        self._closed = False
        self.fatal_reason = ""
        """Why there will be no more agents, if so."""
        self.explain_absence: Callable[[], str] = lambda: ""
        """Says why no agent of a runtime may have come."""
        self.on_stuck: Callable[[str], None] = lambda node: None
        """Called with an agent that is busy with cancelled work while groups wait that no other one can do."""
        self._housekeeper = threading.Thread(target=self._keep_house, name="fedloom-housekeeper", daemon=True)
        self._housekeeper.start()

    # The agents' side

    def register(
        self,
        hello: Hello,
        locality: str,
        labels: Mapping[str, str] | None = None,
        address: str = "",
        *,
        member: str = "",
    ) -> Welcome:
        """Register a node, or its new session.

        Args:
            hello: its introduction.
            locality: `process`, `host` or `remote`.
            labels: its labels in the registry.
            address: where it calls from, for messages.
            member: id of the member it is; by default its name.

        Raises:
            BadMessage: it speaks another version of the protocol.
            ServerUnreachable: another agent of that name is connected, and not silent; this one may try again.
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
            freed = self._nodes.enter(hello, locality, labels or {}, address, member=member)
        del freed  # without the lock
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
            known = self._nodes.of_session(node, session)
            known.locality = locality or known.locality
            mailbox = known.attach()
        self._on_node(NodeChanged(node=node, state="online"))
        with self._changed:
            self._dispatch.push()
            self._changed.notify_all()
        return mailbox

    def detach(self, node: str, session: str, reason: str, mailbox: Mailbox | None = None) -> None:
        """Handle the end of a session's stream; unless the agent reconnects soon its groups are reassigned.

        A stream that names its mailbox ends only itself, not another one the session has opened since.
        """
        with self._changed:
            known = self._nodes.get(node)
            if known is None or known.hello.session != session or known.mailbox is None:
                return
            if mailbox is not None and known.mailbox is not mailbox:
                return
            known.detach()
            state: Literal["left", "lost"] = "left" if self._closed else "lost"
            self._changed.notify_all()
        self._on_node(NodeChanged(node=node, state=state, reason=reason))

    def receive(self, node: str, session: str, message: FromAgent) -> None:
        """Process a message of an agent; replies go to its mailbox."""
        match message:
            case Heartbeat():
                self._heartbeat(node, session, message)
            case GroupResult():
                self._result(node, session, message)
            case Refusal():
                self._refusal(node, session, message)
            case Verdict():
                self.check_session(node, session)
                self._inquiries.answer(node, message)
            case Goodbye():
                self.leave(node, session, message.reason)

    def reject(self, node: str, session: str, key: GroupKey, trouble: FedloomError) -> None:
        """Reject a result that could not be read; its group is reassigned if the node had it."""
        with self._changed:
            known = self._nodes.of_session(node, session)
            known.seen = self._clock.monotonic()
            opened = self._dispatch.find(key)
            known.acknowledge(key, "rejected", trouble.public_message())
            if opened is not None and key in known.assigned and key.group not in opened.done:
                self._dispatch.turn_away(opened, key, node, trouble)

    def leave(self, node: str, session: str, reason: str) -> None:
        """Remove an agent that left or is known to be dead: its groups are reassigned immediately."""
        with self._changed:
            known = self._nodes.get(node)
            if known is None or (session and known.hello.session != session):
                return
            known.leave()
            self._dispatch.requeue(node, reason or "the agent left")
            freed = self.payloads.forget(node)
        del freed  # without the lock
        self._on_node(NodeChanged(node=node, state="left", reason=reason))

    def expel(self, node: str, reason: str) -> None:
        """Remove an agent that is no longer a member: a later agent of its name inherits none of its groups."""
        self.leave(node, "", reason)
        with self._changed:
            self._dispatch.disown(node)

    def download(self, node: str, sha256: str, offset: int) -> Iterator[bytes]:
        """Return a frame from `offset` on, in chunks, for a node with a group that reads it.

        Raises:
            NotFound: none of its groups reads such a payload (any more).
            BadMessage: the offset is beyond the frame's end.
        """
        with self._changed:
            if not self._dispatch.entitlements.may_read(node, sha256):
                raise NotFound(f"no group of node {node!r} reads a payload {sha256[:16]!r}; its round may have ended")
        return self.payloads.download(sha256, offset)

    def upload_limit(self, node: str) -> int | None:
        """Return how many bytes a node may upload for its unanswered groups; None for no other limit.

        Raises:
            NotFound: it has none.
        """
        with self._changed:
            limit = self._dispatch.entitlements.upload_bytes(node)
        if limit == 0:
            raise NotFound(f"node {node!r} uploads, but has no unanswered group; its round may be over")
        return limit

    def label(self, node: str, labels: Mapping[str, str]) -> None:
        """Apply a change of a node's labels."""
        with self._changed:
            if node in self._nodes:
                self._nodes[node].labels = labels
                self._dispatch.push()

    def count_bytes(self, node: str, *, down: int = 0, up: int = 0) -> None:
        """Account for bytes that crossed to or from a node."""
        with self._changed:
            if node in self._nodes:
                self._nodes[node].bytes_down += down
                self._nodes[node].bytes_up += up

    # The runs' side

    @contextlib.contextmanager
    def exchange(self, planned: PlannedExchange) -> Iterator[OpenExchange]:
        """Open an exchange and assign its groups; inside the block their results arrive in `answers`.

        Leaving the block cancels unfinished groups.
        """
        run = planned.run
        opened = OpenExchange(planned, run.labels if self._by_labels else None)
        opened.inputs = self.payloads.offer_all(run.run_id, planned.exchange.inputs)
        for group in planned.groups:
            opened.states |= {client: self.payloads.offer(record) for client, record in group.states.items()}
        try:
            with self._changed:
                here = {node.locality for node in self._nodes.values() if node.online and opened.fits(node.labels)}
            self._preparation.prepare_inputs(opened, here)
            with self._put_out(opened):
                yield opened
        finally:
            for offer in (*opened.inputs.values(), *opened.states.values()):
                self.payloads.withdraw(offer)

    @contextlib.contextmanager
    def _put_out(self, opened: OpenExchange) -> Iterator[None]:
        with self._changed:
            self._results.expect(opened.run.run_id)
            self._dispatch.add(opened)
        try:
            yield
        finally:
            with self._changed:
                self._dispatch.remove(opened)

    def _prepared(self, opened: OpenExchange, locality: str, trouble: FedloomError | None) -> None:
        with self._changed:
            self._dispatch.prepared(opened, locality, trouble)

    def release(self, opened: OpenExchange, indices: Collection[int]) -> None:
        """Release groups of the reserve for assignment."""
        with self._changed:
            self._dispatch.release(opened, indices)

    def acknowledge(self, opened: OpenExchange, index: int) -> None:
        """Acknowledge a group's result, which the run has stored safely."""
        with self._changed:
            node = self._nodes.get(opened.unacknowledged.pop(index, ""))
            if node is not None:
                node.acknowledge(opened.key(index), "accepted")

    def holders(self, opened: OpenExchange) -> dict[int, str]:
        """Return which agent has which group of an exchange now."""
        with self._changed:
            return holders(opened, self._nodes)

    def holdings(self, opened: OpenExchange) -> dict[int, Holding]:
        """Return which agent has had which group of an exchange the longest, and since when."""
        with self._changed:
            return holdings(opened, self._nodes)

    def ask_another(self, opened: OpenExchange, index: int, after_s: float) -> None:
        """Assign a group to another node, too, after `after_s` seconds; the first answer counts."""
        with self._changed:
            self._dispatch.ask_another(opened, index, after_s)

    def waits_for(self, opened: OpenExchange) -> str:
        """Return what kind of node an exchange's waiting groups lack, in words; empty if they lack none."""
        with self._changed:
            return self._dispatch.waits_for(opened)

    def inquire(self, run: RunFacts) -> dict[str, Verdict | None]:
        """Return what each connected node that serves a run says of it; None if it has not replied in time."""
        with self._changed:
            boxes = {
                name: node.mailbox
                for name, node in self._nodes.items()
                if node.mailbox is not None and (not self._by_labels or run.fits(node.labels))
            }
        verdicts = self._inquiries.ask(run.spec, boxes)
        return {name: verdicts.get(name) for name in boxes}

    def announce(self, run: RunFacts) -> None:
        """Announce a run to every agent that serves it, so that all load its data at the same time."""
        with self._changed:
            for node in self._nodes.values():
                if not self._by_labels or run.fits(node.labels):
                    node.announce(run.spec)

    def forget_run(self, run_id: str, *, resumable: bool = False) -> None:
        """Make agents drop what they cache for a run that is over, except clients' states of a resumable one."""
        with self._changed:
            self._results.forget(run_id)
            self._dispatch.entitlements.forget(run_id)
            for node in self._nodes.values():
                node.forget(run_id, resumable=resumable)

    def retain(self, run: RunFacts, digests: Collection[str]) -> None:
        """Withdraw all pinned records of the run except these."""
        self.payloads.retain(run.run_id, digests)

    @property
    def closed(self) -> bool:
        """Return whether the agents have been disconnected."""
        return self._closed

    def give_up(self, reason: str) -> None:
        """Fail runs that wait for agents with this reason: no more agents can be started."""
        with self._changed:
            self.fatal_reason = reason
            self._changed.notify_all()

    def take_stale(self, run_id: str) -> int:
        """Return and reset the number of a run's late results."""
        with self._changed:
            return self._results.take_stale(run_id)

    def close(self, reason: str = "the server is shutting down", *, come_back: bool = False) -> None:
        """Send every agent away, for good or until the server is back."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            for node in self._nodes.values():
                node.send_away(reason, come_back=come_back)
            self._changed.notify_all()
        self._housekeeper.join()
        self._preparation.close()

    # Under the lock

    def _heartbeat(self, name: str, session: str, message: Heartbeat) -> None:
        with self._changed:
            node = self._nodes.of_session(name, session)
            node.seen = self._clock.monotonic()
            for run in self._dispatch.runs_for(node):
                if run.run_id in message.missing_runs:
                    node.announced_runs.pop(run.run_id, None)
                    node.announce(run)
            self._dispatch.reconcile(name, set(message.groups))

    def _refusal(self, name: str, session: str, refusal: Refusal) -> None:
        with self._changed:
            node = self._nodes.of_session(name, session)
            node.seen = self._clock.monotonic()
            node.acknowledge(refusal.key, "refused")
            self._dispatch.finished(name, refusal.key)
            self._dispatch.refuse(name, refusal)

    def _result(self, name: str, session: str, result: GroupResult) -> None:
        with self._changed:
            self._nodes.of_session(name, session).seen = self._clock.monotonic()
            begun = self._results.begin(name, result)
        if isinstance(begun, Unwanted):
            return
        answer: Answer | None = None
        trouble: FedloomError | None = None
        try:
            answer = self._results.read(begun)
        except FedloomError as exc:
            trouble = exc
        except BaseException:
            with self._changed:
                self._results.abort(begun)
            raise
        with self._changed:
            is_final = self._results.settle(begun, trouble)
        if is_final and answer is not None:
            begun.opened.answers.put(answer)

    def _keep_house(self) -> None:
        """Notice agents that went silent, and disconnected ones whose grace is over."""
        while True:
            with self._changed:
                if self._clock.wait_for(self._changed, lambda: self._closed, self._heartbeat_s / 4):
                    return
                self._nodes.flush()
                self._dispatch.push_again()
                self._dispatch.drop_absent()
                for name in self._nodes.to_reassign():
                    self._dispatch.requeue(name, "the agent's process ended or its connection broke")
                silent, overflowed, gone = self._nodes.silent(), self._nodes.overflowed(), self._nodes.gone()
                stuck = self._dispatch.stuck(STUCK_S)
            for name in stuck:
                self.on_stuck(name)
            for name in gone:
                self.payloads.forget(name)
            for name, session in silent:
                self.detach(name, session, f"no heartbeat for {self._lost_after_s:.0f} s")
            for name, session in overflowed:
                self.detach(name, session, "it does not read its messages")

"""Coordinates agents and runs: agent sessions, incoming messages, open exchanges.

A result is accepted once per key and passed to the run that waits for it. Heartbeats list an agent's groups, so lost
messages are noticed on both sides and repeated. Which agent gets which group is `dispatch.py`, what becomes of a result
`results.py`, sessions of agents `sessions.py`, questions about nodes `fleet_view.py`.

One lock guards all of this, and every agent's calls need it, so it is taken for bookkeeping only. Work that grows with
the model (copying, hashing, decoding, vetting, freeing) is done without it: before an exchange opens, and
between finding out what a result is for and checking that this still holds.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator

from fedloom.core.clock import SYSTEM_CLOCK, Clock
from fedloom.core.errors import FedloomError
from fedloom.core.events import NodeChanged
from fedloom.core.messages import (
    FromAgent,
    Goodbye,
    GroupKey,
    GroupResult,
    Heartbeat,
    Refusal,
    RunOver,
    Verdict,
)
from fedloom.server.fleet.dispatch import Dispatch
from fedloom.server.fleet.holdings import holders, holdings
from fedloom.server.fleet.housekeeper import Housekeeper
from fedloom.server.fleet.inquiries import Inquiries
from fedloom.server.fleet.node_table import NodeTable
from fedloom.server.fleet.open_exchange import Answer, Holding, OpenExchange
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.fleet.planned import PlannedExchange, RunFacts
from fedloom.server.fleet.preparation import Preparation
from fedloom.server.fleet.results import Results, Unwanted
from fedloom.server.fleet.sessions import AgentSessions, FleetParts

HEARTBEAT_S = 2.0
"""Seconds between an agent's heartbeats."""
LOST_AFTER_S = 20.0
"""Seconds of silence after which an attached agent counts as disconnected."""
GRACE_S = 3.0
"""Seconds a disconnected agent may take to reconnect before its groups are reassigned."""


class Coordinator(AgentSessions):
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
        self._preparation = Preparation(payloads, self._prepared)
        dispatch = Dispatch(
            nodes,
            payloads,
            self._preparation.soon,
            clock,
            repeat_s=1.5 * heartbeat_s,
            pause_s=2 * grace_s,
            grace_s=grace_s,
        )
        parts = FleetParts(
            lock=threading.Condition(),
            nodes=nodes,
            dispatch=dispatch,
            payloads=payloads,
            on_node=on_node,
            clock=clock,
        )
        super().__init__(parts, heartbeat_s=heartbeat_s, by_labels=by_labels)
        self._results, self._inquiries = Results(nodes, dispatch, payloads), Inquiries(clock)
        self.fatal_reason = ""
        """Why there will be no more agents, if so."""
        self.explain_absence: Callable[[], str] = lambda: ""
        """Says why no agent of a runtime may have come."""
        self.on_stuck: Callable[[str], None] = lambda node: None
        """Called with an agent that is busy with cancelled work while groups wait that no other one can do."""
        self.on_silent: Callable[[str], None] = lambda node: None
        """Called with an agent that has sent nothing for so long that it counts as disconnected."""
        self._housekeeper = Housekeeper(
            self,
            parts,
            heartbeat_s=heartbeat_s,
            lost_after_s=lost_after_s,
            on_stuck=lambda node: self.on_stuck(node),
        )
        self._housekeeper.on_silent = lambda node: self.on_silent(node)
        self._housekeeper.start()

    # The agents' side

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

    def drop_states(self, run_id: str, holders: Collection[str]) -> None:
        """Make the connected ones of these nodes, or members, drop clients' states of a run that is deleted."""
        with self._changed:
            for name, node in self._nodes.items():
                if node.mailbox is not None and (name in holders or node.member in holders):
                    node.mailbox.put(RunOver(run_id=run_id))

    def retain(self, run: RunFacts, digests: Collection[str]) -> None:
        """Withdraw all pinned records of the run except these."""
        self.payloads.retain(run.run_id, digests)

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

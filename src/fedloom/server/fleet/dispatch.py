"""Assigns groups to nodes with capacity, and to others when a node disconnects, refuses or fails.

Groups are pushed, longest first, and nothing polls. A node's groups are in `Node.assigned`; unassigned ones in
`OpenExchange.pending`. A group leaves both when it has a result; a final failure is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from fedloom.core.clock import Clock
from fedloom.core.errors import FedloomError
from fedloom.core.messages import Cancel, Group, GroupKey, GroupResult, PayloadRef, Refusal, RunSpec
from fedloom.core.records import ClientFailure
from fedloom.server.fleet.choosing import MAX_ASSIGNED, choose
from fedloom.server.fleet.entitlements import Entitlements
from fedloom.server.fleet.holdings import absent
from fedloom.server.fleet.lacking import lacking
from fedloom.server.fleet.nodes import Node
from fedloom.server.fleet.open_exchange import Answer, OpenExchange
from fedloom.server.fleet.payloads import Offer, PayloadStore

RETRY_S = 1.0
"""Minimum number of seconds before a node that refused gets a group again, whatever its refusal says."""
Prepare = Callable[[OpenExchange, Sequence[Offer], str], None]
"""Prepares an exchange's offers for a locality elsewhere; calls `Dispatch.prepared` when done."""


class Dispatch:
    """The open exchanges and the assignment of their groups. Not thread-safe: call it with its owner's lock.

    Args:
        nodes: every known node by name; the owner adds and removes them.
        payloads: offers of groups' inputs.
        prepare: called when a node waits for a group's inputs; returns immediately.
        clock: for refusals that end, and messages that are repeated.
        repeat_s: seconds after which a group missing from its node's heartbeats counts as undelivered.
        pause_s: seconds a node gets no group after an invalid result if there is no other node.
        grace_s: seconds a disconnected agent may take to reconnect.
    """

    def __init__(
        self,
        nodes: Mapping[str, Node],
        payloads: PayloadStore,
        prepare: Prepare,
        clock: Clock,
        *,
        repeat_s: float,
        pause_s: float,
        grace_s: float,
    ) -> None:
        self._nodes, self._payloads, self._prepare, self._clock = nodes, payloads, prepare, clock
        self._repeat_s, self._pause_s, self._grace_s = repeat_s, pause_s, grace_s
        self._open: dict[tuple[str, int, int], OpenExchange] = {}
        self.entitlements = Entitlements(self._open)
        """What nodes may read and send for the groups they hold."""

    # Exchanges

    def add(self, opened: OpenExchange) -> None:
        """Add an exchange, and assign its groups."""
        self._open[opened.name], opened.begun = opened, self._clock.monotonic()
        self.entitlements.learn(opened)
        self.drop_absent()
        self.push()

    def remove(self, opened: OpenExchange) -> None:
        """Cancel the assigned groups of an exchange."""
        del self._open[opened.name]
        for node in self._nodes.values():
            mine = [key for key in node.assigned if key[:3] == opened.name]
            self._cancel(node, mine)
            if mine and node.mailbox is not None:
                node.mailbox.put(Cancel(run_id=opened.run.run_id, round=opened.round, exchange=opened.exchange))
        self.push()

    def _cancel(self, node: Node, keys: Collection[GroupKey]) -> None:
        """Unassign groups that are no longer needed; the running one, the node's oldest, cannot be stopped."""
        oldest = next(iter(node.assigned), None)
        for key in keys:
            if node.assigned.pop(key, None) is not None and key == oldest:
                node.cancelled[key] = self._clock.monotonic()

    def release(self, opened: OpenExchange, indices: Collection[int]) -> None:
        """Release groups of the reserve for assignment."""
        opened.release(indices)
        self.push()

    def find(self, key: GroupKey) -> OpenExchange | None:
        """Return the open exchange of a group, or None."""
        return self._open.get(key[:3])

    def runs_for(self, node: Node) -> Iterator[RunSpec]:
        """Yield the runs of the open exchanges that a node serves."""
        for opened in self._open.values():
            if opened.fits(node.labels) or any(opened.assigned_to(node.hello.node)):
                yield opened.run

    def disown(self, name: str) -> None:
        """Invalidate all assignments of a node."""
        for opened in self._open.values():
            opened.disown(name)

    # Choosing

    def push(self) -> None:
        """Push pending groups to agents with capacity, the least busy first; among runs, the least served first."""
        if not any(opened.pending for opened in self._open.values()):
            return  # after most results: what follows takes time for every node
        # A session's first heartbeat lists its groups; before that its needs are unknown.
        assigned = {name: self._load(node) for name, node in self._nodes.items() if node.online and not node.fresh}
        wanting = {name for name, count in assigned.items() if count <= 1}
        waiting = [
            (opened, self._willing(opened, assigned), set(wanting)) for opened in self._open.values() if opened.pending
        ]
        while waiting:
            place = min(waiting, key=lambda place: place[0].in_work)
            opened, willing, eager = place
            choice = choose(opened, assigned, willing, eager)
            if choice is None:
                waiting.remove(place)
                continue
            index, name = choice
            if not self._ready(opened, index, self._nodes[name].locality):
                eager.discard(name)
                continue
            opened.pending.remove(index)
            assigned[name] += MAX_ASSIGNED if index in opened.deaths else 1
            if opened.groups[index].member not in ("", self._nodes[name].member):
                self._lose(opened, index, name, f"node {name!r} is now another member, which has another client's data")
                continue
            try:
                self._push(self._nodes[name], opened, index)
            except FedloomError as exc:  # the run's own trouble must not hit an agent's call
                self._nodes[name].assigned.pop(opened.key(index), None)  # it was not sent
                _fail(opened, exc)

    def _load(self, node: Node) -> int:
        """Return the number of a node's groups; a node whose process died before counts as full."""
        count = len(node.assigned)
        if not any(opened.deaths for opened in self._open.values()):
            return count
        died = any((opened := self.find(key)) is not None and key.group in opened.deaths for key in node.assigned)
        return max(MAX_ASSIGNED, count) if died else count

    def _ready(self, opened: OpenExchange, index: int, locality: str) -> bool:
        """Return whether agents of a locality can read all inputs of a group; has them prepared if they cannot yet."""
        inputs, states = opened.reads(index)
        needed = (*inputs.values(), *states.values())
        missing = [offer for offer in needed if not self._payloads.ready(offer, locality)]
        if missing and locality not in opened.preparing:
            opened.preparing.add(locality)
            self._prepare(opened, missing, locality)
        return not missing

    def prepared(self, opened: OpenExchange, locality: str, trouble: FedloomError | None) -> None:
        """Handle the end of a preparation: its groups can be pushed, or fail."""
        opened.preparing.discard(locality)
        if trouble is not None:  # the run's own, such as full memory
            _fail(opened, trouble)
        self.push()

    def push_again(self) -> None:
        """Push to nodes whose refusals may be over by now."""
        if any(opened.backoff_until for opened in self._open.values()):
            self.push()

    def _willing(self, opened: OpenExchange, names: Collection[str]) -> set[str]:
        """Return the agents that may get groups of an exchange, without those busy with cancelled work."""
        now = self._clock.monotonic()
        return {
            name
            for name in names
            if not self._nodes[name].cancelled and opened.wants(name, self._nodes[name].labels, now)
        }

    def finished(self, name: str, key: GroupKey) -> None:
        """Record that a node has finished a group, needed or not."""
        if self._nodes[name].cancelled.pop(key, None) is not None:
            self.push()

    def stuck(self, since_s: float) -> list[str]:
        """Return nodes busy with cancelled work for so long, while groups wait that no other node can do."""
        now, names = self._clock.monotonic(), [name for name, node in self._nodes.items() if node.online]
        found: set[str] = set()
        for opened in self._open.values():
            if opened.pending and not self._willing(opened, names):
                found |= {name for name in names if opened.wants(name, self._nodes[name].labels, now)}
        return sorted(
            name for name in found if any(now - begun > since_s for begun in self._nodes[name].cancelled.values())
        )

    def ask_another(self, opened: OpenExchange, index: int, after_s: float) -> None:
        """Assign a group to another node, too, after `after_s` seconds; the first answer counts."""
        key, now = opened.key(index), self._clock.monotonic()
        for name, node in self._nodes.items():
            if key in node.assigned:
                reason = f"no answer within {after_s:g} s"
                opened.refusals[name] = Refusal(key=key, kind="failure", reason=reason)
                opened.backoff_until[name] = max(opened.backoff_until.get(name, 0.0), now + after_s)
        if index not in opened.pending and index not in opened.done:
            opened.pending.append(index)
            self.push()

    def waits_for(self, opened: OpenExchange) -> str:
        """Return what kind of node an exchange's waiting groups lack; empty if they lack none, or none waits."""
        return lacking(opened, self._nodes, self._clock.monotonic())

    def _push(self, node: Node, opened: OpenExchange, index: int) -> None:
        assert node.mailbox is not None
        node.announce(opened.run)
        planned, spec = opened.groups[index], opened.spec
        inputs, states = opened.reads(index)
        self._assign(node, opened, index)
        node.mailbox.put(
            Group(
                key=opened.key(index),
                jobs=planned.jobs,
                inputs={key: self._refer(node, offer) for key, offer in inputs.items()},
                knobs=spec.knobs,
                accumulator=opened.accumulator,
                rules=opened.rules,
                updates=spec.updates,
                measure=opened.measure,
                park=spec.park,
                collects=spec.collects,
                states={client: self._refer(node, offer) for client, offer in states.items()},
                clients=opened.clients,
            )
        )

    def _assign(self, node: Node, opened: OpenExchange, index: int) -> None:
        """Record the assignment of a group to a node."""
        opened.bind(index, node.hello.node)
        node.runs.add(opened.run.run_id)
        node.assigned[opened.key(index)] = self._clock.monotonic()

    def _refer(self, node: Node, offer: Offer) -> PayloadRef:
        """Return a reference for a node, with its bytes counted if no message or stream will count them."""
        ref = self._payloads.ref(offer, node.locality)
        if ref.in_memory and node.hello.session not in offer.reported:
            offer.reported.add(node.hello.session)
            node.bytes_down += ref.size
        return ref

    # What nodes say of groups

    def take(self, opened: OpenExchange, name: str, result: GroupResult) -> bool:
        """Accept a valid result; returns False if it is not final because the group is reassigned."""
        key = result.key
        trouble = opened.groups[key.group].trouble(result)
        if trouble is not None and self._pass_on(opened, key, name, trouble):
            return False
        opened.done.add(key.group)
        if key.group in opened.pending:  # it had been withdrawn from this agent, which then sent its result
            opened.pending.remove(key.group)
        self._nodes[name].assigned.pop(key, None)
        for other in opened.assignees(key.group):
            if other != name and other in self._nodes:
                self._cancel(self._nodes[other], [key])
        return True

    def turn_away(self, opened: OpenExchange, key: GroupKey, name: str, exc: FedloomError) -> None:
        """Reassign an agent's groups of an exchange after an invalid result; it gets none while there are others."""
        node = self._nodes[name]
        opened.refusals[name] = Refusal(key=key, kind="result", reason=f"{type(exc).__name__}: {exc}")
        opened.backoff_until[name] = math.inf if self._others(opened, name) else self._clock.monotonic() + self._pause_s
        for another in [other for other in node.assigned if other[:3] == key[:3] and other != key]:
            del node.assigned[another]
            if opened.reassigns:
                opened.pending.appendleft(another.group)
            else:
                self._lose(opened, another.group, name, opened.refusals[name].reason)
        if node.assigned.pop(key, None) is not None:
            self._lose(opened, key.group, name, opened.refusals[name].reason)
        self.push()

    def refuse(self, name: str, refusal: Refusal) -> None:
        """Handle a refusal by a node's policy: it gets no more groups of the exchange, for a while or permanently."""
        key = refusal.key
        known = self._nodes[name].assigned.pop(key, None) is not None
        opened = self.find(key)
        if opened is None or not known or key.group in opened.done:
            return
        opened.refusals[name] = refusal
        wait_s = max(refusal.retry_s, RETRY_S) if refusal.retry_s else math.inf
        opened.backoff_until[name] = self._clock.monotonic() + wait_s
        opened.pending.appendleft(key.group)
        self._give_up_refused(opened, at_once={key.group} if not opened.reassigns else ())
        self.push()

    def reconcile(self, name: str, listed: set[GroupKey]) -> None:
        """Compare the groups that a node lists with those assigned to it.

        Undelivered groups are pushed again. A claim to a group that was never assigned to the node is stale.
        """
        node, now = self._nodes[name], self._clock.monotonic()
        if node.fresh:
            node.fresh = False
            self._take_back(name, "the agent was restarted", listed)
        for key in [key for key in node.cancelled if key not in listed]:
            del node.cancelled[key]
        for key, pushed in list(node.assigned.items()):
            if key not in listed and now - pushed > self._repeat_s:
                del node.assigned[key]
                opened = self.find(key)
                if opened is not None and key.group not in opened.done:
                    opened.pending.appendleft(key.group)
        for key in sorted(listed - set(node.assigned)):
            opened = self.find(key)
            if opened is None or opened.settled(key.group, name):
                answer_again(node, key, opened)
            elif opened.was_assigned(key.group, name) or self._adopts(opened, key, node):
                self._assign(node, opened, key.group)
                if key.group in opened.pending:
                    opened.pending.remove(key.group)
            else:
                node.acknowledge(key, "stale")
        node.newcomer = False
        self.push()

    def _adopts(self, opened: OpenExchange, key: GroupKey, node: Node) -> bool:
        """Return whether a group stays with the node that claims it, though this server has not assigned it.

        A server that was restarted does not know earlier assignments. Of a node it has not seen before it
        accepts as many claims as it would assign to that node now.
        """
        name = node.hello.node
        return (
            node.newcomer
            and key.group in opened.pending
            and opened.only(key.group) in ("", name)
            and opened.wants(name, node.labels, self._clock.monotonic())
            and len(node.assigned) < MAX_ASSIGNED
        )

    def requeue(self, name: str, reason: str) -> None:
        """Reassign the groups of an agent that vanished."""
        self._take_back(name, reason, ())
        self.push()

    def drop_absent(self) -> None:
        """Fail waiting groups whose only possible node is gone."""
        now = self._clock.monotonic()
        for opened in self._open.values():
            for index, only in absent(opened, self._nodes, now, self._grace_s).items():
                opened.pending.remove(index)
                self._lose(opened, index, only, f"node {only!r} is not connected")

    def _take_back(self, name: str, reason: str, but: Collection[GroupKey]) -> None:
        """Withdraw an agent's groups, except those it still has."""
        node = self._nodes[name]
        for key in [key for key in node.assigned if key not in but]:
            del node.assigned[key]
            opened = self.find(key)
            if opened is not None and key.group not in opened.done:
                own = node.online and opened.groups[key.group].only == name
                self._lose(opened, key.group, name, reason, same_node=own)

    # Second attempts

    def _others(self, opened: OpenExchange, name: str) -> set[str]:
        """Return the nodes other than this one that may get groups of an exchange, now or later."""
        return {
            other for other in self._able(opened) if other != name and opened.backoff_until.get(other, 0.0) < math.inf
        }

    def _able(self, opened: OpenExchange) -> Iterable[str]:
        """Return the nodes that serve an exchange's run and are connected."""
        return (name for name, node in self._nodes.items() if node.online and opened.fits(node.labels))

    def _pass_on(self, opened: OpenExchange, key: GroupKey, name: str, failure: ClientFailure) -> bool:
        """Reassign a group that a node failed at; returns False if every connected node has tried it.

        The node gets no more of the exchange, so each tries once, however many there are.
        """
        if opened.only(key.group) or not self._others(opened, name):
            return False
        opened.failed[key.group, name] = failure
        opened.refusals[name] = Refusal(key=key, kind="failure", reason=failure.words)
        opened.backoff_until[name] = math.inf
        was_assigned = self._nodes[name].assigned.pop(key, None) is not None
        if was_assigned and not any(key in other.assigned for other in self._nodes.values()):
            opened.pending.appendleft(key.group)
        return True

    def _give_up_refused(self, opened: OpenExchange, at_once: Collection[int] = ()) -> None:
        """Fail the groups that every eligible node refuses for good, and those in `at_once`."""
        never = {name for name, until in opened.backoff_until.items() if until == math.inf}
        able = set(self._able(opened))
        for index in list(opened.pending):
            only = opened.only(index)
            if index in at_once or (only and only in never) or (not only and never and able <= never):
                named = "; ".join(f"{name}: {opened.refusals[name].reason}" for name in sorted(never)[:3])
                reasons = opened.refusals[only].reason if only else named
                opened.pending.remove(index)
                opened.done.add(index)
                opened.answers.put(Answer.refused(index, only, reasons))

    def _lose(self, opened: OpenExchange, index: int, name: str, reason: str, *, same_node: bool = False) -> None:
        """Requeue a group whose agent is gone, or fail it; `same_node`: its own node is back and may do it again."""
        opened.deaths[index] = deaths = opened.deaths.get(index, 0) + 1
        if not (opened.reassigns or same_node):
            reason += "; this exchange does not reassign groups"
        elif deaths < opened.max_attempts:
            opened.reassigned += 1
            opened.pending.appendleft(index)
            return
        opened.done.add(index)
        opened.answers.put(Answer(index=index, node=name, result=None, lost=f"{reason} ({deaths} attempts)"))


def answer_again(node: Node, key: GroupKey, opened: OpenExchange | None) -> None:
    """Notify a node that a result is obsolete; one that the run has yet to store safely is left to the run."""
    if opened is None:
        node.acknowledge(key, "stale")
    elif key.group not in opened.unacknowledged:
        node.acknowledge(key, "duplicate")


def _fail(opened: OpenExchange, trouble: FedloomError) -> None:
    """End an exchange whose groups cannot be assigned; its run receives the error."""
    opened.pending.clear()
    opened.answers.put(trouble)

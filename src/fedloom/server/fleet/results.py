"""Incoming results: matched to their group, decoded, vetted, and checked again before they count.

Decoding and vetting take time in proportion to the model, so they run without the coordinator's lock, between two
checks of the exchange. Meanwhile it may close or restart, another node may send a result, or the node leave, reconnect
with another session, or send a copy. The first result counts; a result's payloads are used up once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedloom.core.errors import FedloomError
from fedloom.core.messages import GroupKey, GroupResult
from fedloom.server.fleet.dispatch import Dispatch, answer_again
from fedloom.server.fleet.nodes import Node
from fedloom.server.fleet.numbers import bounded_times, check_reports
from fedloom.server.fleet.open_exchange import Answer, OpenExchange
from fedloom.server.fleet.payloads import PayloadStore, Upload
from fedloom.server.fleet.vetting import summed_part

MAX_LATE = 10_000
"""Late results of a run whose copies are recognised; beyond it the oldest is forgotten, and a copy of it counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """An expected result, and the exchange it is checked against."""

    name: str
    """The node that sent it."""
    opened: OpenExchange
    result: GroupResult
    locality: str
    """`process`, `host` or `remote`: a node that shares the server's memory is believed its sums, one in this process
    all it says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unwanted:
    """An unexpected result; its node has been notified."""

    dropped: list[Upload] = field(default_factory=list)
    """Its payloads: freeing takes long, so the caller releases this without the lock."""


class Results:
    """Processes results in three steps. Except for `read` not thread-safe: call it with its owner's lock.

    Args:
        nodes: every known node by name; the owner adds and removes them.
        dispatch: of the same nodes.
        payloads: the uploads.
    """

    def __init__(self, nodes: Mapping[str, Node], dispatch: Dispatch, payloads: PayloadStore) -> None:
        self._nodes, self._dispatch, self._payloads = nodes, dispatch, payloads
        self._stale: dict[str, int] = {}
        """Late results, by run."""
        self._late: dict[str, dict[tuple[str, GroupKey], None]] = {}
        """Nodes and groups of the late results, by run, oldest first: nodes send a result until it is acknowledged."""

    def expect(self, run_id: str) -> None:
        """Count the late results of a run from now on."""
        self._stale.setdefault(run_id, 0)
        self._late.setdefault(run_id, {})

    def forget(self, run_id: str) -> None:
        """Forget a run that is over."""
        self._stale.pop(run_id, None)
        self._late.pop(run_id, None)

    def take_stale(self, run_id: str) -> int:
        """Return and reset the number of a run's late results."""
        count = self._stale.get(run_id, 0)
        self._stale[run_id] = 0
        return count

    def begin(self, name: str, result: GroupResult) -> Reading | Unwanted:
        """Match a node's result to its group (first check)."""
        key, node = result.key, self._nodes[name]
        self._dispatch.finished(name, key)
        opened = self._dispatch.find(key)
        if opened is not None and not opened.was_assigned(key.group, name):
            node.acknowledge(key, "rejected", f"group {key} was not assigned to node {name!r}")
            return Unwanted(dropped=self._payloads.drop(name, result.payloads))
        if opened is not None and (key.group, name) in opened.reading:
            return Unwanted()  # a copy of a result being read, which will be acknowledged
        if opened is None or opened.settled(key.group, name):
            again = opened is not None and (key.group, name) in opened.taken
            node.assigned.pop(key, None)
            self._unwanted(node, opened, key)
            return Unwanted(dropped=[] if again else self._payloads.drop(name, result.payloads))
        opened.reading.add((key.group, name))
        if node.locality != "process":
            result = bounded_times(result, node.clock.monotonic() - opened.begun)
        return Reading(name=name, opened=opened, result=result, locality=node.locality)

    def read(self, reading: Reading) -> Answer:
        """Decode a result's payloads, and vet its sum if it comes from another machine. Slow: without the lock.

        Raises:
            FedloomError: the result is invalid.
        """
        name, result, index = reading.name, reading.result, reading.result.key.group
        records = deque(self._payloads.take_all(name, result.payloads))
        opened, group = reading.opened, reading.opened.groups[index]
        group.check(result)
        if reading.locality != "process":
            sizes = {name: offer.size for name, offer in opened.inputs.items()}
            check_reports(result, group.jobs, sizes, self._payloads.max_payload_bytes)
        total = records.popleft() if result.total is not None else None
        if reading.locality == "remote" and opened.vet is not None and total is not None:
            summed = summed_part(result, group.jobs)
            partial = opened.vet(total, [report.client for report in summed.reports])
            if opened.terms is not None and partial is not None:
                opened.terms.check(partial, total, summed, group.jobs)
        states = dict(zip(result.states, records, strict=True))
        return Answer(index=index, node=name, result=result, total=total, states=states)

    def abort(self, reading: Reading) -> None:
        """Discard a result that could not be read for another reason: it may be sent again."""
        reading.opened.reading.discard((reading.result.key.group, reading.name))

    def settle(self, reading: Reading, trouble: FedloomError | None) -> bool:
        """Accept or reject a result (second check), after `read` has succeeded, or failed with `trouble`.

        Another session of the node may have begun: the result is still valid, and the new session is notified.

        Returns:
            Whether the result is accepted for its group.
        """
        self.abort(reading)
        opened, key, node = reading.opened, reading.result.key, self._nodes.get(reading.name)
        if node is None:  # it left, others have its groups, and it has been forgotten
            return False
        node.seen = node.clock.monotonic()
        if self._dispatch.find(key) is not opened:  # if the run has restarted, its node may have the same key again
            self._unwanted(node, None, key)
            return False
        if trouble is not None:
            node.acknowledge(key, "rejected", trouble.public_message())
            self._dispatch.turn_away(opened, key, reading.name, trouble)
            return False
        opened.taken.add((key.group, reading.name))
        if opened.settled(key.group, reading.name):
            node.assigned.pop(key, None)
            self._unwanted(node, opened, key)
            return False
        return self._accept(reading, node)

    def _accept(self, reading: Reading, node: Node) -> bool:
        opened, key = reading.opened, reading.result.key
        is_final = self._dispatch.take(opened, reading.name, reading.result)
        if is_final:
            node.count(reading.result)
        if is_final and opened.run_acknowledges:
            opened.unacknowledged[key.group] = reading.name
        else:
            node.acknowledge(key, "accepted")
        self._dispatch.push()
        return is_final

    def _unwanted(self, node: Node, opened: OpenExchange | None, key: GroupKey) -> None:
        """Reply to a duplicate result, or to a late one if its exchange is over."""
        if opened is not None:
            opened.duplicates += 1
        elif key.run_id in self._stale and key.run_id in node.runs:
            self._count_late(node.hello.node, key)
        answer_again(node, key, opened)

    def _count_late(self, name: str, key: GroupKey) -> None:
        """Count a late result, once however often it is sent."""
        known = self._late[key.run_id]
        if (name, key) in known:
            return
        if len(known) >= MAX_LATE:
            del known[next(iter(known))]
        known[name, key] = None
        self._stale[key.run_id] += 1

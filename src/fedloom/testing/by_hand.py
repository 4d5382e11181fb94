"""One exchange step by step: groups to assign, results to send, an agent that a test drives message by message."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from fedloom.core.accumulators import RunningMean
from fedloom.core.messages import (
    Channel,
    GroupKey,
    GroupResult,
    Heartbeat,
    Hello,
    PayloadRef,
    RunSpec,
    ToAgent,
    Welcome,
)
from fedloom.core.records import MODEL, ClientReport, Exchange, Groups, Job, Record, Update
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.open_exchange import Answer, OpenExchange
from fedloom.server.fleet.payloads import Offer, PayloadStore
from fedloom.server.fleet.planned import PlannedExchange, PlannedGroup, RunFacts
from fedloom.server.fleet.vetting import Vet
from fedloom.testing.records import model_record

M = TypeVar("M", bound=ToAgent)


def run_spec(run_id: str = "run", **round: object) -> RunSpec:
    """Make an experiment as it is sent to agents: `fedloom.testing.linear` with `fedavg`.

    Args:
        run_id: the run's.
        round: settings of the section `round`.
    """
    values = {
        "rounds": 1,
        "clients": 100,
        "strategy": {"name": "fedavg"},
        "workload": {"name": "fedloom.testing.linear"},
        "round": {"max_attempts": 3, **round},
    }
    return RunSpec(run_id=run_id, experiment=values)


def planned_groups(*works: float) -> list[PlannedGroup]:
    """Make groups of one client each, clients 0, 1, …, with this much work."""
    return [PlannedGroup(jobs=(Job(round=1, client=client),), work=work) for client, work in enumerate(works)]


@contextlib.contextmanager
def open_exchange(
    coordinator: Coordinator,
    groups: Sequence[PlannedGroup],
    *,
    run: RunSpec | None = None,
    round: int = 1,
    index: int = 0,
    inputs: Mapping[str, Record] | None = None,
    labels: Mapping[str, str] | None = None,
    vet: Vet | None = None,
    run_acknowledges: bool = False,
    reassign: bool = True,
) -> Iterator[OpenExchange]:
    """Assign groups until the block ends.

    Args:
        coordinator: gives them out.
        groups: the exchange's.
        run: `run_spec()` by default.
        round, index: the exchange's place in the run.
        inputs: a small model by default.
        labels: nodes must have them.
        vet: checks the sums of agents on other machines.
        reassign: whether a group may be reassigned.
        run_acknowledges: whether the run acknowledges results itself, as one with a journal does.
    """
    exchange = Exchange(
        jobs=tuple(job for group in groups for job in group.jobs),
        inputs=inputs if inputs is not None else {MODEL: model_record()},
        reassign=reassign,
    )
    run = run or run_spec()
    facts = RunFacts(spec=run, max_attempts=run.experiment["round"]["max_attempts"], labels=labels or {})
    planned = PlannedExchange(
        run=facts,
        round=round,
        index=index,
        exchange=exchange,
        groups=tuple(groups),
        vet=vet,
        run_acknowledges=run_acknowledges,
    )
    with coordinator.exchange(planned) as opened:
        yield opened


def next_answer(opened: OpenExchange, timeout_s: float = 5.0) -> Answer:
    """Return the next result of an exchange: accepted, or why its group has none.

    Args:
        opened: the exchange.
        timeout_s: seconds to wait.

    Raises:
        AssertionError: none arrived, or an error ended the exchange.
    """
    try:
        answer = opened.answers.get(timeout=timeout_s)
    except queue.Empty:
        raise AssertionError(f"no result has arrived within {timeout_s} s") from None
    if not isinstance(answer, Answer):
        raise AssertionError(f"expected a result, but the exchange has failed: {answer!r}") from answer
    return answer


def prepared_ref(store: PayloadStore, offer: Offer, locality: str) -> PayloadRef:
    """Return a reference to an offered payload, prepared for an agent of a locality."""
    store.prepare(offer, [locality])
    return store.ref(offer, locality)


def sum_of_one(client: int, value: float = 2.0, size: int = 3) -> Record:
    """Make the accumulator of one client whose weight is one and whose model is `model_record(size, value)`."""
    mean = RunningMean()
    mean.add(Update(num_examples=1, groups=model_record(size, value).groups), 1.0, client)
    return mean.record()


def group_result(
    key: GroupKey,
    *clients: int,
    total: PayloadRef | None = None,
    states: Mapping[int, PayloadRef] | None = None,
    busy_s: float = 0.0,
) -> GroupResult:
    """Make the result of a group whose clients all succeeded.

    Args:
        key: the group's.
        clients: those that report, one example each.
        total: their sum; by default `sum_of_one` of the first client.
        states, busy_s: as in `GroupResult`.
    """
    return GroupResult(
        key=key,
        total=total or PayloadRef(size=1, record=sum_of_one(clients[0])),
        reports=tuple(ClientReport(client=client, num_examples=1, seconds=0.1) for client in clients),
        states=states or {},
        busy_s=busy_s,
    )


class ManualAgent:
    """A scripted agent: a channel, and every message received over it.

    Args:
        channel: to the server.
        node: the agent's name.
    """

    def __init__(self, channel: Channel, node: str = "hand") -> None:
        self.channel, self.node = channel, node
        self.got: list[ToAgent] = []
        """Every message, oldest first."""
        self._sessions = 0

    def open(self) -> Welcome:
        """Open a new session."""
        self._sessions += 1
        return self.channel.open(Hello(node=self.node, session=f"session-{self._sessions}"))

    def start(self) -> Welcome:
        """Open a new session and send one heartbeat, after which groups arrive."""
        welcome = self.open()
        self.channel.send(Heartbeat())
        return welcome

    def store(self, record: Record, run_id: str = "run") -> PayloadRef:
        """Store a run's record for the server."""
        return self.channel.store(record, run_id)

    def lease(self, record: Record, run_id: str = "run") -> Groups:
        """Return writable arrays shaped like the record's, which `store` can hand over."""
        return self.channel.lease(record, run_id)

    def take(self, kind: type[M], count: int = 1, timeout_s: float = 10.0, **fields: object) -> list[M]:
        """Wait until `count` different messages of a kind have arrived, over all sessions together.

        Args:
            kind: the messages' class.
            count: number of messages; with 0, all those received are returned immediately.
            timeout_s: seconds to wait.
            fields: values the messages must have.

        Raises:
            AssertionError: they have not arrived; the message shows those received.
        """
        deadline = time.monotonic() + timeout_s

        def found() -> list[M]:
            fits = [
                message
                for message in self.got
                if isinstance(message, kind) and all(getattr(message, name) == want for name, want in fields.items())
            ]
            return list({repr(message): message for message in fits}.values())

        while len(found()) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"waited for {count} {kind.__name__} {fields}, got {self.got}")
            message = self.channel.receive(min(left, 0.5))
            if message is not None:
                self.got.append(message)
        return found()[:count] if count else found()

    def drain(self, quiet_s: float = 0.3) -> list[ToAgent]:
        """Return the messages that arrive until none has arrived for `quiet_s` seconds."""
        new: list[ToAgent] = []
        while (message := self.channel.receive(quiet_s)) is not None:
            new.append(message)
        self.got += new
        return new

"""A fleet small enough for a test: servers with short heartbeats, agents in threads, groups and results by hand."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fedloom.client.agent import Agent
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment
from fedloom.core.messages import (
    Channel,
    GroupKey,
    GroupResult,
    Hello,
    PayloadRef,
    RunSpec,
    ToAgent,
)
from fedloom.core.records import ClientReport, Exchange, Job, Record, Update
from fedloom.server.app import Server
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.open_exchange import OpenExchange
from fedloom.server.fleet.payloads import Offer, PayloadStore
from fedloom.server.fleet.planned import PlannedExchange, PlannedGroup, RunFacts
from fedloom.server.fleet.vetting import Vet
from fedloom.server.rounds.run_services import FleetAccess, Place
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.server.store.run_store import RunStore

SUPPORT = Path(__file__).parent
LINEAR = SUPPORT / "linear.py"
TOKEN = "secret"
PLACE = Place(runtime="test", workers=2, where="here")


def quick_server(*, shared_memory: bool = True, **options: Any) -> Server:
    """A server that notices things within a fraction of a second."""
    return Server(shared_memory=shared_memory, **{"heartbeat_s": 0.1, "grace_s": 0.2, "lost_after_s": 5.0, **options})


def until(condition: Callable[[], Any], timeout_s: float = 10.0, what: str = "it") -> Any:
    """What `condition` returns once that is true; looks every few milliseconds, for other processes' doings."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} has not happened within {timeout_s} s"
        time.sleep(0.005)
    return found


@dataclass
class Listener:
    """A sink that keeps events and wakes who waits for them."""

    events: list[Any] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def write(self, event: Any) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def close(self) -> None:
        pass

    def of(self, kind: type[Any]) -> list[Any]:
        with self.changed:
            return [event for event in self.events if isinstance(event, kind)]

    def wait_for(self, condition: Callable[[list[Any]], Any], timeout_s: float = 20.0) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self.events), timeout_s), self.events


@contextlib.contextmanager
def agents(
    address: str, names: Sequence[str], wrap: Callable[[Channel], Channel] = lambda c: c
) -> Iterator[list[Agent]]:
    """Real agents over gRPC, each in a thread."""
    made = [Agent(wrap(GrpcChannel(address, TOKEN)), name, give_up_s=10) for name in names]
    threads = [threading.Thread(target=agent.run, name=agent.node) for agent in made]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        for agent in made:
            agent.stop()
        for thread in threads:
            thread.join()


def hold_session(
    experiment: Experiment,
    *,
    workers: int = 2,
    store: RunStore | None = None,
    sinks: Sequence[Any] = (),
    stop: threading.Event | None = None,
    shared_memory: bool = True,
    wrap: Callable[[Channel], Channel] = lambda channel: channel,
    **options: Any,
) -> Outcome:
    """A whole run on a server and agents of its own."""
    store = store or MemoryRunStore("test-run")
    store.begin(experiment)
    with quick_server(shared_memory=shared_memory, **options) as server:
        address = f"127.0.0.1:{server.listen(token=TOKEN)}"
        with agents(address, [f"agent-{index}" for index in range(workers)], wrap):
            fleet = access(server.coordinator, patience_s=10)
            return run_session(experiment, store, fleet, sinks, stop=stop or threading.Event())


def access(coordinator: Coordinator, **options: Any) -> FleetAccess:
    """A run's way to a coordinator's agents."""
    return FleetAccess(coordinator=coordinator, **{"place": lambda: PLACE, **options})


# Groups by hand


def run_spec(run_id: str = "run", **round: Any) -> RunSpec:
    """An experiment as agents are told it; only `round` matters to the coordinator."""
    values = {
        "rounds": 1,
        "clients": 100,
        "strategy": {"name": "fedavg"},
        "workload": {"name": str(LINEAR)},
        "round": {"max_attempts": 3, **round},
    }
    return RunSpec(run_id=run_id, experiment=values)


def planned(*works: float) -> list[PlannedGroup]:
    """Groups of one client each, as long as told."""
    return [PlannedGroup(jobs=(Job(round=1, client=client),), work=work) for client, work in enumerate(works)]


def model_record(size: int = 3, value: float = 1.0) -> Record:
    """A small model."""
    return Record({"model": {"w": np.full(size, value, np.float32)}})


def named(store: PayloadStore, offer: Offer, locality: str) -> PayloadRef:
    """A reference to an offer, prepared for an agent of a locality."""
    store.prepare(offer, [locality])
    return store.ref(offer, locality)


@contextlib.contextmanager
def exchange(
    coordinator: Coordinator,
    groups: Sequence[PlannedGroup],
    *,
    run: RunSpec | None = None,
    round: int = 1,
    index: int = 0,
    inputs: dict[str, Record] | None = None,
    labels: Mapping[str, str] | None = None,
    vet: Vet | None = None,
    run_acknowledges: bool = False,
    reassign: bool = True,
) -> Iterator[OpenExchange]:
    """An open exchange of the groups."""
    spec = Exchange(
        jobs=tuple(job for group in groups for job in group.jobs),
        inputs=inputs if inputs is not None else {"model": model_record()},
        reassign=reassign,
    )
    run = run or run_spec()
    facts = RunFacts(spec=run, max_attempts=run.experiment["round"]["max_attempts"], labels=labels or {})
    planned = PlannedExchange(
        run=facts,
        round=round,
        index=index,
        exchange=spec,
        groups=tuple(groups),
        vet=vet,
        run_acknowledges=run_acknowledges,
    )
    with coordinator.exchange(planned) as opened:
        yield opened


def a_sum(client: int, value: float = 2.0, size: int = 3) -> Record:
    """The accumulator of one client whose weight is one."""
    mean = RunningMean()
    mean.add(Update(num_examples=1, groups=model_record(size, value).groups), 1.0, client)
    return mean.record()


def result(key: GroupKey, *clients: int, total: PayloadRef | None = None, **fields: Any) -> GroupResult:
    """The answer to a group, a sum in it, all clients well."""
    record = a_sum(clients[0])
    return GroupResult(
        key=key,
        total=total or PayloadRef(size=1, record=record),
        reports=tuple(ClientReport(client=client, num_examples=1, seconds=0.1) for client in clients),
        **fields,
    )


class Hand:
    """An agent moved by hand: a channel, and every message that came."""

    def __init__(self, channel: Channel, node: str = "hand") -> None:
        self.channel, self.node = channel, node
        self.got: list[ToAgent] = []
        self._sessions = 0

    def open(self) -> Any:
        self._sessions += 1
        return self.channel.open(Hello(node=self.node, session=f"session-{self._sessions}"))

    def take(self, kind: type[Any], count: int = 1, timeout_s: float = 10.0, **fields: Any) -> list[Any]:
        """Wait until `count` different messages of a kind have come, all connections together."""
        deadline = time.monotonic() + timeout_s

        def found() -> list[Any]:
            fits = [m for m in self.got if isinstance(m, kind) and all(getattr(m, k) == v for k, v in fields.items())]
            return list({repr(m): m for m in fits}.values())

        while len(found()) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"waited for {count} {kind.__name__} {fields}, got {self.got}"
            message = self.channel.receive(min(left, 0.5))
            if message is not None:
                self.got.append(message)
        return found()[:count] if count else found()

    def drain(self, quiet_s: float = 0.3) -> list[ToAgent]:
        """What comes until nothing has come for a while."""
        new = []
        while (message := self.channel.receive(quiet_s)) is not None:
            new.append(message)
        self.got += new
        return new


def odd_records(size: int) -> list[Record]:
    """Records of every dtype a model may have, about `size` bytes each."""
    rng = np.random.Generator(np.random.PCG64(1))
    records = []
    for kind in map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int64)):
        values = rng.integers(-100, 100, max(1, size // kind.itemsize)).astype(kind)
        info = {"kind": kind.name, "nested": {"list": [1, None, True]}}
        records.append(Record({"model": {"w": values, "s": np.ones((), kind)}}, info))
    return records


def assert_same_record(left: Record, right: Record) -> None:
    """Equal names, dtypes, shapes, bits and info."""
    assert {g: list(arrays) for g, arrays in left.groups.items()} == {g: list(a) for g, a in right.groups.items()}
    for (_, name, mine), (_, _, theirs) in zip(left.items(), right.items(), strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), name
        assert mine.tobytes() == theirs.tobytes(), name
    assert left.info == right.info

"""The suites, each of a part that can be exchanged, with a sound one to begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.accumulators import RunningMean
from fedloom.core.messages import Channel
from fedloom.core.plugins import AnyStrategy
from fedloom.core.protocols import (
    LocalRule,
    Measure,
    Monitor,
    MonitorReading,
    MonitorRequest,
    Observation,
    Probe,
    Roster,
    Selection,
    Watch,
)
from fedloom.core.records import Exchange, Record, Update
from fedloom.server.app import Server
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.strategies.fedavg.strategy import FedAvg
from fedloom.testing import linear
from fedloom.testing.accumulator import AccumulatorConformance
from fedloom.testing.channel import ChannelConformance
from fedloom.testing.faults import ForwardingChannel
from fedloom.testing.federation import MadeUpFederation
from fedloom.testing.fleet import TOKEN
from fedloom.testing.measure import MeasureConformance
from fedloom.testing.monitor import MonitorConformance
from fedloom.testing.rule import RuleConformance
from fedloom.testing.run_store import RunStoreConformance, small_experiment
from fedloom.testing.selection import SelectionConformance
from fedloom.testing.strategy import StrategyConformance
from fedloom.testing.workload import WorkloadConformance

CASES: list[tuple[type[Any], str, type[Any]]] = []
"""A suite's class, the test that must fail, and the broken part."""


def breaks(suite: type[Any], test: str) -> Callable[[type[Any]], type[Any]]:
    """Mark a part as one that a suite must refuse in a test."""

    def mark(part: type[Any]) -> type[Any]:
        CASES.append((suite, f"test_{test}", part))
        return part

    return mark


class OfStrategy(StrategyConformance):
    name, part = "fedavg", FedAvg

    def federation(self) -> MadeUpFederation:
        federation = super().federation()
        federation.strategy = cast(AnyStrategy, self.part())
        return federation


class OfRule(RuleConformance):
    name, part = "fedprox", LocalRule

    def build(self, exchange: Exchange) -> LocalRule:
        return self.part()


@dataclass(frozen=True)
class Seen:
    times: np.ndarray


class FirstCandidates(Selection[Seen]):
    State = Seen

    def init(self, roster: Roster) -> Seen:
        return Seen(np.zeros(roster.population))

    def probe(self, state: Seen, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        drawn = rng.choice(roster.population, min(roster.population, 2 * size), replace=False)
        return Probe(candidates=tuple(map(int, drawn)), kind="measure", measure="update_norm")

    def choose(
        self, state: Seen, roster: Roster, size: int, rng: np.random.Generator, reports: Sequence[Any] = ()
    ) -> tuple[int, ...]:
        return tuple(report.client for report in reports[:size])


class OfSelection(SelectionConformance):
    name, part = "uniform", FirstCandidates

    def build(self) -> Any:
        return self.part()

    def measured(self, measure: str, client: int) -> dict[str, float]:
        return {"norm": float(client)}


class Drawn(Measure):
    def __call__(self, workload: object, model: Record, update: Update, shard: Any, rng: Any, knobs: Any) -> Any:
        return {"drawn": float(rng.random())}


class OfMeasure(MeasureConformance):
    name, part = "update_norm", Drawn

    def build(self, name: str) -> Measure:
        return self.part()


class OfWorkload(WorkloadConformance):
    name, part = "fedloom.testing.linear", linear.Linear

    def build(self) -> Any:
        return self.part(linear.Config(name="linear"), small_experiment())

    clients = 12


class CountsReports(Monitor):
    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        return MonitorRequest(clients=(0, 3))

    def read(self, reports: Sequence[Any], earlier: Sequence[Any]) -> MonitorReading:
        return MonitorReading(metrics={"n": float(len(reports))}, info={"rounds": len(earlier)})


class Largest(Watch):
    def __call__(self, workload: Any, inputs: Any, shard: Any, rng: np.random.Generator) -> Observation:
        logits, _ = workload.logits(inputs, shard)
        return Observation(num_examples=len(logits), info={"largest": float(logits.max())})


class OfMonitor(MonitorConformance):
    name, part = "mano", CountsReports

    def build(self) -> Monitor:
        return self.part()

    def watch(self) -> Watch:
        return Largest()


class OfWatch(OfMonitor):
    part = Largest  # type: ignore[assignment]

    def build(self) -> Monitor:
        return CountsReports()

    def watch(self) -> Watch:
        return self.part()


class OfAccumulator(AccumulatorConformance):
    name, part = "mean", RunningMean

    def build(self, allocate: Any = None) -> Any:
        return self.part(allocate)

    def read(self, record: Record) -> Any:
        return self.part.from_record(record)


class OfStore(RunStoreConformance):
    part = MemoryRunStore

    def make(self) -> Any:
        return self.part("run")


class OfChannel(ChannelConformance):
    part = ForwardingChannel

    def server(self) -> Server:
        server = super().server()
        server.listen(token=TOKEN)
        return server

    def connect(self, server: Server) -> Channel:
        return self.part(GrpcChannel(f"127.0.0.1:{server.port}", TOKEN))


SOUND = [OfStrategy, OfRule, OfSelection, OfMeasure, OfWorkload, OfMonitor, OfWatch, OfAccumulator, OfStore, OfChannel]

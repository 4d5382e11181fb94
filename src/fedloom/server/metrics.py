"""Prometheus metrics of a server: rounds, cohorts, latencies, bytes, failures, nodes, aggregation time."""

from __future__ import annotations

import builtins
from collections import OrderedDict
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from fedloom.core.errors import catalogue
from fedloom.core.events import (
    ClientLost,
    Event,
    NodeChanged,
    NodeRefused,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
)

MAX_RUNS = 100
"""Limit of runs with series; those of the oldest are dropped for a new run's."""
MAX_METRICS = 64
"""Metrics of a run's evaluations that are shown."""
OTHER = "other"
"""Label of what is in no list: what nodes say must not make series."""
STAGES = frozenset((
    "load", "shard", "inputs", "init", "train", "collect", "evaluate", "monitor", "measure", "statistics", "outgoing",
    "aggregate", "send", "policy", "deadline", "worker",
))  # fmt: skip
REFUSALS = frozenset((
    "workload", "code", "data", "helpers", "bytes", "hours", "hook", "failure", "result", "settings", "submitter",
    "alone", "runs", "rounds", "approval",
))  # fmt: skip
ERRORS = frozenset((
    *(f"{kind.__module__}.{kind.__name__}" for kind in catalogue()),
    *(kind.__name__ for kind in catalogue()),
    *(name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)),
))  # fmt: skip
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class PrometheusSink:
    """Counts events. One for the whole server; every metric's name ends in its unit.

    Args:
        registry: the metrics' registry; a fresh one by default, so two servers in one process do not clash.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        home = self.registry
        self._round = Gauge("fedloom_round", "Last finished round of the run", ["run"], registry=home)
        self._rounds = Counter("fedloom_rounds_total", "Rounds finished", ["run"], registry=home)
        self._cohort = Gauge("fedloom_cohort_clients", "Clients sampled in the current round", ["run"], registry=home)
        self._latency = Histogram(
            "fedloom_update_latency_seconds", "Duration of a client's work", ["run"], buckets=_SECONDS, registry=home
        )
        self._round_time = Histogram(
            "fedloom_round_seconds", "Time from a round's start to its end", ["run"], buckets=_SECONDS, registry=home
        )
        self._aggregation = Histogram(
            "fedloom_aggregation_seconds",
            "Time a round spent aggregating and finishing",
            ["run"],
            buckets=_SECONDS,
            registry=home,
        )
        self._bytes = Counter(
            "fedloom_federated_bytes_total", "Bytes by direction", ["run", "direction"], registry=home
        )
        self._wire = Counter(
            "fedloom_wire_bytes_total", "Bytes by node and direction", ["node", "direction"], registry=home
        )
        self._failures = Counter(
            "fedloom_client_failures_total", "Missing updates", ["run", "stage", "error"], registry=home
        )
        self._refusals = Counter(
            "fedloom_refusals_total",
            "Exchanges a node refused or failed to take part in",
            ["run", "node", "kind"],
            registry=home,
        )
        self._late = Counter("fedloom_late_results_total", "Results not aggregated", ["run", "kind"], registry=home)
        self._nodes = Gauge("fedloom_nodes", "Agents by state", ["state"], registry=home)
        self._evaluation = Gauge(
            "fedloom_evaluation", "Last evaluation of the global model", ["run", "metric"], registry=home
        )
        self._runs = Counter("fedloom_runs_total", "Runs ended", ["status"], registry=home)
        self._states: dict[str, str] = {}
        self._of_run: OrderedDict[str, set[tuple[Gauge | Counter | Histogram, tuple[str, ...]]]] = OrderedDict()
        """The series of each run, to be dropped with it."""

    def write(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._gauge(self._round, event.run_id).set(event.first_round - 1)
            case RoundStarted():
                self._gauge(self._cohort, event.run_id).set(event.cohort)
            case RoundFinished():
                self._finished(event)
            case ClientLost():
                failure = event.failure
                labels = _listed(failure.stage, STAGES), _listed(failure.error, ERRORS)
                self._counter(self._failures, event.run_id, *labels).inc()
            case NodeRefused():
                self._counter(self._refusals, event.run_id, event.node, _listed(event.kind, REFUSALS)).inc()
            case NodeChanged():
                self._node(event.node, event.state)
            case RunFinished():
                self._runs.labels(event.summary.status).inc()
                self._gauge(self._cohort, event.run_id).set(0)

    def close(self) -> None:
        """Do nothing: nothing is buffered."""

    def _finished(self, event: RoundFinished) -> None:
        record, run = event.record, event.run_id
        self._counter(self._rounds, run).inc()
        self._gauge(self._round, run).set(record.round)
        self._histogram(self._round_time, run).observe(record.timing.total_s)
        self._histogram(self._aggregation, run).observe(record.timing.aggregation_s)
        for seconds in record.client_seconds.values():
            self._histogram(self._latency, run).observe(seconds)
        self._counter(self._bytes, run, "down").inc(record.traffic.bytes_down)
        self._counter(self._bytes, run, "up").inc(record.traffic.bytes_up)
        self._counter(self._late, run, "stale").inc(record.stale)
        self._counter(self._late, run, "duplicate").inc(record.duplicates)
        for node, share in record.nodes.items():
            self._wire.labels(node, "down").inc(share.wire_bytes_down)
            self._wire.labels(node, "up").inc(share.wire_bytes_up)
        for name, value in sorted((record.evaluation or {}).items())[:MAX_METRICS]:
            if (self._evaluation, (run, name)) in self._series(run) or self._shown(run) < MAX_METRICS:
                self._gauge(self._evaluation, run, name).set(value)

    def _shown(self, run: str) -> int:
        """Return how many metrics of a run's evaluations have series."""
        return sum(metric is self._evaluation for metric, _ in self._series(run))

    def _gauge(self, metric: Gauge, run: str, *labels: str) -> Gauge:
        self._note(metric, run, *labels)
        return metric.labels(run, *labels)

    def _counter(self, metric: Counter, run: str, *labels: str) -> Counter:
        self._note(metric, run, *labels)
        return metric.labels(run, *labels)

    def _histogram(self, metric: Histogram, run: str) -> Histogram:
        self._note(metric, run)
        return metric.labels(run)

    def _note(self, metric: Gauge | Counter | Histogram, run: str, *labels: str) -> None:
        """Record a series of a run, and drop those of the oldest run if there are too many."""
        self._series(run).add((metric, (run, *labels)))
        while len(self._of_run) > MAX_RUNS:
            _, old = self._of_run.popitem(last=False)
            for each, of_run in old:
                each.remove(*of_run)

    def _series(self, run: str) -> set[tuple[Gauge | Counter | Histogram, tuple[str, ...]]]:
        return self._of_run.setdefault(run, set())

    def _node(self, node: str, state: str) -> None:
        before = self._states.get(node)
        if before == state:
            return
        if before is not None:
            self._nodes.labels(before).dec()
        self._states[node] = state
        self._nodes.labels(state).inc()


def _listed(text: str, known: frozenset[str]) -> str:
    """Return a label's value if a list has it, else `OTHER`."""
    return text if text in known else OTHER


class Exposed(Protocol):
    """A running metrics endpoint."""

    def shutdown(self) -> None:
        """Stop serving."""


def expose(sink: PrometheusSink, host: str, port: int) -> Exposed:
    """Serve the metrics over HTTP; returns an object with `shutdown()`."""
    server, _ = start_http_server(port, addr=host, registry=sink.registry)
    return server

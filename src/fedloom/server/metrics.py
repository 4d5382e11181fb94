"""Prometheus metrics of a server: rounds, cohorts, latencies, bytes, failures, nodes, aggregation time."""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

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

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class PrometheusSink:
    """Counts events. One for the whole server; every metric's name ends in its unit.

    Args:
        registry: where the metrics live; a fresh one by default, so two servers in one process do not clash.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        home = self.registry
        self._round = Gauge("fedloom_round", "Last finished round of the run", ["run"], registry=home)
        self._rounds = Counter("fedloom_rounds_total", "Rounds finished", ["run"], registry=home)
        self._cohort = Gauge("fedloom_cohort_clients", "Clients asked in the present round", ["run"], registry=home)
        self._latency = Histogram(
            "fedloom_update_latency_seconds", "Time a client's work took", ["run"], buckets=_SECONDS, registry=home
        )
        self._round_time = Histogram(
            "fedloom_round_seconds", "Time from a round's start to its end", ["run"], buckets=_SECONDS, registry=home
        )
        self._aggregation = Histogram(
            "fedloom_aggregation_seconds",
            "Time a round spent folding and finishing",
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
            "fedloom_client_failures_total", "Missing answers", ["run", "stage", "error"], registry=home
        )
        self._refusals = Counter(
            "fedloom_refusals_total",
            "Exchanges a node would not or could not take part in",
            ["run", "node", "kind"],
            registry=home,
        )
        self._late = Counter("fedloom_late_results_total", "Results not folded", ["run", "kind"], registry=home)
        self._nodes = Gauge("fedloom_nodes", "Agents by state", ["state"], registry=home)
        self._evaluation = Gauge(
            "fedloom_evaluation", "Last evaluation of the global model", ["run", "metric"], registry=home
        )
        self._runs = Counter("fedloom_runs_total", "Runs ended", ["status"], registry=home)
        self._states: dict[str, str] = {}

    def write(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._round.labels(event.run_id).set(event.first_round - 1)
            case RoundStarted():
                self._cohort.labels(event.run_id).set(event.cohort)
            case RoundFinished():
                self._finished(event)
            case ClientLost():
                self._failures.labels(event.run_id, event.failure.stage, event.failure.error).inc()
            case NodeRefused():
                self._refusals.labels(event.run_id, event.node, event.kind).inc()
            case NodeChanged():
                self._node(event.node, event.state)
            case RunFinished():
                self._runs.labels(event.summary.status).inc()

    def close(self) -> None:
        """Nothing is kept back."""

    def _finished(self, event: RoundFinished) -> None:
        record, run = event.record, event.run_id
        self._rounds.labels(run).inc()
        self._round.labels(run).set(record.round)
        self._round_time.labels(run).observe(record.timing.total_s)
        self._aggregation.labels(run).observe(record.timing.aggregation_s)
        for seconds in record.client_seconds.values():
            self._latency.labels(run).observe(seconds)
        self._bytes.labels(run, "down").inc(record.traffic.bytes_down)
        self._bytes.labels(run, "up").inc(record.traffic.bytes_up)
        self._late.labels(run, "stale").inc(record.stale)
        self._late.labels(run, "duplicate").inc(record.duplicates)
        for node, share in record.nodes.items():
            self._wire.labels(node, "down").inc(share.wire_bytes_down)
            self._wire.labels(node, "up").inc(share.wire_bytes_up)
        for name, value in (record.evaluation or {}).items():
            self._evaluation.labels(run, name).set(value)

    def _node(self, node: str, state: str) -> None:
        before = self._states.get(node)
        if before == state:
            return
        if before is not None:
            self._nodes.labels(before).dec()
        self._states[node] = state
        self._nodes.labels(state).inc()


class Exposed(Protocol):
    """A running metrics endpoint."""

    def shutdown(self) -> None:
        """Stop serving."""


def expose(sink: PrometheusSink, host: str, port: int) -> Exposed:
    """Serve the metrics over HTTP; returns an object with `shutdown()`."""
    server, _ = start_http_server(port, addr=host, registry=sink.registry)
    return server

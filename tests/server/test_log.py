"""A server's log: one line per event, about its run, round and node."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from fedloom.core.config import Experiment
from fedloom.core.events import NodeChanged, NodeRefused
from fedloom.server.log import LogSink
from fedloom.testing.fleet import run_on_fleet


def about(record: logging.LogRecord) -> tuple[object, ...]:
    return tuple(getattr(record, key, None) for key in ("run", "round", "node"))


def test_a_run_with_a_lost_client(linear: Callable[..., Experiment], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedloom.server.log")
    settings = {"workload": {"fail_clients": [1]}, "round": {"quorum_fraction": 0.5}, "cohort": 12, "rounds": 2}
    outcome = run_on_fleet(linear(**settings), sinks=[LogSink()])
    run, lines = outcome.summary.run_id, [record for record in caplog.records if record.name == "fedloom.server.log"]
    said = [record.getMessage() for record in lines if getattr(record, "run", None) == run]
    assert said[0].startswith("run started: ") and "2 rounds of 12 of 12 clients" in said[0]
    assert said[-1] == "run done"
    rounds = [record for record in lines if record.getMessage().startswith("round finished")]
    assert [about(record)[:2] for record in rounds] == [(run, 1), (run, 2)]
    assert all("12 sampled, 1 failed" in record.getMessage() for record in rounds)
    lost = [
        record for record in lines if record.getMessage().startswith("client 1 failed at stage train: RuntimeError")
    ]
    assert [(record.levelname, *about(record)[:2]) for record in lost] == [("WARNING", run, 1), ("WARNING", run, 2)]


def test_nodes_that_come_and_refuse(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedloom.server.log")
    LogSink().write(NodeChanged(node="a", state="lost", reason="its connection broke"))
    LogSink().write(NodeRefused(run_id="r", round=2, node="a", kind="hours", reason="it works at night only"))
    assert [(record.getMessage(), about(record)) for record in caplog.records] == [
        ("node lost: its connection broke", (None, None, "a")),
        ("node refused: it works at night only", ("r", 2, "a")),
    ]


def test_a_run_that_cannot_begin_is_reported_too(
    linear: Callable[..., Experiment], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedloom.server.log")
    values = linear(round={"reserve_fraction": 0.5}).to_dict() | {"selection": {"name": "power_of_choice"}}
    outcome = run_on_fleet(Experiment.parse(values), sinks=[LogSink()])
    (record,) = [record for record in caplog.records if record.getMessage().startswith("run failed")]
    assert "rules out spare clients" in record.getMessage() and about(record)[0] == outcome.summary.run_id

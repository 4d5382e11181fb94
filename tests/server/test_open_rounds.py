"""Runs whose number of rounds is open: they end when the strategy plans no further round, or when they are stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support_paths import SUPPORT

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import Interrupted
from fedloom.core.events import RoundFinished, RunStarted
from fedloom.server.log import LogSink
from fedloom.server.run_queue import RunQueue
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.testing.fleet import EventLog, run_on_fleet

Make = Callable[..., Experiment]


def until_enough(linear: Make, enough: int, **values: Any) -> Experiment:
    """Rounds until the strategy has had enough of them."""
    return linear(rounds="open", strategy={"name": str(SUPPORT / "odd_strategy.py"), "enough": enough}, **values)


class StopAfter(threading.Event):
    """A sink, and an event that is set once so many rounds are done."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self._rounds = rounds

    def write(self, event: object) -> None:
        if isinstance(event, RoundFinished) and event.record.round == self._rounds:
            self.set()

    def close(self) -> None:
        pass


def test_it_ends_when_the_strategy_plans_no_further_round(linear: Make, tmp_path: Path) -> None:
    listener = EventLog()
    experiment = until_enough(linear, 3, checkpoint={"every": 2}, evaluation={"every": 2})
    result = api.run(experiment, out=tmp_path / "run", sinks=[listener])
    assert (result.summary.status, result.summary.rounds) == ("done", 3)
    assert result.summary.model_sha256 == api.run(linear(rounds=3), keep=False).summary.model_sha256
    assert [event.rounds for event in listener.of(RunStarted)] == [None]
    assert [record.round for record in result.history if record.evaluation] == [2], "its last round is not known to be"
    checkpoint = DiskRunStore.open(tmp_path / "run").latest_checkpoint()
    assert checkpoint is not None and checkpoint.round == 3, "the end is saved, whatever checkpoint.every says"
    assert "of open" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    again = api.resume(tmp_path / "run")
    assert again.summary.model_sha256 == result.summary.model_sha256 and again.history == result.history


@pytest.mark.parametrize("every", [1, 3])
def test_a_stopped_one_resumes_to_the_same_bits(linear: Make, tmp_path: Path, every: int) -> None:
    want = api.run(linear(rounds=6), keep=False).summary.model_sha256
    experiment, stop = until_enough(linear, 6, checkpoint={"every": every}), StopAfter(4)
    store = DiskRunStore.create(tmp_path / "run", "run")
    outcome = run_on_fleet(experiment, store=store, stop=stop, sinks=[stop])
    assert isinstance(outcome.error, Interrupted) and outcome.summary.status == "interrupted"
    resumed = api.resume(tmp_path / "run")
    assert (resumed.summary.rounds, resumed.summary.status) == (6, "done")
    assert resumed.summary.model_sha256 == want
    assert [record.round for record in resumed.history] == [1, 2, 3, 4, 5, 6]


def test_a_server_lists_and_logs_it_as_open(linear: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    queue = RunQueue(tmp_path / "state", _never)
    try:
        queue.submit(until_enough(linear, 1).to_dict())
        assert [(row["rounds_done"], row["rounds"]) for row in queue.rows()] == [(0, 0)]
    finally:
        queue.close()
    with caplog.at_level(logging.INFO):
        run_on_fleet(until_enough(linear, 1), sinks=[LogSink()])
    assert any("an open number of rounds of 6 of 12 clients" in message for message in caplog.messages)


def _never(store: DiskRunStore, emit: Any, stop: threading.Event) -> Any:
    raise AssertionError("no run is started here")

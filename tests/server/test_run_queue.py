"""Runs in a row: submitted, watched, stopped, and found again by the next server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, NotFound, UsageError
from fedloom.core.events import Event, RoundFinished, RoundStarted, RunFinished
from fedloom.core.history import RoundRecord, RunSummary, Timing, Traffic
from fedloom.server.run_queue import RunQueue
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.server.store.run_store import new_run_id
from fedloom.testing.fleet import wait_until

Make = Callable[..., Experiment]


def summary(store: DiskRunStore, status: str = "done", error: str | None = None) -> RunSummary:
    return RunSummary(
        run_id=store.run_id, run_dir=None, name="x", status=status, rounds=1, metrics={}, bytes_up=1, bytes_down=1,
        params_up=1, params_down=1, wire_bytes_up=1, wire_bytes_down=1, seconds=1, model_sha256=None, num_parameters=1,
        seed=1, group_size=1, runtime="fleet", workers=1, failures=0, error=error,
    )  # fmt: skip


class Worker:
    """Does runs when it is told to, in place of a whole session."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.go = threading.Event()
        self.in_report = threading.Event()
        self.leave_report = threading.Event()
        self.leave_report.set()
        self.raises: BaseException | None = None

    def __call__(self, store: DiskRunStore, emit: Callable[[Event], None], stop: threading.Event) -> RunSummary:
        def tell(event: Event) -> None:
            store.append_event(event)
            emit(event)

        self.began.append(store.run_id)
        if self.raises is not None:
            raise self.raises
        tell(RoundStarted(run_id=store.run_id, round=1, cohort=2))
        wait_until(lambda: self.go.is_set() or stop.is_set())
        status = "interrupted" if stop.is_set() else "done"
        if status == "done":
            record = RoundRecord(round=1, cohort=[], num_examples=1, metrics={}, traffic=Traffic(), timing=Timing())
            tell(RoundFinished(run_id=store.run_id, record=record))
        ended = summary(store, status)
        tell(RunFinished(run_id=store.run_id, summary=ended))
        self.in_report.set()
        assert self.leave_report.wait(60)
        return ended


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def runs(tmp_path: Path, worker: Worker) -> Iterator[RunQueue]:
    queue = RunQueue(tmp_path / "state", worker)
    queue.start()
    yield queue
    worker.leave_report.set()
    queue.close()


def statuses(runs: RunQueue) -> list[str]:
    return [row["status"] for row in runs.rows()]


def test_runs_are_done_one_after_another_in_the_order_they_came(runs: RunQueue, worker: Worker, linear: Make) -> None:
    ids = [runs.submit(linear(name=name).to_dict()) for name in ("one", "two", "three")]
    wait_until(lambda: statuses(runs) == ["running", "queued", "queued"])
    worker.go.set()
    wait_until(lambda: statuses(runs) == ["done"] * 3)
    assert worker.began == ids
    assert [(row["name"], row["rounds"], row["rounds_done"]) for row in runs.rows()] == [
        (name, 4, 1) for name in ("one", "two", "three")
    ]


def test_a_wrong_experiment_is_refused_and_leaves_nothing(runs: RunQueue, tmp_path: Path, linear: Make) -> None:
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        runs.submit({**linear().to_dict(), "ruonds": 3})
    assert runs.rows() == [] and not list((tmp_path / "state").glob("runs/*"))


@pytest.mark.parametrize("when", ["queued", "running", "done"])
def test_a_watcher_sees_every_event_once_whenever_it_comes(
    runs: RunQueue, worker: Worker, linear: Make, when: str
) -> None:
    first = runs.submit(linear().to_dict())
    watched = runs.submit(linear().to_dict()) if when == "queued" else first
    wait_until(lambda: worker.began)
    if when == "done":
        worker.go.set()
        wait_until(lambda: statuses(runs) == ["done"])
    with runs.watch(watched) as events:
        worker.go.set()
        assert [event["event"] for event in events] == ["RoundStarted", "RoundFinished", "RunFinished"]


def test_a_watcher_that_comes_while_the_report_is_written_is_not_left_waiting(
    runs: RunQueue, worker: Worker, linear: Make
) -> None:
    """The run has said its last word, but is not yet marked as done."""
    worker.leave_report.clear()
    worker.go.set()
    run_id = runs.submit(linear().to_dict())
    assert worker.in_report.wait(60)
    with runs.watch(run_id) as events:
        assert [event["event"] for event in events][-1] == "RunFinished"


def test_a_watcher_may_leave(runs: RunQueue, linear: Make) -> None:
    run_id = runs.submit(linear().to_dict())
    with runs.watch(run_id) as events:
        assert next(iter(events))["event"] == "RoundStarted"
        events.close()
        assert list(events) == []
    assert runs._watchers[run_id] == []


def test_a_run_that_breaks_outside_its_loop_fails_and_its_watchers_are_notified(
    runs: RunQueue, worker: Worker, linear: Make
) -> None:
    blocking = runs.submit(linear().to_dict())
    wait_until(lambda: worker.began == [blocking])
    run_id = runs.submit(linear().to_dict())
    with runs.watch(run_id) as events:
        worker.raises = LookupError("its workload is gone")
        worker.go.set()
        assert list(events) == []
    wait_until(lambda: statuses(runs) == ["done", "failed"])
    assert runs.rows()[1]["error"] == "LookupError: its workload is gone"


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("odd")])
def test_whatever_a_runs_plug_ins_raise_the_next_run_is_done(
    runs: RunQueue, worker: Worker, linear: Make, raised: BaseException
) -> None:
    worker.go.set()
    worker.raises = raised
    runs.submit(linear().to_dict())
    wait_until(lambda: statuses(runs) == ["failed"])
    worker.raises = None
    runs.submit(linear().to_dict())
    wait_until(lambda: statuses(runs) == ["failed", "done"])


class TestStopping:
    def test_a_queued_run_never_begins(self, runs: RunQueue, worker: Worker, linear: Make) -> None:
        first, second = (runs.submit(linear().to_dict()) for _ in range(2))
        wait_until(lambda: worker.began)
        with runs.watch(second) as events:
            assert runs.stop(second) == "queued"
            assert list(events) == []
        worker.go.set()
        wait_until(lambda: statuses(runs) == ["done", "interrupted"])
        assert worker.began == [first]

    def test_a_running_run_ends_and_the_next_begins(self, runs: RunQueue, worker: Worker, linear: Make) -> None:
        first, second = (runs.submit(linear().to_dict()) for _ in range(2))
        wait_until(lambda: worker.began == [first])
        assert runs.stop(first) == "running"
        wait_until(lambda: worker.began == [first, second])
        assert statuses(runs) == ["interrupted", "running"]

    def test_a_finished_run_stays_finished(self, runs: RunQueue, worker: Worker, linear: Make) -> None:
        worker.go.set()
        run_id = runs.submit(linear().to_dict())
        wait_until(lambda: statuses(runs) == ["done"])
        assert runs.stop(run_id) == "done"
        assert statuses(runs) == ["done"]

    def test_an_unknown_run_is_not_found(self, runs: RunQueue) -> None:
        for call in (runs.stop, lambda run_id: runs.watch(run_id).__enter__()):
            with pytest.raises(NotFound, match="no run 'nothing'"):
                call("nothing")


class TestTheNextServer:
    def test_closing_keeps_the_running_run_queued(self, tmp_path: Path, worker: Worker, linear: Make) -> None:
        first = RunQueue(tmp_path / "state", worker)
        first.start()
        ids = [first.submit(linear().to_dict()) for _ in range(2)]
        wait_until(lambda: worker.began == ids[:1])
        first.close()
        worker.go.set()
        second = RunQueue(tmp_path / "state", worker)
        assert statuses(second) == ["queued", "queued"]
        second.start()
        wait_until(lambda: statuses(second) == ["done", "done"])
        assert worker.began == [ids[0], *ids]
        second.close()

    def test_a_killed_servers_running_run_is_queued_again(self, tmp_path: Path, worker: Worker, linear: Make) -> None:
        worker.go.set()
        first = RunQueue(tmp_path / "state", worker)
        run_id = first.submit(linear().to_dict())
        first._table.set(run_id, status="running")
        first.close()
        second = RunQueue(tmp_path / "state", worker)
        second.start()
        wait_until(lambda: statuses(second) == ["done"])
        second.close()

    def test_two_servers_on_one_folder_are_refused(self, runs: RunQueue, tmp_path: Path, worker: Worker) -> None:
        with pytest.raises(UsageError, match="another server is using the state folder"):
            RunQueue(tmp_path / "state", worker)

    def test_a_queue_that_never_started_closes(self, tmp_path: Path, worker: Worker, linear: Make) -> None:
        queue = RunQueue(tmp_path / "state", worker)
        queue.submit(linear().to_dict())
        queue.close()
        assert worker.began == []


@pytest.mark.parametrize(("name", "word"), [("Fashion MNIST!", "fashion-mnist"), ("", "run"), ("x" * 99, "x" * 40)])
def test_run_ids_are_names_of_folders(name: str, word: str) -> None:
    one, two = new_run_id(name), new_run_id(name)
    assert one != two and f"-{word}-" in one


def test_runs_that_draw_the_same_letters_get_folders_of_their_own(
    runs: RunQueue, linear: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter(["same", "same", "same", "other"])
    monkeypatch.setattr("fedloom.server.run_queue.new_run_id", lambda name: next(drawn))
    values = linear(rounds=1).to_dict()
    assert [runs.submit(values), runs.submit(values)] == ["same", "other"]
    assert [row["run_id"] for row in runs.rows()] == ["same", "other"]

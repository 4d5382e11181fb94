"""The loop: rounds of exchanges, evaluations, checkpoints, events, and every way a run can end."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_paths import LINEAR, SUPPORT

from fedloom import api
from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.core.errors import ClientFailed, ConfigError, Interrupted, RunFailed
from fedloom.core.events import (
    ClientLost,
    ClientsDone,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
)
from fedloom.core.records import Job, Record, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.testing.fleet import EventLog, run_on_fleet, wait_until

Make = Callable[..., Experiment]
ODD, COUNTING, SELECTION = (str(SUPPORT / f"{n}.py") for n in ("odd_strategy", "counting", "learning_selection"))


def odd(linear: Make, **settings: Any) -> Experiment:
    return linear(strategy={"name": ODD, **settings})


class TestEvaluation:
    @pytest.mark.parametrize(("every", "want"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (0, []), (9, [5])])
    def test_it_happens_every_so_often_and_after_the_last_round(
        self, linear: Make, every: int, want: list[int]
    ) -> None:
        result = api.run(linear(rounds=5, evaluation={"every": every}), keep=False)
        assert [record.round for record in result.history if record.evaluation] == want
        # What a run without evaluations tells are the last round's training metrics.
        last = result.history[-1]
        assert result.metrics == (last.evaluation if want else last.metrics)

    def test_its_mean_is_over_all_parts(self, linear: Make) -> None:
        experiment = linear(rounds=1, evaluation={"parts": 3})
        result = api.run(experiment, keep=False)
        workload = registry.part("workloads", str(LINEAR), "workload").build_workload(experiment.workload, experiment)
        model = Record({"model": result.arrays})
        parts = [workload.evaluate({"model": model}, workload.held_out(part, 3))["loss"] for part in range(3)]
        assert result.metrics["loss"] == sum(p.sum for p in parts) / sum(p.weight for p in parts)

    def test_it_never_changes_the_model(self, linear: Make) -> None:
        shas = {
            api.run(linear(evaluation=settings), keep=False).summary.model_sha256
            for settings in ({"every": 0}, {"every": 1, "parts": 1}, {"every": 3, "parts": 7})
        }
        assert len(shas) == 1


class TestStrategies:
    def test_two_exchanges_in_a_round_are_two_averages(self, linear: Make) -> None:
        experiment = linear(rounds=1, clients=3, cohort=3, strategy={"name": ODD, "exchanges": 2})
        result = api.run(experiment, keep=False)
        workload = registry.part("workloads", str(LINEAR), "workload").build_workload(experiment.workload, experiment)
        model = {k: np.asarray(v) for k, v in workload.init(generator(1, "init", 0, 0, 0)).groups["model"].items()}
        cohort = result.history[0].cohort
        for exchange in (0, 1):
            sums = {name: np.zeros(array.shape, np.float32) for name, array in model.items()}
            weight = 0.0
            for client in cohort:
                rng = generator(1, "train", 1, exchange, client)
                update = workload.train(
                    Job(round=1, client=client), {"model": Record({"model": model})}, workload.shard(client), None, rng
                )
                for name in sums:
                    sums[name] = sums[name] + update.groups["model"][name] * np.float32(update.num_examples)
                weight += update.num_examples
            model = {name: np.asarray(total / np.float32(weight)) for name, total in sums.items()}
        assert result.summary.model_sha256 == arrays_sha256(model)
        assert result.history[0].info == {"trail": [3, 3]}
        assert result.history[0].traffic.params_up == 2 * 3 * 6, "both exchanges count"

    def test_several_exchanges_have_the_same_bits_in_processes(self, linear: Make) -> None:
        inline = api.run(odd(linear, exchanges=3), keep=False)
        experiment = linear(strategy={"name": ODD, "exchanges": 3}, runtime={"name": "process", "workers": 2})
        assert api.run(experiment, keep=False).summary.model_sha256 == inline.summary.model_sha256

    def test_a_strategy_may_want_no_further_round(self, linear: Make) -> None:
        result = api.run(odd(linear, enough=2), keep=False)
        assert (result.summary.status, result.summary.rounds) == ("done", 2)
        assert result.summary.model_sha256 == api.run(linear(rounds=2), keep=False).summary.model_sha256

    def test_a_strategy_that_fails_is_named_with_round_and_reason(self, linear: Make, tmp_path: Path) -> None:
        with pytest.raises(RunFailed) as caught:
            api.run(odd(linear, finish_raises=3), out=tmp_path / "run")
        text = str(caught.value)
        assert text.startswith(f"{ODD}, line ") and "finish: ZeroDivisionError: nothing to divide by" in text
        assert "In round 3; the run can be resumed from round 2" in text
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
        assert summary["status"] == "failed" and summary["rounds"] == 2 and "nothing to divide by" in summary["error"]

    def test_a_plan_that_fails_is_reported_too(self, linear: Make) -> None:
        with pytest.raises(RunFailed, match=r"plan: LookupError: no plan for this round\. In round 2; .* from round 1"):
            api.run(odd(linear, plan_raises=2), keep=False)


class TestSelections:
    def test_what_clients_report_decides_who_is_selected_next(self, linear: Make, tmp_path: Path) -> None:
        experiment = linear(rounds=5, clients=6, cohort=2, selection=SELECTION)
        result = api.run(experiment, out=tmp_path / "run")
        cohorts = [record.cohort for record in result.history]
        assert cohorts[:3] == [[0, 1], [2, 3], [4, 5]], "everybody once"
        checkpoint = DiskRunStore.open(tmp_path / "run").latest_checkpoint()
        assert checkpoint is not None and checkpoint.selection.info["rounds"] == {"json": 5}
        heard = checkpoint.selection.info["losses"]["json"]
        assert set(heard) == set(map(str, range(6)))
        # Round 5 asked those with the lowest losses heard of before it: nobody it left out had a lower one.
        left_out = [heard[str(client)] for client in range(6) if client not in cohorts[4] and client not in cohorts[3]]
        assert len(set(cohorts[3]) | set(cohorts[4])) < 6 and min(left_out) > 0

    def test_its_memory_is_resumed(self, linear: Make, tmp_path: Path) -> None:
        whole = api.run(linear(rounds=6, clients=6, cohort=2, selection=SELECTION), keep=False)
        stopped = linear(rounds=6, clients=6, cohort=2, selection=SELECTION, strategy={"name": ODD, "finish_raises": 4})
        with pytest.raises(RunFailed):
            api.run(stopped, out=tmp_path / "run")
        _repair(tmp_path / "run")
        resumed = api.resume(tmp_path / "run")
        assert [record.cohort for record in resumed.history] == [record.cohort for record in whole.history]
        assert resumed.summary.model_sha256 == whole.summary.model_sha256


def _repair(run: Path) -> None:
    """Take the fault out of the experiment."""
    path = run / "experiment.toml"
    path.write_text(
        re.sub("finish_raises = .", "finish_raises = 0", path.read_text(encoding="utf-8")), encoding="utf-8"
    )


class TestStates:
    """Clients that keep something between their rounds."""

    def experiment(self, linear: Make, **values: Any) -> Experiment:
        workload = {"name": COUNTING, **values.pop("workload", {})}
        base = {"rounds": 6, "clients": 5, "cohort": 3, "strategy": {"name": ODD}, "runtime": {"name": "inline"}}
        return Experiment.parse({**base, **values, "workload": workload})

    @pytest.mark.parametrize("size", [4, 50_000], ids=["inline", "shared"])
    def test_they_get_back_what_they_kept_in_every_runtime(self, linear: Make, size: int) -> None:
        workload = {"size": size}
        here = api.run(self.experiment(linear, workload=workload), keep=False)
        seen: dict[int, int] = {}
        for record in here.history:
            want = sum(seen.get(client, 0) for client in record.cohort) / len(record.cohort)
            assert record.metrics["seen"] == want
            for client in record.cohort:
                seen[client] = seen.get(client, 0) + 1
        there = self.experiment(linear, workload=workload, runtime={"name": "process", "workers": 2})
        assert api.run(there, keep=False).summary.model_sha256 == here.summary.model_sha256
        remote = run_on_fleet(self.experiment(linear, workload=workload), shared_memory=False)
        assert remote.error is None and remote.summary.model_sha256 == here.summary.model_sha256

    @pytest.mark.parametrize("every", [1, 3])
    def test_a_resumed_run_has_the_same_bits(self, linear: Make, tmp_path: Path, every: int) -> None:
        want = api.run(self.experiment(linear), keep=False).summary.model_sha256
        stopped = self.experiment(
            linear, strategy={"name": ODD, "exchanges": 1, "finish_raises": 4}, checkpoint={"every": every}
        )
        with pytest.raises(RunFailed):
            api.run(stopped, out=tmp_path / "run")
        _repair(tmp_path / "run")
        assert api.resume(tmp_path / "run").summary.model_sha256 == want

    @pytest.mark.parametrize("keep", [2, 3])
    def test_even_from_an_older_checkpoint_when_newer_ones_are_damaged(
        self, linear: Make, tmp_path: Path, keep: int
    ) -> None:
        want = api.run(self.experiment(linear), keep=False).summary.model_sha256
        api.run(self.experiment(linear, checkpoint={"keep": keep}), out=tmp_path / "run")
        damaged = sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]
        assert len(damaged) == keep - 1
        for path in damaged:
            path.write_bytes(b"dust")
        resumed = api.resume(tmp_path / "run")
        assert resumed.summary.model_sha256 == want
        assert [record.round for record in resumed.history] == [1, 2, 3, 4, 5, 6]

    def test_a_failing_client_keeps_what_it_had(self, linear: Make) -> None:
        outcome = run_on_fleet(
            self.experiment(linear, workload={"fail_clients": [0]}, round={"quorum_fraction": 0.3}), workers=1
        )
        assert outcome.error is None
        assert outcome.summary.failures == sum(0 in record.cohort for record in outcome.history) > 0


class TestCheckpoints:
    def test_fewer_checkpoints_cost_rounds_on_resume_but_no_bits(self, linear: Make, tmp_path: Path) -> None:
        want = api.run(linear(rounds=7), keep=False)
        stopped = linear(rounds=7, checkpoint={"every": 3}, strategy={"name": ODD, "finish_raises": 6})
        with pytest.raises(RunFailed):
            api.run(stopped, out=tmp_path / "run")
        checkpoint = DiskRunStore.open(tmp_path / "run").latest_checkpoint()
        assert checkpoint is not None and checkpoint.round == 3
        _repair(tmp_path / "run")
        listener = EventLog()
        result = api.resume(tmp_path / "run", sinks=[listener])
        assert listener.of(RunStarted)[0].first_round == 4
        assert [event.round for event in listener.of(RoundStarted)] == [4, 5, 6, 7]
        assert [record.round for record in result.history] == [1, 2, 3, 4, 5, 6, 7]
        assert result.summary.model_sha256 == want.summary.model_sha256
        assert result.summary.bytes_up == want.summary.bytes_up

    def test_a_finished_run_resumed_is_finished(self, linear: Make, tmp_path: Path) -> None:
        first = api.run(linear(), out=tmp_path / "run")
        again = api.resume(tmp_path / "run")
        assert again.summary.model_sha256 == first.summary.model_sha256 and again.history == first.history

    def test_settings_that_a_resume_would_drop_are_refused(self, linear: Make, tmp_path: Path) -> None:
        api.run(linear(), out=tmp_path / "run")
        for override in ("clients=9", "strategy.name=fedprox", "workload.features=9"):
            key = override.partition("=")[0]
            with pytest.raises(ConfigError, match=rf"^{key}: .* only settings of .*runtime.* --set '{override}'$"):
                api.resume(tmp_path / "run", overrides=["runtime.workers=2", override])
        assert api.resume(tmp_path / "run", overrides=[" runtime.workers=2"]).summary.workers == 1  # inline has one


class TestEvents:
    def test_they_come_in_order_and_are_written_down(self, linear: Make, tmp_path: Path) -> None:
        listener = EventLog()
        experiment = linear(rounds=2, clients=4, cohort=4, round={"group_size": 2})
        api.run(experiment, out=tmp_path / "run", sinks=[listener])
        kinds = [type(event).__name__ for event in listener.events if getattr(event, "run_id", None)]
        one_round = ["RoundStarted", "ClientsDone", "ClientsDone", "RoundFinished"]
        assert kinds == ["RunStarted", *one_round, *one_round, "RunFinished"]
        assert [event.done for event in listener.of(ClientsDone)] == [2, 4, 2, 4]
        started, finished = listener.of(RunStarted)[0], listener.of(RunFinished)[0]
        assert (started.first_round, started.rounds, started.cohort, started.group_size) == (1, 2, 4, 2)
        assert (started.runtime, started.workers, started.where) == ("inline", 1, "this thread")
        assert started.num_parameters == 6 and started.data["kind"] == "synthetic"
        assert finished.summary.status == "done"
        written = DiskRunStore.open(tmp_path / "run").events()
        assert [event["event"] for event in written] == [kind for kind in kinds if kind != "ClientsDone"]

    def test_a_round_that_fails_reports_every_missing_client(self, linear: Make) -> None:
        listener = EventLog()
        experiment = linear(workload={"fail_clients": list(range(12))}, round={"group_size": 6})
        outcome = run_on_fleet(experiment, sinks=[listener])
        assert isinstance(outcome.error, ClientFailed)
        lost = listener.of(ClientLost)
        assert len(lost) == 6 and all("broken sensor" in event.failure.message for event in lost)
        assert not listener.of(RoundFinished)


class TestStopping:
    def test_a_stopped_run_is_interrupted_and_resumes_to_the_same_bits(self, linear: Make, tmp_path: Path) -> None:
        experiment = linear(rounds=8, workload={"sleep_s": 0.01})
        stop, listener = threading.Event(), EventLog()
        store = DiskRunStore.create(tmp_path / "run", "r")

        class StopAfterTwo:
            def write(self, event: Any) -> None:
                if isinstance(event, RoundFinished) and event.record.round == 2:
                    stop.set()

            def close(self) -> None:
                pass

        outcome = run_on_fleet(experiment, store=store, stop=stop, sinks=[StopAfterTwo(), listener])
        assert isinstance(outcome.error, Interrupted) and "fedloom resume" in str(outcome.error)
        assert (outcome.summary.status, outcome.summary.rounds) == ("interrupted", 2)
        assert listener.of(RunFinished)[0].summary == outcome.summary
        assert json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))["status"] == "interrupted"
        resumed = api.resume(tmp_path / "run")
        assert resumed.summary.model_sha256 == api.run(linear(rounds=8), keep=False).summary.model_sha256

    def test_it_stops_within_a_second_though_clients_are_slow(self, linear: Make) -> None:
        stop, listener, outcome = threading.Event(), EventLog(), []
        experiment = linear(workload={"sleep_s": 0.3}, round={"group_size": 1})
        run = threading.Thread(target=lambda: outcome.append(run_on_fleet(experiment, stop=stop, sinks=[listener])))
        run.start()
        listener.wait_for(lambda events: any(isinstance(event, RoundStarted) for event in events))
        stop.set()
        listener.wait_for(lambda events: any(isinstance(event, RunFinished) for event in events), timeout_s=2.0)
        run.join()
        assert outcome[0].summary.status == "interrupted"

    def test_control_c_is_an_interrupt_with_everything_saved(self, linear: Make, tmp_path: Path) -> None:
        class ControlC:
            def write(self, event: Any) -> None:
                if isinstance(event, RoundFinished) and event.record.round == 2:
                    raise KeyboardInterrupt

            def close(self) -> None:
                pass

        with pytest.raises(Interrupted, match="stopped after round 2"):
            api.run(linear(), out=tmp_path / "run", sinks=[ControlC()])
        summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
        assert (summary["status"], summary["rounds"], summary["model_sha256"]) == ("interrupted", 2, None)
        want = api.run(linear(), keep=False).summary.model_sha256
        assert api.resume(tmp_path / "run").summary.model_sha256 == want

    def test_no_threads_stay_behind(self, linear: Make) -> None:
        before = set(threading.enumerate())
        api.run(linear(rounds=2), keep=False)
        wait_until(
            lambda: not [t for t in set(threading.enumerate()) - before if t.is_alive()], what="the end of all threads"
        )

"""Cohorts of any size, what a selection may not return, and rosters that grow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_paths import SUPPORT

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import PluginInvalid, QuorumNotReached, RunFailed
from fedloom.core.plugins import build_workload
from fedloom.core.protocols import Roster
from fedloom.core.records import Job, Record, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.server.rounds.choices import replay_run
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.server.store.run_store import RunStore
from fedloom.testing.fleet import TOKEN, fleet_access, quick_server, run_on_fleet, running_agents

Make = Callable[..., Experiment]
SCRIPTED = str(SUPPORT / "scripted_selection.py")


def scripted(linear: Make, *cohorts: tuple[int, ...], **values: Any) -> Experiment:
    """One round for each cohort, all of twelve clients; `selection` adds to the selection's settings."""
    selection = {"name": SCRIPTED, "cohorts": cohorts, **values.pop("selection", {})}
    return linear(rounds=len(cohorts), selection=selection, **values)


class TestEmpty:
    def test_a_round_without_clients_leaves_the_model_and_is_recorded_and_evaluated(
        self, linear: Make, tmp_path: Path
    ) -> None:
        result = api.run(scripted(linear, (0, 1), (), (2, 3)), out=tmp_path / "run")
        first, empty, third = result.history
        assert (empty.round, empty.cohort, empty.metrics, empty.num_examples) == (2, [], {}, 0)
        assert empty.evaluation == first.evaluation and empty.evaluation != third.evaluation
        assert (empty.local_trainings, empty.failures, empty.traffic.params_up) == (0, [], 0)
        assert all(each.agrees for each in replay_run(tmp_path / "run"))
        assert (tmp_path / "run" / "report.html").exists()

    def test_a_run_without_clients_ends_with_the_initial_model(self, linear: Make) -> None:
        nobody = api.run(scripted(linear, (), ()), keep=False)
        assert nobody.summary.rounds == 2 and nobody.arrays["b"] == 0, "what `init` of the workload makes"

    def test_after_candidates_have_trained_nobody_may_be_chosen(self, linear: Make) -> None:
        experiment = scripted(linear, (0, 1), (), selection={"candidates": (0, 1, 2)})
        first, empty = api.run(experiment, keep=False).history
        assert (first.cohort, empty.cohort, empty.candidates) == ([0, 1], [], [0, 1, 2])
        assert empty.local_trainings == 3 and empty.evaluation == first.evaluation

    def test_the_bits_are_the_same_in_processes_and_after_a_resume(self, linear: Make, tmp_path: Path) -> None:
        cohorts = ((0, 1), (), (2, 3), ())
        want = api.run(scripted(linear, *cohorts), keep=False).summary.model_sha256
        processes = scripted(linear, *cohorts, runtime={"name": "process", "workers": 2})
        assert api.run(processes, keep=False).summary.model_sha256 == want
        api.run(scripted(linear, *cohorts), out=tmp_path / "run")
        newest = max((tmp_path / "run" / "checkpoints").iterdir())
        newest.write_bytes(b"dust")
        assert api.resume(tmp_path / "run").summary.model_sha256 == want


class TestSizes:
    """The experiment's cohort is six."""

    @pytest.mark.parametrize("cohort", [(3,), (0, 1, 2, 3, 4, 5, 6, 7)])
    def test_fewer_and_more_are_all_sampled(self, linear: Make, cohort: tuple[int, ...]) -> None:
        outcome = run_on_fleet(scripted(linear, cohort))
        assert outcome.error is None
        (record,) = outcome.history
        assert record.cohort == list(cohort) and sorted(map(int, record.client_seconds)) == list(cohort)
        assert record.num_examples == sum(20 + client % 7 for client in cohort) and not record.unneeded

    def test_the_quorum_is_a_share_of_those_sampled(self, linear: Make) -> None:
        half = {"quorum_fraction": 0.5, "group_size": 1}
        two = scripted(linear, (0, 1), round=half, workload={"fail_clients": (1,)})
        assert run_on_fleet(two).error is None, "one of two is half"
        eight = scripted(linear, tuple(range(8)), round=half, workload={"fail_clients": (0, 1, 2, 3, 4)})
        error = run_on_fleet(eight).error
        assert isinstance(error, QuorumNotReached) and "needs updates of 4 of 8 clients, but 5 are missing" in str(
            error
        )


class TestFaults:
    @pytest.mark.parametrize(
        ("cohort", "settings", "text"),
        [
            ((0, 3, 3), {}, "3 more than once in (0, 3, 3)…"),
            ((0, 12), {}, "12"),
            ((-1,), {}, "-1"),
            ((), {"odd": "text"}, "'zero', a str"),
        ],
    )
    def test_what_is_no_cohort_is_refused(
        self, linear: Make, cohort: tuple[int, ...], settings: dict[str, str], text: str
    ) -> None:
        with pytest.raises(PluginInvalid if settings else RunFailed) as caught:
            api.run(scripted(linear, (0,), cohort, selection=settings), keep=False)
        found = f"choose: found {text}, expected a tuple of distinct clients (int) from 0 to 11"
        assert str(caught.value).startswith(f"{SCRIPTED}, line ") and found in str(caught.value)

    def test_candidates_are_checked_alike(self, linear: Make) -> None:
        with pytest.raises(PluginInvalid, match=r"probe: found 1 more than once in \(1, 1\)"):
            api.run(scripted(linear, (0,), selection={"candidates": (1, 1)}), keep=False)


class TestRosters:
    def hold(
        self, experiment: Experiment, *populations: int, store: RunStore | None = None
    ) -> tuple[Outcome, RunStore]:
        """A run whose roster has so many clients each time it is looked at: before round 1, and in each round."""
        left = list(populations)

        def roster(declared: Roster) -> Roster:
            assert declared.population == 12 and len(declared.sizes) == 12
            number = left.pop(0) if len(left) > 1 else left[0]
            return Roster(number, declared.sizes[:number])

        store = store or MemoryRunStore("run")
        store.begin(experiment)
        with quick_server() as server, running_agents(f"127.0.0.1:{server.listen(token=TOKEN)}", ["one"]):
            fleet = fleet_access(server.coordinator, patience_s=10, roster=roster)
            return run_session(experiment, store, fleet, (), stop=threading.Event()), store

    def test_the_selection_grows_with_it(self, linear: Make) -> None:
        experiment = scripted(linear, (0, 3), (0,), (3, 5), (5,), cohort=2, clients=12)
        outcome, store = self.hold(experiment, 4, 4, 4, 6)
        assert outcome.error is None
        assert [record.info["populations"] for record in outcome.history] == [[4], [4], [4, 6], [4, 6]]
        grown = {"roster": {"population": 6, "joined": 2}}
        assert [record.sections for record in outcome.history] == [{}, {}, grown, {}]
        checkpoint = store.latest_checkpoint()
        assert checkpoint is not None and checkpoint.population == 6

    @pytest.mark.parametrize("name", ["update_norm", "oort", "uniform"])
    def test_the_choices_of_one_that_grew_can_be_made_again(self, linear: Make, tmp_path: Path, name: str) -> None:
        store = DiskRunStore.create(tmp_path / "run", "run")
        outcome, _ = self.hold(linear(cohort=3, selection=name), 4, 4, 4, 6, store=store)
        assert outcome.error is None
        replayed = replay_run(tmp_path / "run")
        assert [choice.choice.population for choice in replayed] == [4, 4, 6, 6]
        assert all(choice.agrees for choice in replayed)

    def test_clients_of_the_future_cannot_be_chosen(self, linear: Make) -> None:
        outcome, _ = self.hold(scripted(linear, (4,), (4,)), 4, 4, 5)
        assert isinstance(outcome.error, PluginInvalid)
        assert "found 4, expected a tuple of distinct clients (int) from 0 to 3" in str(outcome.error)

    def test_one_that_shrinks_is_refused(self, linear: Make) -> None:
        outcome, _ = self.hold(scripted(linear, (0,), (0,)), 4, 4, 3)
        assert isinstance(outcome.error, RunFailed)
        assert "round 2: the roster has 3 clients, before it had 4" in str(outcome.error)

    def test_names_and_who_is_offline(self) -> None:
        machines = Roster(2, names=("lab-1", "lab-2"), offline={1})
        assert [machines.name(client) for client in (0, 1)] == ["lab-1", "lab-2"]
        assert machines.online(0) and not machines.online(1)
        assert Roster(2).name(1) == "client-1" and Roster(2).online(1)


def test_jobs_weights_reach_the_aggregate(linear: Make) -> None:
    weights = (1.0, 0.25, 0.0, 3.0)
    strategy = {"name": str(SUPPORT / "weighted_strategy.py"), "weights": weights}
    experiment = linear(rounds=1, clients=4, cohort=4, strategy=strategy, round={"group_size": 2})
    workload = build_workload(experiment.workload, experiment)
    model = workload.init(generator(1, "init", 0, 0, 0))
    groups: dict[int, dict[str, Any]] = {}
    weight, cohort = 0.0, api.run(experiment, keep=False).history[0].cohort
    for place, client in enumerate(cohort):
        shard, rng = workload.shard(client), generator(1, "train", 1, 0, client)
        update = workload.train(Job(round=1, client=client), {"model": Record(model.groups)}, shard, None, rng)
        factor = update.num_examples * weights[client]
        sums = groups.setdefault(place // 2, {})
        for name, array in update.groups["model"].items():
            sums[name] = sums.get(name, np.float32(0)) + array * np.float32(factor)
        weight += factor
    want = {name: np.asarray((groups[0][name] + groups[1][name]) / np.float32(weight)) for name in ("w", "b")}
    assert api.run(experiment, keep=False).summary.model_sha256 == arrays_sha256(want)
    assert run_on_fleet(experiment).summary.model_sha256 == arrays_sha256(want), "over gRPC, too"

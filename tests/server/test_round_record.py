"""Parts of a round's time do not overlap; metrics say if a run is over."""

from __future__ import annotations

from pathlib import Path

from fedloom import api
from fedloom.core.events import RoundFinished, RunFinished
from fedloom.core.run_files import read_rounds
from fedloom.server.metrics import PrometheusSink


def test_the_parts_of_a_round_are_no_longer_than_the_round(tmp_path: Path) -> None:
    """Evaluating takes a good part of each round, so that counting its waiting twice would show."""
    experiment = api.load(
        "digits-fedavg", ["rounds=2", "cohort=1", "clients=2", "runtime.name=inline", "workload.training.epochs=1"]
    )
    api.run(experiment, out=tmp_path / "run")
    for record in read_rounds(tmp_path / "run"):
        timing = record.timing
        parts = (timing.waiting_s, timing.aggregation_s, timing.evaluation_s, timing.checkpoint_s)
        assert min(parts) >= 0.0 < timing.evaluation_s
        assert sum(parts) <= timing.total_s


def test_a_run_that_has_ended_has_no_cohort(tmp_path: Path) -> None:
    sink, seen = PrometheusSink(), []

    class Watched:
        def write(self, event: object) -> None:
            if isinstance(event, RoundFinished):
                seen.append(sink.registry.get_sample_value("fedloom_cohort_clients", {"run": event.run_id}))
            if isinstance(event, RunFinished):
                seen.append(sink.registry.get_sample_value("fedloom_cohort_clients", {"run": event.run_id}))

        def close(self) -> None:
            pass

    experiment = api.load("digits-fedavg", ["rounds=1", "cohort=2", "clients=4", "runtime.name=inline"])
    api.run(experiment, keep=False, sinks=[sink, Watched()])
    assert seen == [2.0, 0.0]

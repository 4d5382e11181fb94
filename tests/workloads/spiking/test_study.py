"""What spiking networks contribute to studies."""

from pathlib import Path

import pytest

from fedloom.core.history import RoundRecord, Timing, Traffic
from fedloom.reporting.run_folder import RunFolder
from fedloom.workloads.spiking_classification.study import build_study, spiking


def run_of(evaluations: list[dict[str, float] | None]) -> RunFolder:
    rounds = tuple(
        RoundRecord(
            round=number, cohort=[0], num_examples=1, metrics={}, evaluation=evaluation, traffic=Traffic(),
            timing=Timing(total_s=0.1),
        )
        for number, evaluation in enumerate(evaluations, start=1)
    )  # fmt: skip
    return RunFolder(path=Path(), experiment={}, rounds=rounds, run_id="run")


def test_activity_is_the_mean_over_evaluated_rounds() -> None:
    found = spiking(run_of([{"spikes": 100.0, "dead": 0.0, "rate/output": 0.2}, None, {"spikes": 300.0, "dead": 0.5}]))
    assert found.numbers == {"spikes": 200.0, "output_rate": pytest.approx(0.2), "dead_rounds": 1.0}
    assert found.series["spikes"][2] == 300.0
    assert spiking(run_of([{"loss": 1.0}])).numbers == {}


def test_every_number_has_a_column() -> None:
    run = run_of([{"spikes": 1.0, "dead": 0.0, "rate/output": 0.2, "energy_pj": 3.0}])
    assert {column.number for column in build_study().columns} == set(spiking(run).numbers)

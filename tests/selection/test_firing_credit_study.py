"""What firing credits contribute to studies."""

import math
from pathlib import Path

import pytest

from fedloom.core.history import RoundRecord, Timing, Traffic
from fedloom.core.protocols import WorkloadInfo
from fedloom.reporting.run_folder import RunFolder
from fedloom.selection.firing_credit.study import novelty


def run_of(credits: list[dict[str, float]], label_counts: tuple[tuple[int, ...], ...]) -> RunFolder:
    """A run that aggregated client 0 in each round."""
    rounds = tuple(
        RoundRecord(
            round=number,
            cohort=[0],
            probe={client: {"credit": credit} for client, credit in reported.items()},
            num_examples=4,
            metrics={},
            traffic=Traffic(),
            timing=Timing(total_s=0.1),
        )
        for number, reported in enumerate(credits, start=1)
    )
    info = WorkloadInfo(data={}, label_counts=label_counts)
    return RunFolder(path=Path(), experiment={"clients": 3}, rounds=rounds, run_id="run", workload=info)


def test_novelty_correlates_credits_with_the_distance_to_the_last_pool() -> None:
    # The pool before round 2 is client 0's: distances of clients 0, 1, 2 are 0, 1, 1/2. Round 3: equal credits.
    credits = [{"0": 0.9, "1": 0.1}, {"0": 0.1, "1": 0.3, "2": 0.2}, {"0": 0.5, "1": 0.5}, {"0": 1.0, "1": 0.5}]
    found = novelty(run_of(credits, ((4, 0), (0, 4), (2, 2))))
    assert found.series["novelty"][1] == pytest.approx(1.0)
    assert found.series["novelty"][3] == pytest.approx(-1.0)
    assert math.isnan(found.series["novelty"][0])
    assert math.isnan(found.series["novelty"][2])
    assert found.numbers["novelty"] == pytest.approx(0.0)


def test_without_credits_or_label_counts_there_is_no_novelty() -> None:
    assert math.isnan(novelty(run_of([{}, {}], ((4, 0), (0, 4), (2, 2)))).numbers["novelty"])
    assert novelty(run_of([{}, {}], ())).numbers == {}

"""A client without examples trains nothing, weighs nothing and fails nothing, in every runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from fedloom import api
from fedloom.api import RunResult
from fedloom.core.config import Experiment
from fedloom.core.events import Event, Notice
from fedloom.core.protocols import Sink
from fedloom.testing.fleet import run_on_fleet

Make = Callable[..., Experiment]


class Notices:
    """A sink of the messages of notices."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def write(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.messages.append(event.message)

    def close(self) -> None:
        pass


RUNTIMES = [{"name": "inline"}, {"name": "process", "workers": 1}]


@pytest.fixture
def run(linear: Make) -> Callable[..., RunResult]:
    def run(workload: dict[str, object], sinks: Sequence[Sink] = (), **values: object) -> RunResult:
        experiment = linear(**{"rounds": 2, "clients": 4, "cohort": 4, "workload": workload, **values})
        return api.run(experiment, keep=False, sinks=sinks)

    return run


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime["name"])
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_the_model_is_that_of_the_clients_with_examples(
    run: Callable[..., RunResult], runtime: dict[str, object], group_size: int, weighting: str
) -> None:
    """It has the bits of a run in which the same clients fail instead; nothing is missing from its rounds."""
    settings = {"quorum_fraction": 0.5, "group_size": group_size, "weighting": weighting}
    empty = run({"empty_clients": (1, 2)}, round=settings, runtime=runtime)
    others = run({"fail_clients": (1, 2)}, round=settings, runtime={"name": "inline"})
    assert empty.summary.model_sha256 == others.summary.model_sha256
    for record in empty.history:
        assert record.failures == [] and sorted(record.cohort) == [0, 1, 2, 3]
        assert record.num_examples == 20 + 23 and record.local_trainings == 2


def test_a_quorum_counts_clients_without_examples_as_answers(run: Callable[..., RunResult]) -> None:
    assert len(run({"empty_clients": (0, 1, 2)}).history) == 2


def test_a_cohort_without_examples_leaves_the_model_as_it_is(run: Callable[..., RunResult]) -> None:
    """The initial model is what training with a step size of 0 leaves, too."""
    reported = Notices()
    result = run({"empty_clients": (0, 1, 2, 3)}, sinks=[reported])
    still = run({"learning_rate": 0.0}, cohort=1)  # whose mean is exact
    assert result.summary.model_sha256 == still.summary.model_sha256
    assert [(record.num_examples, record.local_trainings) for record in result.history] == [(0, 0)] * 2
    assert [words.partition(" (")[0] for words in reported.messages] == [
        f"round {n}: none of its clients" for n in (1, 2)
    ]


def test_a_server_takes_such_results_from_other_machines(linear: Make, run: Callable[..., RunResult]) -> None:
    settings = {"group_size": 2, "weighting": "uniform"}
    workload = {"empty_clients": (1, 2, 3)}
    experiment = linear(rounds=2, clients=6, cohort=6, workload=workload, round=settings)
    outcome = run_on_fleet(experiment, workers=2, shared_memory=False)
    assert outcome.error is None and not any(record.refusals or record.failures for record in outcome.history)
    here = run(workload, clients=6, cohort=6, round=settings)
    assert outcome.summary.model_sha256 == here.summary.model_sha256


@pytest.mark.parametrize("selection", ["power_of_choice", "oort", "fedcor", "afl", "data_size"])
def test_a_selection_sees_no_report_of_a_client_without_examples(run: Callable[..., RunResult], selection: str) -> None:
    result = run({"empty_clients": (1,)}, selection=selection, clients=8, cohort=2)
    assert len(result.history) == 2 and all(record.failures == [] for record in result.history)

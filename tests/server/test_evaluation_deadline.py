"""An evaluation has a deadline and a quorum as training has; missing it costs the evaluation, not the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from fedloom.core.accumulators import MetricsOnly
from fedloom.core.config import Experiment
from fedloom.core.errors import QuorumNotReached
from fedloom.core.events import Event, Notice
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import ClientReport, Mean, RoundContext
from fedloom.server.rounds.clients import VirtualClients
from fedloom.server.rounds.counts import Collected, RoundCounts
from fedloom.server.rounds.open_round import OpenRound, RunParts
from fedloom.server.rounds.phases.evaluate import EvaluatePhase
from fedloom.server.rounds.request import ExchangeRequest
from fedloom.server.rounds.run_services import declared_roster
from fedloom.testing.clock import ManualClock

Make = Callable[..., Experiment]


class Still:
    """A strategy of which only the model matters."""

    evaluates = False

    def model_inputs(self, state: object) -> dict[str, Any]:
        return {}


def evaluate(
    experiment: Experiment, takes_s: float, parts: int | None
) -> tuple[OpenRound, list[Event], ExchangeRequest]:
    """Evaluate once, when so many parts come after so long; None parts miss the quorum."""
    clock, events, requests = ManualClock(), [], []  # type: ignore[var-annotated]

    def collect(request: ExchangeRequest) -> Collected:
        requests.append(request)
        clock.advance(takes_s)
        if parts is None:
            raise QuorumNotReached("3 of 4 are missing")
        reports = tuple(
            ClientReport(client=part, num_examples=1, seconds=0.0, metrics={"loss": Mean(2.0, 1.0)})
            for part in range(parts)
        )
        return Collected(total=MetricsOnly(), reports=reports, counts=RoundCounts(), sampled=(), superseded=())

    run = RunParts(
        run_id="run", experiment=experiment, strategy=cast(Any, Still()), selection=cast(Any, None), collect=collect,
        emit=events.append, monotonic=clock.monotonic, clients=VirtualClients(experiment, declared_roster),
    )  # fmt: skip
    context = RoundContext(round=1, cohort=(), population=1, rounds=1, seed=1)
    round = OpenRound(
        number=1, info=WorkloadInfo(data={}), roster=cast(Any, None), selection_state=None, state=None, context=context
    )
    EvaluatePhase(run).run(round)
    return round, events, requests[0]


@pytest.mark.parametrize(
    ("settings", "deadline_s"),
    [
        ({}, None),
        ({"round": {"deadline_s": 3.0}}, 3.0),
        ({"round": {"deadline_s": 3.0}, "evaluation": {"deadline_s": 60.0}}, 60.0),
    ],
)
def test_its_deadline_is_its_own_or_the_rounds(
    linear: Make, settings: dict[str, Any], deadline_s: float | None
) -> None:
    _, _, request = evaluate(linear(**settings), 1.0, 4)
    assert (request.terms.deadline_s, request.terms.quota, request.terms.quorum_fraction) == (deadline_s, 4, 1.0)


def test_below_the_quorum_at_the_deadline_the_round_has_no_evaluation(linear: Make) -> None:
    round, events, _ = evaluate(linear(round={"deadline_s": 3.0}), 3.0, None)
    assert round.evaluation is None
    assert [event.message for event in events if isinstance(event, Notice)] == [
        "round 1: no evaluation: 3 of 4 are missing"
    ]


def test_before_the_deadline_too_few_parts_are_an_error(linear: Make) -> None:
    with pytest.raises(QuorumNotReached):
        evaluate(linear(round={"deadline_s": 3.0}), 1.0, None)
    with pytest.raises(QuorumNotReached):
        evaluate(linear(), 9.0, None)


def test_an_evaluation_of_some_parts_says_so(linear: Make) -> None:
    round, events, _ = evaluate(linear(round={"deadline_s": 3.0, "quorum_fraction": 0.5}), 3.0, 3)
    assert round.evaluation == {"loss": 2.0} and round.sections == {"evaluation": {"parts": 3, "of": 4}}
    (notice,) = events
    assert isinstance(notice, Notice) and "3 of 4 pieces of the held-out data" in notice.message

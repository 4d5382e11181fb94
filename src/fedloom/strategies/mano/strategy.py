"""Estimation of accuracy without labels, the server half: training as ever, and one question in the last round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedloom.core.accumulators import Accumulator, RunningMean, UpdateList
from fedloom.core.config import Experiment
from fedloom.core.pinned import Pinned
from fedloom.core.protocols import Pending
from fedloom.core.records import MODEL, Arrays, Exchange, Job, Record, RoundContext
from fedloom.strategies.mano.config import Config

SECOND = "second"
INITIAL = "initial"


@dataclass(frozen=True, slots=True)
class Scored:
    """The model, the second one, where both began, and what was found in the last round."""

    model: Arrays
    initial: Pinned
    second: Arrays = field(default_factory=dict)
    """Empty where the workload trains none."""
    asks: bool = False
    """Whether the exchange under way is the question for scores."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What the round's record gets."""


class Estimation:
    """MaNo and its rivals on many sets (Xie et al. 2024, arXiv 2405.18979, section 5), for a model trained by clients.

    With one client a round is that client's training. With many, both models are means over clients, as in federated
    averaging.
    """

    State = Scored

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, model: Record) -> Scored:
        begun = Pinned.of(Record({MODEL: model.groups[MODEL]}))
        return Scored(model.groups[MODEL], begun, model.groups.get(SECOND, {}))

    def plan(self, state: Scored, context: RoundContext) -> Exchange | None:
        inputs = self._models(state)
        return Exchange(jobs=context.jobs(inputs=tuple(inputs)), inputs=inputs)

    def finish(self, state: Scored, total: Accumulator, context: RoundContext) -> Scored | Pending[Scored]:
        """The mean of the clients' models; in the last round the sets' scores, too."""
        if state.asks:
            assert isinstance(total, UpdateList)
            sets = [line for _, update in total.updates for line in update.info.get("sets", ())]
            rule = self._config.model_dump(include={"eta", "criterion", "branch", "whole_set"})
            return replace(state, asks=False, told={"mano": {"rule": rule, "sets": sets}})
        assert isinstance(total, RunningMean)
        groups = total.value()
        state = replace(state, model=groups[MODEL], second=groups.get(SECOND, {}), told={})
        if not context.is_last:
            return state
        return Pending(replace(state, asks=True), self._question(state, context))

    def arrays(self, state: Scored) -> Arrays:
        return state.model

    def report(self, state: Scored) -> Mapping[str, Any]:
        """The last round's table of sets."""
        return state.told

    def _question(self, state: Scored, context: RoundContext) -> Exchange:
        """One job for each part of the sets; a job's client is only its number."""
        inputs = {**self._models(state), INITIAL: state.initial}
        jobs = tuple(
            Job(
                round=context.round,
                client=part,
                kind="estimate",
                inputs=tuple(inputs),
                knobs={"part": part, "parts": self._config.parts},
            )
            for part in range(self._config.parts)
        )
        return Exchange(jobs=jobs, inputs=inputs, accumulator="separate", quorum_fraction=1.0)

    def _models(self, state: Scored) -> dict[str, Record]:
        models = {MODEL: Record({MODEL: state.model})}
        return models | {SECOND: Record({SECOND: state.second})} if state.second else models


def build_strategy(config: Config, experiment: Experiment) -> Estimation:
    """The strategy a `Config` describes."""
    return Estimation(config)

"""Estimation of accuracy without labels, the server half: ordinary training, and scoring in the last round."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fedloom.core.accumulators import RunningMean, UpdateList
from fedloom.core.config import Experiment
from fedloom.core.pinned import Pinned
from fedloom.core.protocols import Pending, Strategy
from fedloom.core.records import MODEL, Arrays, Exchange, Info, Job, Record, RoundContext
from fedloom.strategies._accumulators import wrong_accumulator
from fedloom.strategies.mano.config import Config

SECOND = "second"
INITIAL = "initial"


@dataclass(frozen=True, slots=True)
class Scored:
    """The model, the second one, the initial one of both, and the results of the last round."""

    model: Arrays
    initial: Pinned
    second: Arrays = field(default_factory=dict)
    """Empty if the workload trains none."""
    asks: bool = False
    """Whether the current exchange is the scoring."""
    reported: Info = field(default_factory=dict)
    """Entries of the round's record."""


class Estimation(Strategy[Scored, RunningMean | UpdateList]):
    """MaNo and its rivals on many sets (Xie et al. 2024, arXiv 2405.18979, section 5), for a model trained by clients.

    With one client a round is that client's training. With many, both models are means over clients, as in federated
    averaging.
    """

    State = Scored

    def __init__(self, config: Config, *, of_sites: bool = False) -> None:
        self._config, self._of_sites = config, of_sites

    def init(self, model: Record) -> Scored:
        begun = Pinned.of(Record({MODEL: model.groups[MODEL]}))
        return Scored(model.groups[MODEL], begun, model.groups.get(SECOND, {}))

    def plan(self, state: Scored, context: RoundContext) -> Exchange | None:
        inputs = self._models(state)
        return Exchange(
            jobs=context.jobs(inputs=tuple(inputs)),
            inputs=inputs,
            updates={name: frozenset(record.groups[name]) for name, record in inputs.items()},
        )

    def finish(self, state: Scored, total: RunningMean | UpdateList, context: RoundContext) -> Scored | Pending[Scored]:
        """Return the mean of the clients' models; in the last round the sets' scores, too."""
        if state.asks:
            if not isinstance(total, UpdateList):
                raise wrong_accumulator("mano", UpdateList, total)
            sets = [
                {**line, "site": client} if self._of_sites else line
                for client, update in total.updates
                for line in update.info.get("sets", ())
            ]
            rule = self._config.model_dump(include={"eta", "criterion", "branch", "whole_set"})
            return replace(state, asks=False, reported={"mano": {"rule": rule, "sets": sets}})
        if not isinstance(total, RunningMean):
            raise wrong_accumulator("mano", RunningMean, total)
        groups = total.value()
        state = replace(state, model=groups[MODEL], second=groups.get(SECOND, {}), reported={})
        if not context.is_last:
            return state
        return Pending(replace(state, asks=True), self._question(state, context))

    def arrays(self, state: Scored) -> Arrays:
        return state.model

    def report(self, state: Scored) -> Info:
        """Return the last round's table of sets."""
        return state.reported

    def _question(self, state: Scored, context: RoundContext) -> Exchange:
        """Return one job for each part of the sets; where clients are sites, each scores all sets of its own images."""
        inputs = {**self._models(state), INITIAL: state.initial}
        jobs = tuple(
            Job(
                round=context.round,
                client=part,
                kind="estimate",
                inputs=tuple(inputs),
                knobs={"part": part, "parts": self._config.parts},
                of_client=False,
            )
            for part in range(self._config.parts)
        )
        return Exchange(jobs=jobs, inputs=inputs, accumulator="separate", updates={}, quorum_fraction=1.0)

    def _models(self, state: Scored) -> dict[str, Record]:
        models = {MODEL: Record({MODEL: state.model})}
        return models | {SECOND: Record({SECOND: state.second})} if state.second else models


def build_strategy(config: Config, experiment: Experiment) -> Estimation:
    """Return the strategy a `Config` describes; it scores in the last round, so the number of rounds must be known."""
    experiment.rounds_known("strategy 'mano'")
    return Estimation(config, of_sites=experiment.of_sites)

"""Averaging of partial models, the server half. It has no client half: a client sends the arrays it has trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedloom.core.accumulators import MeanOfSenders
from fedloom.core.config import Experiment
from fedloom.core.protocols import Strategy
from fedloom.core.records import MODEL, Arrays, Exchange, Info, Record, RoundContext
from fedloom.strategies.partial.config import Config


@dataclass(frozen=True, slots=True)
class PartialModel:
    """The global model, and what the last round's clients sent of it."""

    model: Arrays
    """w_t, every array."""
    reported: Info = field(default_factory=dict)
    """Entries of the round's record."""


class PartialAveraging(Strategy[PartialModel, MeanOfSenders]):
    """w_{t+1,l} = sum_{k in S_l} n_k w_{k,l} / sum_{k in S_l} n_k for each array l, with S_l the clients that sent it.

    An array that no client of the round sent stays as it is. With clients that all send the whole model this is
    federated averaging. The averaging of HeteroFL (Diao et al. 2021) in its form for whole arrays.
    """

    State = PartialModel

    def init(self, model: Record) -> PartialModel:
        return PartialModel(model.groups[MODEL])

    def plan(self, state: PartialModel, context: RoundContext) -> Exchange:
        return Exchange(
            jobs=context.jobs(),
            inputs={MODEL: Record({MODEL: state.model})},
            accumulator="mean_of_senders",
            updates="subset",
        )

    def finish(self, state: PartialModel, total: MeanOfSenders, context: RoundContext) -> PartialModel:
        sent = total.weights()
        unsent = sum(1 for name in state.model if name not in sent)
        return PartialModel(total.value(state.model), {"arrays": len(sent), "unsent": unsent})

    def arrays(self, state: PartialModel) -> Arrays:
        return state.model

    def report(self, state: PartialModel) -> Info:
        """Return how many arrays of the model some client sent in the round, and how many none did."""
        return {"partial": state.reported} if state.reported else {}


def build_strategy(config: Config, experiment: Experiment) -> PartialAveraging:
    """Return the strategy a `Config` describes."""
    return PartialAveraging()

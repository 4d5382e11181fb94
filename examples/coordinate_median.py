"""Coordinate-wise median: the middle of the clients' models, array element by array element.

Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", Algorithm 1, option I, on
models instead of gradients. Fewer than half of the clients of a round can lie without moving it far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedloom.core.accumulators import UpdateList
from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.protocols import Strategy
from fedloom.core.records import MODEL, Arrays, Exchange, Record, RoundContext


class Config(PluginSettings):
    """The median has no settings of its own."""


@dataclass(frozen=True, slots=True)
class Median:
    """The global model, by array name."""

    model: Arrays


class CoordinateMedian(Strategy[Median, UpdateList]):
    """w_{t+1} = median_k(w_k), element by element; examples do not weigh."""

    State = Median

    def init(self, model: Record) -> Median:
        return Median(model.groups[MODEL])

    def plan(self, state: Median, context: RoundContext) -> Exchange:
        # A median cannot be made of partial sums: ask for every update apart.
        return Exchange(jobs=context.jobs(), inputs={MODEL: Record({MODEL: state.model})}, accumulator="separate")

    def finish(self, state: Median, total: UpdateList, context: RoundContext) -> Median:
        models = [update.groups[MODEL] for _, update in total.updates]
        return Median(
            {
                name: np.asarray(np.median([model[name] for model in models], axis=0)).astype(array.dtype)
                for name, array in state.model.items()
            }
        )

    def arrays(self, state: Median) -> Arrays:
        return state.model


def build_strategy(config: Config, experiment: Experiment) -> CoordinateMedian:
    """Return the strategy a `Config` describes."""
    return CoordinateMedian()

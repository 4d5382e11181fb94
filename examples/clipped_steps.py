"""Federated averaging whose clients clip every gradient: a strategy with a client half, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from fedloom.core.accumulators import Accumulator
from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.records import Arrays, Exchange, Info, Record, RoundContext, Update
from fedloom.strategies.fedavg import strategy as fedavg


class Config(PluginSettings):
    """Clipped federated averaging."""

    limit: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest Euclidean norm of a local gradient, all arrays together; larger ones are scaled down to it."""


class ClippedSteps:
    """The server half: `fedavg`'s round, with the limit in the jobs and this file's rule on the clients."""

    State = fedavg.GlobalModel

    def __init__(self, config: Config) -> None:
        self._config = config
        self._averaging = fedavg.FedAvg()

    def init(self, model: Record) -> fedavg.GlobalModel:
        return self._averaging.init(model)

    def plan(self, state: fedavg.GlobalModel, context: RoundContext) -> Exchange | None:
        exchange = self._averaging.plan(state, context)
        return exchange and replace(exchange, knobs={"limit": self._config.limit}, rules=(self._config.name,))

    def finish(self, state: fedavg.GlobalModel, total: Accumulator, context: RoundContext) -> fedavg.GlobalModel:
        return self._averaging.finish(state, total, context)

    def arrays(self, state: fedavg.GlobalModel) -> Arrays:
        return state.model


class Clip:
    """The client half."""

    def adjust_gradients(
        self, gradients: Sequence[Any], parameters: Sequence[Any], anchor: Sequence[Any], knobs: Info
    ) -> None:
        """Scale all gradients by limit / norm, in place, where their norm is above the limit."""
        norm = float(sum((gradient * gradient).sum() for gradient in gradients)) ** 0.5
        if norm > knobs["limit"]:
            for gradient in gradients:
                gradient *= knobs["limit"] / norm

    def outgoing(self, update: Update, knobs: Info) -> Update:
        """The update, as it is."""
        return update


def build_strategy(config: Config, experiment: Experiment) -> ClippedSteps:
    """The server half a `Config` describes."""
    return ClippedSteps(config)


def build_rule() -> Clip:
    """The client half; its settings come with each job."""
    return Clip()

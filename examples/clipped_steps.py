"""Federated averaging whose clients clip every gradient: a strategy with a client half, in one file."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.protocols import LocalRule, Tensors
from fedloom.core.records import Exchange, Info, RoundContext
from fedloom.strategies.fedavg.strategy import FedAvg, GlobalModel


class Config(PluginSettings):
    """Clipped federated averaging."""

    limit: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest Euclidean norm of a local gradient, all arrays together; larger ones are scaled down to it."""


class ClippedSteps(FedAvg):
    """The server half: the round of federated averaging, with the limit in the jobs and this file's rule on clients."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def plan(self, state: GlobalModel, context: RoundContext) -> Exchange | None:
        exchange = super().plan(state, context)
        return exchange and replace(exchange, knobs={"limit": self._config.limit}, rules=(self._config.name,))


class Clip(LocalRule):
    """The client half. The base class leaves inputs and updates as they are."""

    def adjust_gradients(self, gradients: Tensors, parameters: Tensors, anchor: Tensors, knobs: Info) -> None:
        """Scale all gradients by limit / norm, in place, where their norm is above the limit."""
        norm = float(sum((gradient * gradient).sum() for gradient in gradients)) ** 0.5
        if norm > knobs["limit"]:
            for gradient in gradients:
                gradient *= knobs["limit"] / norm


def build_strategy(config: Config, experiment: Experiment) -> ClippedSteps:
    """Return the server half a `Config` describes."""
    return ClippedSteps(config)


def build_rule() -> Clip:
    """Return the client half; its settings come with each job."""
    return Clip()

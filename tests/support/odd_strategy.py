"""A strategy in one file that does on request what strategies may do, and what they should not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.protocols import Pending
from fedloom.core.records import MODEL, Arrays, Exchange, Record, RoundContext


class Config(PluginSettings):
    """Federated averaging with extras."""

    exchanges: int = 1
    """Exchanges in each round; each averages what the one before made."""
    enough: int = 0
    """Round after which it wants no further one; 0 takes all."""
    plan_raises: int = 0
    """Round whose plan raises."""
    finish_raises: int = 0
    """Round whose finish raises."""


@dataclass(frozen=True)
class _State:
    model: Arrays
    done: int
    """Exchanges of this round that are over."""
    trail: tuple[int, ...]
    """Updates folded in each exchange so far."""


class OddStrategy:
    State = _State

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, model: Record) -> _State:
        return _State(model.groups[MODEL], 0, ())

    def plan(self, state: _State, context: RoundContext) -> Exchange | None:
        if context.round == self._config.plan_raises:
            raise LookupError("no plan for this round")
        if self._config.enough and context.round > self._config.enough:
            return None
        return self._ask(state, context)

    def finish(self, state: _State, total: Any, context: RoundContext) -> _State | Pending[_State]:
        if context.round == self._config.finish_raises:
            raise ZeroDivisionError("nothing to divide by")
        assert isinstance(total, RunningMean)
        state = replace(state, model=total.value()[MODEL], done=state.done + 1, trail=(*state.trail, total.count))
        if state.done < self._config.exchanges:
            return Pending(state, self._ask(state, context))
        return replace(state, done=0)

    def arrays(self, state: _State) -> Arrays:
        return state.model

    def report(self, state: _State) -> dict[str, Any]:
        return {"trail": list(state.trail)}

    def _ask(self, state: _State, context: RoundContext) -> Exchange:
        assert all(isinstance(array, np.ndarray) for array in state.model.values())
        return Exchange(jobs=context.jobs(), inputs={MODEL: Record({MODEL: state.model})})


def build_strategy(config: Config, experiment: Experiment) -> OddStrategy:
    return OddStrategy(config)

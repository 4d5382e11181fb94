"""Resizing of global factors to the rank of a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Literal

from fedloom.strategies._low_rank.setup import Pairs, Setup
from fedloom.strategies._low_rank.shrink import Operator, ordered, ranks_by_importance, resized, uniform_ranks
from fedloom.strategies._low_rank.state import Adapters

Allocation = Literal["uniform", "importance"]


class Resizing(ABC):
    """A way to change the rank of the global factors."""

    changes_base: bool = False
    """Whether it adds to the base of the adapters."""

    @abstractmethod
    def resize(self, state: Adapters, rank: int) -> Adapters:
        """Return the state with factors of a rank; with importance, the mean rank of the layers."""


class Cut(Resizing):
    """Keeps the first components in an operator's order (`shrink.ordered`); a larger rank adds components that change
    nothing yet."""

    def __init__(self, setup: Setup, operator: Operator = "svd", allocation: Allocation = "uniform") -> None:
        self._setup, self._operator = setup, operator
        self._ranks = ranks_by_importance if allocation == "importance" else uniform_ranks
        self.changes_base = operator == "fold"

    def resize(self, state: Adapters, rank: int) -> Adapters:
        factors, rest = self._cut(state, rank)
        state = replace(
            state,
            lora_a={name: a for name, (a, _) in factors.items()},
            lora_b={name: b for name, (_, b) in factors.items()},
        )
        folds = self.changes_base and any(b.any() for _, b in rest.values())
        return self._setup.merged(state, rest) if folds else state

    def _cut(self, state: Adapters, rank: int) -> tuple[Pairs, Pairs]:
        """Return the factors at a rank, and the part cut off."""
        fresh, _ = self._setup.fresh(state, rank)
        grown = resized(state.factors, fresh, rank)
        components = {name: ordered(a, b, self._operator) for name, (a, b) in grown.items() if len(a) > rank}
        if not components:
            return grown, {}
        ranks = self._ranks(components, rank)
        cut = {name: each.first(ranks[name]) for name, each in components.items()}
        rest = {name: each.rest(ranks[name]) for name, each in components.items() if len(each.a) > ranks[name]}
        return {**grown, **cut}, rest

"""Aggregation of clients' adapters to the next global adapters: one class for each way.

Legend: client k sends A_k (r_k, i) and B_k (o, r_k) with weight p_k, Σ p_k = 1, for each layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

import numpy as np

from fedloom.adapters.names import ADAPTERS, LORA_A, LORA_B
from fedloom.core.accumulators import RunningMean, UpdateList
from fedloom.core.pinned import Pinned
from fedloom.core.records import MODEL, Array, Arrays, Groups, Info, Record
from fedloom.strategies._accumulators import wrong_accumulator
from fedloom.strategies._low_rank import accumulator as sums
from fedloom.strategies._low_rank.products import relative_error
from fedloom.strategies._low_rank.rule import FRESH
from fedloom.strategies._low_rank.setup import SHARED, Pairs, Setup
from fedloom.strategies._low_rank.shrink import grown
from fedloom.strategies._low_rank.state import Adapters

Means = RunningMean | sums.Accumulator
"""Aggregates that have means."""
Total = Means | UpdateList
"""An accumulator of a method's exchanges."""
AggregationName = Literal["factor", "product_svd", "stack", "freeze_a", "residual"]


class Aggregation(ABC):
    """A way to aggregate adapters, and its effect on a round. Stateless: states are arguments and results."""

    changes_base: bool = False
    """Whether it changes the base of the adapters."""
    mixes_ranks: bool = True
    """Whether the clients of one round may differ in rank."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @property
    def accumulator(self) -> str:
        """Return the name of the adapter rounds' accumulator: by default the family's, with factors and products."""
        return SHARED

    def begin(self, state: Adapters, *, given: bool) -> Adapters:
        """Return the state with the first adapters in place; `given` if they are a user's, not fresh."""
        return state

    def resized(self, state: Adapters) -> Adapters:
        """Return the state after its factors got another rank."""
        return state

    def broadcast(self, ready: Adapters, record: Record) -> Record:
        """Return the broadcast to a client of a round, unpacked; `record` contains head and factors."""
        return record

    def published(self, state: Adapters) -> Adapters:
        """Return the state whose model is evaluated, saved and exported."""
        return state

    def inputs(self, ready: Adapters) -> Mapping[str, Record]:
        """Return the further inputs of every client of a round."""
        return {}

    def sent(self, ready: Adapters) -> Groups:
        """Return arrays shaped like those that one client without a limit sends, not packed."""
        groups: dict[str, Arrays] = {MODEL: ready.model, LORA_A: ready.lora_a, LORA_B: ready.lora_b}
        return {group: arrays for group, arrays in groups.items() if group == MODEL or arrays}

    @abstractmethod
    def combine(self, ready: Adapters, total: Total) -> tuple[Adapters, Info]:
        """Return the next global adapters, and the entries of the round's record.

        Args:
            ready: the state the round broadcast.
            total: the aggregate of the clients' updates, by `accumulator`.
        """


class Factor(Aggregation):
    """A' = Σ p_k A_k and B' = Σ p_k B_k; a component that no client of the round had becomes zero."""

    def combine(self, ready: Adapters, total: Total) -> tuple[Adapters, Info]:
        summed = products_of(total, self.setup.strategy)
        state = _with_mean_factors(ready, summed)
        error = relative_error(summed.products(), state.lora_a, state.lora_b)
        return state, {"aggregation_error": error}


class Residual(Aggregation):
    """`Factor`, with the difference Σ p_k B_k A_k - B' A' added to the base, so that the sum is exact."""

    changes_base = True

    def combine(self, ready: Adapters, total: Total) -> tuple[Adapters, Info]:
        summed = products_of(total, self.setup.strategy)
        state, products = _with_mean_factors(ready, summed), summed.products()
        if relative_error(products, state.lora_a, state.lora_b):
            rest = {n: each.minus(state.lora_a[n], state.lora_b[n]).compact() for n, each in products.items()}
            state = self.setup.merged(state, rest)
        return state, {"aggregation_error": 0.0}


class ProductSvd(Aggregation):
    """B' A' is the best approximation of Σ p_k B_k A_k at the layer's rank: A' = Vᵀ and B' = U Σ of its SVD."""

    def combine(self, ready: Adapters, total: Total) -> tuple[Adapters, Info]:
        summed = products_of(total, self.setup.strategy)
        products, ranks = summed.products(), {name: len(a) for name, (a, _) in ready.factors.items()}
        fresh, _ = self.setup.fresh(ready, max(ranks.values()))
        cut = {name: product.truncated(ranks[name]) for name, product in products.items()}
        # A mean of few clients may have fewer components than that; the others change nothing, but can be trained.
        pairs = {name: grown(*pair, fresh[name][: ranks[name]]) for name, pair in cut.items()}
        a, b = {name: a for name, (a, _) in pairs.items()}, {name: b for name, (_, b) in pairs.items()}
        state = replace(ready, model=summed.value()[MODEL], lora_a=a, lora_b=b)
        return state, {"aggregation_error": relative_error(products, a, b)}


class Stack(Aggregation):
    """Σ p_k B_k A_k is added to the base, as a product of stacked factors, and the adapters are reinitialised.

    The fresh factors are not sent: each client draws its own A from the run's seed, so that the stack of K clients of
    rank r has up to K r directions even where A hardly moves in local training.
    """

    changes_base = True

    def begin(self, state: Adapters, *, given: bool) -> Adapters:
        return self._restarted(replace(state, rank=self.setup.rank_max), state.factors) if given else state

    def broadcast(self, ready: Adapters, record: Record) -> Record:
        shapes = {name: [len(a), len(b), a.shape[1]] for name, (a, b) in ready.factors.items()}
        fresh = {"seed": self.setup.seed, "restart": ready.restarts, "shapes": shapes}
        return Record({MODEL: record.groups[MODEL]}, {ADAPTERS: {**record.info[ADAPTERS], FRESH: fresh}})

    def combine(self, ready: Adapters, total: Total) -> tuple[Adapters, Info]:
        summed = products_of(total, self.setup.strategy)
        pairs = {name: product.compact() for name, product in summed.products().items()}
        state = self._restarted(replace(ready, model=summed.value()[MODEL]), pairs)
        return state, {"aggregation_error": 0.0}

    def _restarted(self, state: Adapters, pairs: Pairs) -> Adapters:
        """Return the state with a change merged into the base, and fresh factors."""
        state = self.setup.merged(state, pairs)
        state = replace(state, restarts=state.restarts + 1)
        a, b = self.setup.fresh(state, state.rank)
        return replace(state, lora_a=a, lora_b=b)


class FreezeA(Aggregation):
    """B' = Σ p_k B_k with one untrained A: Σ p_k B_k A = B' A, so the mean is exact."""

    mixes_ranks = False

    @property
    def accumulator(self) -> str:
        return mean_or_shared(self.setup)

    def begin(self, state: Adapters, *, given: bool) -> Adapters:
        return self.resized(state)

    def resized(self, state: Adapters) -> Adapters:
        """Return the state with its factors A stored where all clients find them."""
        return replace(state, frozen_a=Pinned.of(Record({LORA_A: state.lora_a})), lora_a={}) if state.lora_a else state

    def combine(self, ready: Adapters, total: Total) -> tuple[Adapters, Info]:
        means = means_of(total, self.setup.strategy).value()
        return replace(ready, model=means[MODEL], lora_b=means[LORA_B]), {"aggregation_error": 0.0}


AGGREGATIONS: Mapping[AggregationName, type[Aggregation]] = MappingProxyType(
    {"factor": Factor, "product_svd": ProductSvd, "stack": Stack, "freeze_a": FreezeA, "residual": Residual}
)


def mean_or_shared(setup: Setup) -> str:
    """Return the accumulator for means without products: the plain mean, or the family's if updates are packed."""
    return "mean" if setup.wire == "fp32" else SHARED


def means_of(total: Total, strategy: str) -> Means:
    """Return the total of an exchange, aggregated where its updates are made.

    Raises:
        RunFailed: it was aggregated by an accumulator without means.
    """
    if isinstance(total, UpdateList):
        raise wrong_accumulator(strategy, sums.Accumulator, total)
    return total


def products_of(total: Total, strategy: str) -> sums.Accumulator:
    """Return the total of an exchange whose products were aggregated, too. Raises as `means_of` does."""
    if not isinstance(total, sums.Accumulator):
        raise wrong_accumulator(strategy, sums.Accumulator, total)
    return total


def _with_mean_factors(ready: Adapters, summed: sums.Accumulator) -> Adapters:
    """Return the state with the means of head and factors."""
    means = summed.value()
    a, b = _padded(means[LORA_A], ready.lora_a), _padded(means[LORA_B], ready.lora_b)
    return replace(ready, model=means[MODEL], lora_a=a, lora_b=b)


def _padded(means: Arrays, like: Arrays) -> dict[str, Array]:
    """Return means with zeros for components that no client of the round had."""
    padded = {}
    for name, mean in means.items():
        padded[name] = mean
        if mean.shape != like[name].shape:
            padded[name] = np.zeros(like[name].shape, mean.dtype)
            padded[name][tuple(slice(side) for side in mean.shape)] = mean
    return padded

"""One engine for all low-rank strategies: the stages, shrinking before the broadcast, aggregation, what is counted.

A round of the annealing stage is: cut the factors to r_t, send them (with the head) to the cohort, fold what comes
back, make the next global factors of it. A strategy is a `Method`, at times with one of the engine's steps replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedloom.core.accumulators import RunningMean, UpdateList
from fedloom.core.errors import ConfigError
from fedloom.core.pinned import Pinned
from fedloom.core.protocols import Strategy
from fedloom.core.records import (
    ADAPTERS,
    LORA_A,
    LORA_B,
    MODEL,
    Array,
    Arrays,
    Contents,
    Exchange,
    Groups,
    Info,
    Job,
    Record,
    RoundContext,
)
from fedloom.strategies._accumulators import wrong_accumulator
from fedloom.strategies._low_rank import accumulator as sums
from fedloom.strategies._low_rank.aggregate import relative_error
from fedloom.strategies._low_rank.layers import chosen_layers, fresh_a, layer_info, zero_b
from fedloom.strategies._low_rank.method import SHARED, Method
from fedloom.strategies._low_rank.rule import FRESH
from fedloom.strategies._low_rank.shrink import grown, ordered, ranks_by_importance, resized, uniform_ranks
from fedloom.strategies._low_rank.start import SETTING, started
from fedloom.strategies._low_rank.state import Adapters
from fedloom.strategies._low_rank.wire import pack, packed_names

ANCHOR = "anchor"
"""Name of the input a regulariser pulls towards, where that is not the round's model."""
Means = RunningMean | sums.Accumulator
"""Totals that have means."""
Total = Means | UpdateList
"""Whatever a method's exchanges are folded by."""


class LowRank(Strategy[Adapters, Total]):
    """A low-rank strategy from first round to last."""

    State = Adapters

    def __init__(self, method: Method) -> None:
        self.method = method
        if method.client_ranks and method.aggregation in ("freeze_a",):
            raise ConfigError(
                "strategy.client_ranks: clients of different ranks cannot share one frozen A; set "
                'strategy.aggregation to "factor", "product_svd" or "stack"'
            )
        if method.start is not None and self._full(1):
            raise ConfigError(
                f"{SETTING}: adapters begin on the model the run begins with, and its first rounds would change that; "
                'set strategy.initiating_rounds = 0, or strategy.init_mode = "lora"'
            )

    # The interface of a strategy

    def init(self, model: Record) -> Adapters:
        layers = chosen_layers(model.info, self.method.targets, self.method.schedule.rank_max)
        head = tuple(model.info.get("head", ())) if self.method.train_head else ()
        pretrained = self.method.init_mu > 0 and self.method.init_anchor == "pretrained"
        state = Adapters(
            model=model.groups[MODEL],
            layers={name: layer_info(layer) for name, layer in layers.items()},
            head=head,
            anchor=Pinned.of(Record({MODEL: model.groups[MODEL]})) if pretrained and self._full(1) else None,
        )
        return state if self._full(1) else self._frozen(state)

    def plan(self, state: Adapters, context: RoundContext) -> Exchange | None:
        return self._plan_whole(state, context) if self._full(context.round) else self._plan_adapters(state, context)

    def finish(self, state: Adapters, total: Total, context: RoundContext) -> Adapters:
        method = self.method
        if not self._full(context.round):
            return self._finish_adapters(self._ready(state, context.round), total, context)
        model = self._means(total).value()[MODEL]
        told = {
            "stage": "initiating",
            **self._counts(self._whole_record(state), {MODEL: state.model}),
            "step_squared": _distance_squared(
                model, state.model if state.anchor is None else state.anchor.groups[MODEL]
            ),
        }
        state = replace(state, model=model, told=told)
        return self._frozen(state) if context.round == method.schedule.initiating and not context.is_last else state

    def arrays(self, state: Adapters) -> Arrays:
        return state.whole(self.method.scale)

    def model_inputs(self, state: Adapters) -> Mapping[str, Record]:
        """The base and what was trained on it, so that no merged model is sent to be evaluated."""
        if state.base is None:
            return {MODEL: Record({MODEL: state.model})}
        return {MODEL: state.record(self.method.scale, self._rank_max), **state.beneath()}

    def report(self, state: Adapters) -> Info:
        """Stage, ranks, the aggregation's error, and what one client without a limit sends and receives; beside that
        what it reads when it is asked for the first time (`params_base`, `bytes_base`)."""
        return state.told

    # The initiating stage

    @property
    def changes_base(self) -> bool:
        """Whether what the adapters stand on may be another model than the one the run began with."""
        return self._full(1) or self.method.aggregation in ("stack", "residual") or self.method.shrink == "fold"

    def _full(self, round: int) -> bool:
        """Whether whole models travel in a round."""
        return self.method.init_mode == "full" and self.method.schedule.is_initiating(round)

    def _plan_whole(self, state: Adapters, context: RoundContext) -> Exchange:
        method = self.method
        inputs: dict[str, Record] = {MODEL: self._whole_record(state)}
        if state.anchor is not None and context.round == 1:
            inputs = {MODEL: state.anchor}  # the same arrays, which clients then hold
        elif state.anchor is not None:
            inputs[ANCHOR] = state.anchor
        return Exchange(
            jobs=context.jobs(inputs=tuple(inputs)),
            inputs=inputs,
            knobs={"mu": method.init_mu, "wire": method.wire, "tell_distance": True},
            rules=(SHARED,),
            accumulator="mean" if method.wire == "fp32" else SHARED,
            updates=packed_names({MODEL: state.model}, method.wire),
        )

    def _whole_record(self, state: Adapters) -> Record:
        groups, told = pack({MODEL: state.model}, self.method.wire)
        return Record(groups, told)

    def _frozen(self, state: Adapters) -> Adapters:
        """The switch to adapters: freeze the base, make factors that change nothing yet."""
        order = list(state.model)
        base = Record({MODEL: {n: array for n, array in state.model.items() if n not in state.head}}, {"order": order})
        head = {name: state.model[name] for name in order if name in state.head}
        a, b = self._fresh(state, self.method.schedule.rank_max)
        state = replace(state, model=head, base=Pinned.of(base), lora_a=a, lora_b=b, anchor=None)
        if self.method.start is not None:
            state = self._started(state, self.method.start)
        return self._with_frozen_a(state) if self.method.aggregation == "freeze_a" else state

    def _started(self, state: Adapters, folder: Path) -> Adapters:
        """The adapters of a folder; merged into the base at once where every round makes fresh factors."""
        state = started(state, folder, self.method.scale, self._rank_max)
        if self.method.aggregation != "stack":
            return state
        return self._restarted(replace(state, rank=self._rank_max), state.factors)

    # The annealing stage

    @property
    def _rank_max(self) -> int:
        return self.method.schedule.rank_max

    def _rank(self, state: Adapters, round: int) -> int:
        """r_t."""
        schedule = self.method.schedule
        return schedule.rank_max if schedule.is_initiating(round) else schedule.rank(round)

    def _ready(self, state: Adapters, round: int) -> Adapters:
        """The state as round `round` broadcasts it: its factors cut (or grown) to r_t."""
        rank = self._rank(state, round)
        if state.rank == rank:
            return state
        factors, folded = self._resized(state, rank)
        state = replace(
            state,
            rank=rank,
            lora_a={name: a for name, (a, _) in factors.items()},
            lora_b={name: b for name, (_, b) in factors.items()},
        )
        if folded:
            state = state.folded(_fold(folded, self.method.scale))
        return self._with_frozen_a(state) if self.method.aggregation == "freeze_a" else state

    def _resized(self, state: Adapters, rank: int) -> tuple[_Pairs, _Pairs]:
        """The factors at a rank, and what a cut that folds has taken off them."""
        method, factors = self.method, state.factors
        fresh, _ = self._fresh(state, rank)
        grown = resized(factors, fresh, rank)
        components = {name: ordered(a, b, method.shrink) for name, (a, b) in grown.items() if len(a) > rank}
        if not components:
            return grown, {}
        by_importance = method.allocation == "importance"
        ranks = ranks_by_importance(components, rank) if by_importance else uniform_ranks(components, rank)
        cut = {name: each.first(ranks[name]) for name, each in components.items()}
        rest = {name: each.rest(ranks[name]) for name, each in components.items() if len(each.a) > ranks[name]}
        return {**grown, **cut}, rest if method.shrink == "fold" and any(b.any() for _, b in rest.values()) else {}

    def _plan_adapters(self, state: Adapters, context: RoundContext) -> Exchange:
        method, ready = self.method, self._ready(state, context.round)
        beneath = ready.beneath()
        whole = self._broadcast(ready)
        records: dict[str, Record] = {MODEL: whole}
        jobs = []
        for client in context.cohort:
            name, limit = MODEL, self._limit(state, client)
            if limit is not None and limit < max(len(a) for a, _ in ready.factors.values()):
                name = f"model-{limit}"
                if name not in records:
                    records[name] = self._broadcast(_limited(ready, limit))
            jobs.append(Job(round=context.round, client=client, inputs=(name, *beneath)))
        return Exchange(
            jobs=tuple(jobs),
            inputs={**records, **beneath},
            knobs={
                "mu": self._mu(context.round),
                "wire": method.wire,
                "rate_factor": method.rate_factor,
                **method.knobs,
            },
            rules=method.rules,
            accumulator=self._accumulator(),
            updates=self._contents(ready),
        )

    def _broadcast(self, ready: Adapters) -> Record:
        """What a client of a round receives: head and factors, packed."""
        record = ready.record(self.method.scale, self._rank_max)
        if self.method.aggregation == "stack":
            record = self._without_factors(record, ready)
        groups, told = pack(record.groups, self.method.wire)
        return Record(groups, {**record.info, **told})

    def _without_factors(self, record: Record, ready: Adapters) -> Record:
        """The record with a seed for factors that are made anew in every round, which need not travel."""
        shapes = {name: [len(a), len(b), a.shape[1]] for name, (a, b) in ready.factors.items()}
        fresh = {"seed": self.method.seed, "restart": ready.restarts, "shapes": shapes}
        return Record({MODEL: record.groups[MODEL]}, {ADAPTERS: {**record.info[ADAPTERS], FRESH: fresh}})

    def _mu(self, round: int) -> float:
        return self.method.init_mu if self.method.schedule.is_initiating(round) else self.method.mu

    def _accumulator(self) -> str:
        """Means are enough where A is the same for all; everywhere else products are folded beside them."""
        return "mean" if self.method.aggregation == "freeze_a" and self.method.wire == "fp32" else SHARED

    def _limit(self, state: Adapters, client: int) -> int | None:
        """The largest rank a client can be given; None where there is no limit."""
        ranks = self.method.client_ranks
        return ranks[client % len(ranks)] if ranks else None

    def _finish_adapters(self, ready: Adapters, total: Total, context: RoundContext) -> Adapters:
        state, told = self._aggregated(ready, total, context)
        beneath = ready.beneath().values()
        counts = {
            **self._counts(self._broadcast(ready), self._sent(ready)),
            "params_base": sum(pinned.num_elements for pinned in beneath),
            "bytes_base": sum(pinned.num_bytes for pinned in beneath),
        }
        ranks = {name: len(a) for name, (a, _) in ready.factors.items()}
        stage = "initiating" if self.method.schedule.is_initiating(context.round) else "annealing"
        return replace(state, told={"stage": stage, "rank": ready.rank, "ranks": ranks, **counts, **told})

    def _aggregated(self, ready: Adapters, total: Total, context: RoundContext) -> tuple[Adapters, Info]:
        """The next global model of the fold of what the clients sent, and what there is to tell about it."""
        folded = self._means(total)
        means = folded.value()
        state, error = self._combined(replace(ready, model=means[MODEL]), means, folded)
        return state, {"aggregation_error": error}

    def _means(self, total: Total) -> Means:
        """The total of an exchange that is folded where its updates arise."""
        if isinstance(total, UpdateList):
            raise wrong_accumulator(self.method.name, sums.Accumulator, total)
        return total

    def _combined(self, state: Adapters, means: Groups, total: Means) -> tuple[Adapters, float]:
        """The next global factors, and how far they are from the clients' mean change."""
        if isinstance(total, RunningMean) or LORA_A not in means:
            return replace(state, lora_b=means[LORA_B]), 0.0
        products = total.products()
        ranks = {name: len(a) for name, (a, _) in state.factors.items()}
        if self.method.aggregation == "product_svd":
            fresh, _ = self._fresh(state, max(ranks.values()))
            cut = {name: product.truncated(ranks[name]) for name, product in products.items()}
            # A mean of few clients may have fewer components than that; the others change nothing, but can be trained.
            pairs = {name: grown(*pair, fresh[name][: ranks[name]]) for name, pair in cut.items()}
            a, b = {name: a for name, (a, _) in pairs.items()}, {name: b for name, (_, b) in pairs.items()}
            return replace(state, lora_a=a, lora_b=b), relative_error(products, a, b)
        if self.method.aggregation == "stack":
            pairs = {name: product.compact() for name, product in products.items()}
            return self._restarted(state, pairs), 0.0
        a, b = _padded(means[LORA_A], state.lora_a), _padded(means[LORA_B], state.lora_b)
        error = relative_error(products, a, b)
        state = replace(state, lora_a=a, lora_b=b)
        if self.method.aggregation != "residual" or not error:
            return state, error
        rest = {name: product.minus(a[name], b[name]).compact() for name, product in products.items()}
        return state.folded(_fold(rest, self.method.scale)), 0.0

    def _restarted(self, state: Adapters, pairs: _Pairs) -> Adapters:
        """The clients' mean change merged into the base, and factors made anew."""
        state = replace(state.folded(_fold(pairs, self.method.scale)), restarts=state.restarts + 1)
        a, b = self._fresh(state, state.rank)
        return replace(state, lora_a=a, lora_b=b)

    def _with_frozen_a(self, state: Adapters) -> Adapters:
        """The factors A put where all clients keep them."""
        return replace(state, frozen_a=Pinned.of(Record({LORA_A: state.lora_a})), lora_a={}) if state.lora_a else state

    def _fresh(self, state: Adapters, rank: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Factors that change nothing yet."""
        layers = state.shapes()
        a = fresh_a(self.method.seed, state.restarts, {name: (rank, layer.in_) for name, layer in layers.items()})
        return a, zero_b({name: (layer.out, rank) for name, layer in layers.items()})

    # What is counted

    def _sent(self, ready: Adapters) -> Groups:
        """Arrays shaped like those one client sends."""
        groups: dict[str, Arrays] = {MODEL: ready.model, LORA_A: ready.lora_a, LORA_B: ready.lora_b}
        return {group: arrays for group, arrays in groups.items() if group == MODEL or arrays}

    def _contents(self, ready: Adapters) -> Contents:
        """What a trained update contains, packed."""
        return packed_names(self._sent(ready), self.method.wire)

    def _counts(self, down: Record, up: Groups) -> dict[str, int]:
        """Elements and bytes of arrays, each way, for one client without a limit that holds the base."""
        sent = Record(pack(up, self.method.wire)[0])
        return {
            "params_down": down.num_elements,
            "params_up": sent.num_elements,
            "bytes_down": down.num_bytes,
            "bytes_up": sent.num_bytes,
        }


_Pairs = Mapping[str, tuple[Array, Array]]


def _fold(pairs: _Pairs, scale: float) -> Pinned:
    """Factors to be merged into the base, the scale in B."""
    a = {name: a for name, (a, _) in pairs.items()}
    b = {name: (b * np.float32(scale)).astype(np.float32) for name, (_, b) in pairs.items()}
    return Pinned.of(Record({LORA_A: a, LORA_B: b}))


def _distance_squared(model: Arrays, anchor: Arrays) -> float:
    """‖w - a‖² over the arrays that are floats."""
    return sum(
        float(np.square(array - anchor[name], dtype=np.float64).sum())
        for name, array in model.items()
        if array.dtype.kind == "f"
    )


def _limited(state: Adapters, limit: int) -> Adapters:
    """The state with the first components of each layer only."""
    a = {name: np.ascontiguousarray(a[:limit]) for name, a in state.lora_a.items()}
    return replace(state, lora_a=a, lora_b={n: np.ascontiguousarray(b[:, :limit]) for n, b in state.lora_b.items()})


def _padded(means: Arrays, like: Arrays) -> dict[str, Array]:
    """Means with zeros where no client of the round had a component."""
    padded = {}
    for name, mean in means.items():
        padded[name] = mean
        if mean.shape != like[name].shape:
            padded[name] = np.zeros(like[name].shape, mean.dtype)
            padded[name][tuple(slice(side) for side in mean.shape)] = mean
    return padded

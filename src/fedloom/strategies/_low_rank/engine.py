"""One engine for all low-rank strategies: stages, broadcasts, counts.

A round with adapters is: bring the factors to r_t, send them (with the head) to the cohort, aggregate the updates, make
the next global factors of it. A strategy is a `Method`: a value whose parts define the differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedloom.core.errors import ConfigError
from fedloom.core.pinned import Pinned
from fedloom.core.protocols import Strategy
from fedloom.core.records import (
    MODEL,
    Arrays,
    Exchange,
    Groups,
    Info,
    Job,
    Record,
    RoundContext,
)
from fedloom.strategies._low_rank.aggregation import Total, means_of
from fedloom.strategies._low_rank.layers import chosen_layers, layer_info
from fedloom.strategies._low_rank.method import Method
from fedloom.strategies._low_rank.setup import SHARED
from fedloom.strategies._low_rank.start import SETTING, started
from fedloom.strategies._low_rank.state import Adapters
from fedloom.strategies._low_rank.wire import pack, packed_names

ANCHOR = "anchor"
"""Name of the regulariser's anchor input, if it is not the round's model."""


class LowRank(Strategy[Adapters, Total]):
    """A low-rank strategy from first round to last."""

    State = Adapters

    def __init__(self, method: Method) -> None:
        self.method = method
        self._setup, self._schedule = method.setup, method.budget.schedule
        if method.budget.client_ranks and not method.aggregation.mixes_ranks:
            raise ConfigError(
                f"strategy.client_ranks: {list(method.budget.client_ranks)}, but clients of different ranks cannot "
                'share one frozen A; set strategy.aggregation to "factor", "product_svd", "stack" or "residual"'
            )
        if method.start is not None and self._sends_whole(1):
            raise ConfigError(
                f"{SETTING}: adapters start from the initial model, which the run's first rounds would change; "
                'set strategy.initiating_rounds = 0, or strategy.init_mode = "lora"'
            )

    # The interface of a strategy

    def init(self, model: Record) -> Adapters:
        layers = chosen_layers(model.info, self.method.targets, self._setup.rank_max)
        head = tuple(model.info.get("head", ())) if self.method.train_head else ()
        initiating = self.method.initiating
        anchored = initiating.mu > 0 and initiating.to_pretrained and self._sends_whole(1)
        state = Adapters(
            model=model.groups[MODEL],
            layers={name: layer_info(layer) for name, layer in layers.items()},
            head=head,
            anchor=Pinned.of(Record({MODEL: model.groups[MODEL]})) if anchored else None,
        )
        return state if self._sends_whole(1) else self._with_adapters(state)

    def plan(self, state: Adapters, context: RoundContext) -> Exchange | None:
        if self._sends_whole(context.round):
            return self._plan_whole(state, context)
        return self._plan_adapters(self._ready(state, context.round), context)

    def finish(self, state: Adapters, total: Total, context: RoundContext) -> Adapters:
        if self._sends_whole(context.round):
            return self._finish_whole(state, total, context)
        return self._finish_adapters(self._ready(state, context.round), total, context)

    def arrays(self, state: Adapters) -> Arrays:
        return self.published(state).whole(self._setup.scale)

    def published(self, state: Adapters) -> Adapters:
        """Return the state whose model is evaluated, saved and exported: the method's own choice."""
        return self.method.aggregation.published(state)

    def model_inputs(self, state: Adapters) -> Mapping[str, Record]:
        """Return the base and the arrays trained on it, so that no merged model is sent for evaluation."""
        state = self.published(state)
        if state.base is None:
            return {MODEL: Record({MODEL: state.model})}
        return {MODEL: state.record(self._setup.scale, self._setup.rank_max), **state.beneath()}

    def report(self, state: Adapters) -> Info:
        """Return stage, ranks, the aggregation's error, and the traffic of one client without a limit; in addition
        the size of its first read (`params_base`, `bytes_base`)."""
        return state.reported

    @property
    def changes_base(self) -> bool:
        """Return whether the base of the adapters may differ from the initial model."""
        return self._sends_whole(1) or self.method.aggregation.changes_base or self.method.resizing.changes_base

    # Rounds with whole models

    def _sends_whole(self, round: int) -> bool:
        return self.method.initiating.whole and self._schedule.is_initiating(round)

    def _plan_whole(self, state: Adapters, context: RoundContext) -> Exchange:
        wire = self._setup.wire
        inputs: dict[str, Record] = {MODEL: self._whole_record(state)}
        if state.anchor is not None and context.round == 1:
            inputs = {MODEL: state.anchor}  # the same arrays, which clients then have cached
        elif state.anchor is not None:
            inputs[ANCHOR] = state.anchor
        return Exchange(
            jobs=context.jobs(inputs=tuple(inputs)),
            inputs=inputs,
            knobs={"mu": self.method.initiating.mu, "wire": wire, "tell_distance": True},
            rules=(SHARED,),
            accumulator="mean" if wire == "fp32" else SHARED,
            updates=packed_names({MODEL: state.model}, wire),
        )

    def _whole_record(self, state: Adapters) -> Record:
        groups, reported = pack({MODEL: state.model}, self._setup.wire)
        return Record(groups, reported)

    def _finish_whole(self, state: Adapters, total: Total, context: RoundContext) -> Adapters:
        model = means_of(total, self._setup.strategy).value()[MODEL]
        anchor = state.model if state.anchor is None else state.anchor.groups[MODEL]
        reported = {
            "stage": "initiating",
            **self._counts(self._whole_record(state), {MODEL: state.model}),
            "step_squared": _distance_squared(model, anchor),
        }
        state = replace(state, model=model, reported=reported)
        is_last = context.round == self._schedule.initiating
        return self._with_adapters(state) if is_last and not context.is_last else state

    def _with_adapters(self, state: Adapters) -> Adapters:
        """Switch to adapters: freeze the base, and add the first factors."""
        order = list(state.model)
        base = Record({MODEL: {n: array for n, array in state.model.items() if n not in state.head}}, {"order": order})
        head = {name: state.model[name] for name in order if name in state.head}
        a, b = self._setup.fresh(state, self._setup.rank_max)
        state = replace(state, model=head, base=Pinned.of(base), lora_a=a, lora_b=b, anchor=None)
        if self.method.start is not None:
            state = started(state, self.method.start, self._setup.scale, self._setup.rank_max)
        return self.method.aggregation.begin(state, given=self.method.start is not None)

    # Rounds with adapters

    def _ready(self, state: Adapters, round: int) -> Adapters:
        """Return the state as a round broadcasts it, its factors at r_t."""
        rank = self.method.budget.rank(state, round)
        if state.rank == rank:
            return state
        state = replace(self.method.resizing.resize(state, rank), rank=rank)
        return self.method.aggregation.resized(state)

    def _plan_adapters(self, ready: Adapters, context: RoundContext) -> Exchange:
        method = self.method
        beside = {**ready.beneath(), **method.aggregation.inputs(ready)}
        records: dict[str, Record] = {MODEL: self._broadcast(ready)}
        jobs = []
        for client in context.cohort:
            name, limit = MODEL, method.budget.limit(ready, client)
            if limit is not None and limit < max(len(a) for a, _ in ready.factors.values()):
                name = f"model-{limit}"
                if name not in records:
                    records[name] = self._broadcast(_limited(ready, limit))
            jobs.append(Job(round=context.round, client=client, inputs=(name, *beside)))
        return Exchange(
            jobs=tuple(jobs),
            inputs={**records, **beside},
            knobs=self._knobs(context.round),
            rules=method.rules,
            accumulator=method.aggregation.accumulator,
            updates=packed_names(method.aggregation.sent(ready), self._setup.wire),
        )

    def _knobs(self, round: int) -> Info:
        method = self.method
        mu = method.initiating.mu if self._schedule.is_initiating(round) else method.mu
        return {"mu": mu, "wire": self._setup.wire, "rate_factor": method.rate_factor, **method.knobs}

    def _broadcast(self, ready: Adapters) -> Record:
        """Return the broadcast to a client of a round, packed."""
        record = ready.record(self._setup.scale, self._setup.rank_max)
        record = self.method.aggregation.broadcast(ready, record)
        groups, reported = pack(record.groups, self._setup.wire)
        return Record(groups, {**record.info, **reported})

    def _finish_adapters(self, ready: Adapters, total: Total, context: RoundContext) -> Adapters:
        aggregation = self.method.aggregation
        state, reported = aggregation.combine(ready, total)
        beneath = ready.beneath().values()
        counts = {
            **self._counts(self._broadcast(ready), aggregation.sent(ready)),
            "params_base": sum(pinned.num_elements for pinned in beneath),
            "bytes_base": sum(pinned.num_bytes for pinned in beneath),
        }
        ranks = {name: len(a) for name, (a, _) in ready.factors.items()}
        stage = "initiating" if self._schedule.is_initiating(context.round) else "annealing"
        return replace(state, reported={"stage": stage, "rank": ready.rank, "ranks": ranks, **counts, **reported})

    def _counts(self, down: Record, up: Groups) -> dict[str, int]:
        """Count elements and bytes of arrays, each way, for one client without a limit that has cached the base."""
        sent = Record(pack(up, self._setup.wire)[0])
        return {
            "params_down": down.num_elements,
            "params_up": sent.num_elements,
            "bytes_down": down.num_bytes,
            "bytes_up": sent.num_bytes,
        }


def _distance_squared(model: Arrays, anchor: Arrays) -> float:
    """‖w - a‖² over the arrays that are floats."""
    return sum(
        float(np.square(array - anchor[name], dtype=np.float64).sum())
        for name, array in model.items()
        if array.dtype.kind == "f"
    )


def _limited(state: Adapters, limit: int) -> Adapters:
    """Return the state with only the first components of each layer."""
    a = {name: np.ascontiguousarray(a[:limit]) for name, a in state.lora_a.items()}
    b = {name: np.ascontiguousarray(b[:, :limit]) for name, b in state.lora_b.items()}
    return replace(state, lora_a=a, lora_b=b)

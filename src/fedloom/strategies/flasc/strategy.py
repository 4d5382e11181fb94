"""FLASC, the server half: dense factors on the server, their largest entries on the wire."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedloom.adapters.names import ADAPTERS, LORA_A, LORA_B
from fedloom.core.config import Experiment
from fedloom.core.records import MODEL, Groups, Info, Record
from fedloom.strategies._low_rank.aggregation import Aggregation, Total, means_of
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import fixed_rank
from fedloom.strategies._low_rank.setup import Setup
from fedloom.strategies._low_rank.state import Adapters
from fedloom.strategies.flasc.config import Config
from fedloom.strategies.flasc.rule import SPARSE
from fedloom.strategies.flasc.sparse import KEPT, Shapes, blank, factors, flat, largest, sparse


class SparseChanges(Aggregation):
    """w ← w + η Σ p_k top(w_k - top(w)), w all factors as one vector, top its largest entries at a density.

    Kuo et al. 2024, "Federated LoRA with Sparse Communication" (arXiv 2406.05233). Densities of 1 and η = 1 are
    federated LoRA.
    """

    accumulator = "flasc"

    def __init__(self, setup: Setup, config: Config) -> None:
        super().__init__(setup)
        self._config = config

    def broadcast(self, ready: Adapters, record: Record) -> Record:
        kept = sparse(flat(record.groups), self._config.density_down)
        shapes = {name: list(shape) for name, shape in _shapes(ready).items()}
        return Record({MODEL: ready.model, KEPT: kept}, {ADAPTERS: {**record.info[ADAPTERS], SPARSE: shapes}})

    def sent(self, ready: Adapters) -> Groups:
        size = sum(rank * (out + in_) for rank, out, in_ in _shapes(ready).values())
        return {MODEL: ready.model, KEPT: blank(size, self._config.density_up)}

    def published(self, state: Adapters) -> Adapters:
        """Return the state with the entries of its factors that the last round's clients read, the others zero.

        The authors' code evaluates so, with the mask of the round's beginning on the factors of its end.
        """
        if not state.lora_a:
            return state
        now = flat({LORA_A: state.lora_a, LORA_B: state.lora_b})
        before = flat({LORA_A: state.before_a, LORA_B: state.before_b}) if state.before_a else now
        kept = factors(np.where(largest(before, self._config.density_down), now, np.float32(0)), _shapes(state))
        return replace(state, lora_a=kept[LORA_A], lora_b=kept[LORA_B])

    def combine(self, ready: Adapters, total: Total) -> tuple[Adapters, Info]:
        means = means_of(total, self.setup.strategy).value()
        before = flat({LORA_A: ready.lora_a, LORA_B: ready.lora_b})
        after = factors(before + np.float32(self._config.server_learning_rate) * means[KEPT]["change"], _shapes(ready))
        return replace(
            ready,
            model=means[MODEL],
            lora_a=after[LORA_A],
            lora_b=after[LORA_B],
            before_a=ready.lora_a,
            before_b=ready.lora_b,
        ), {}


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """Return the strategy a `Config` describes."""
    method = fixed_rank(config, config.rank, experiment)
    aggregation = SparseChanges(method.setup, config)
    return LowRank(replace(method, aggregation=aggregation, rules=("flasc",), knobs={"density_up": config.density_up}))


def _shapes(state: Adapters) -> Shapes:
    return {name: (len(a), len(b), a.shape[1]) for name, (a, b) in state.factors.items()}

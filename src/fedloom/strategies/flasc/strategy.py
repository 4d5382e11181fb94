"""FLASC, the server half: dense factors on the server, their largest entries on the wire."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedloom.core.config import Experiment
from fedloom.core.records import ADAPTERS, LORA_A, LORA_B, MODEL, Contents, Groups, Info, Record, RoundContext
from fedloom.strategies._low_rank.engine import LowRank, Total
from fedloom.strategies._low_rank.method import Method, shared_method
from fedloom.strategies._low_rank.schedule import constant
from fedloom.strategies._low_rank.state import Adapters
from fedloom.strategies._low_rank.wire import pack, packed_names
from fedloom.strategies.flasc.config import Config
from fedloom.strategies.flasc.rule import SPARSE
from fedloom.strategies.flasc.sparse import KEPT, Shapes, factors, flat, sparse


class Flasc(LowRank):
    """w ← w + η Σ p_k top(w_k - top(w)), w all factors as one vector, top its largest entries at a density.

    Kuo et al. 2024, "Federated LoRA with Sparse Communication" (arXiv 2406.05233). Densities of 1 and η = 1 are
    federated LoRA.
    """

    def __init__(self, method: Method, config: Config) -> None:
        super().__init__(method)
        self._config = config

    def _broadcast(self, ready: Adapters) -> Record:
        record = ready.record(self.method.scale, self._rank_max)
        kept = sparse(flat(record.groups), self._config.density_down)
        groups, told = pack({MODEL: ready.model, KEPT: kept}, self.method.wire)
        adapters = {**record.info[ADAPTERS], SPARSE: {name: list(shape) for name, shape in _shapes(ready).items()}}
        return Record(groups, {ADAPTERS: adapters, **told})

    def _accumulator(self) -> str:
        return "flasc"

    def _aggregated(self, ready: Adapters, total: Total, context: RoundContext) -> tuple[Adapters, Info]:
        means = self._means(total).value()
        before = flat({LORA_A: ready.lora_a, LORA_B: ready.lora_b})
        after = factors(before + np.float32(self._config.server_learning_rate) * means[KEPT]["change"], _shapes(ready))
        return replace(ready, model=means[MODEL], lora_a=after[LORA_A], lora_b=after[LORA_B]), {}

    def _sent(self, ready: Adapters) -> Groups:
        vector = flat({LORA_A: ready.lora_a, LORA_B: ready.lora_b})
        return {MODEL: ready.model, KEPT: sparse(vector, self._config.density_up)}

    def _contents(self, ready: Adapters) -> Contents:
        kept = sparse(np.ones(1, np.float32), 1.0)  # the names are those of any sparse vector
        return packed_names({MODEL: ready.model, KEPT: kept}, self.method.wire)


def build_strategy(config: Config, experiment: Experiment) -> Flasc:
    """The strategy a `Config` describes."""
    method = shared_method(config, experiment, constant(experiment.rounds_known("strategy 'flasc'"), config.rank))
    return Flasc(replace(method, rules=("flasc",), knobs={"density_up": config.density_up}), config)


def _shapes(state: Adapters) -> Shapes:
    return {name: (len(a), len(b), a.shape[1]) for name, (a, b) in state.factors.items()}

"""HetLoRA, the server half: truncate to each client's rank, pad with zeros, weight by what was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedloom.adapters.names import LORA_A, LORA_B
from fedloom.core.accumulators import UpdateList
from fedloom.core.config import Experiment
from fedloom.core.errors import BadUpdate
from fedloom.core.records import MODEL, Array, Groups, Info
from fedloom.strategies._accumulators import wrong_accumulator
from fedloom.strategies._low_rank.aggregation import Aggregation, Total
from fedloom.strategies._low_rank.budget import Budget
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import fixed_rank
from fedloom.strategies._low_rank.products import MeanProduct
from fedloom.strategies._low_rank.state import Adapters
from fedloom.strategies._low_rank.wire import unpack
from fedloom.strategies.hetlora.config import Config


class LearnedWeights(Aggregation):
    """A' = Σ p_k [A_k; 0] and B' = Σ p_k [B_k 0] with p_k ∝ ‖B_k A_k‖_F, all layers of a client together.

    Cho et al. 2024, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models" (EMNLP 2024, arXiv
    2401.06432). A client that pruned itself has the smaller rank in later rounds. Heads are averaged with n_k.
    """

    accumulator = "separate"

    def combine(self, ready: Adapters, total: Total) -> tuple[Adapters, Info]:
        if not isinstance(total, UpdateList):
            raise wrong_accumulator(self.setup.strategy, UpdateList, total)
        sent = {client: unpack(update.groups, update.info) for client, update in total.updates}
        learned = np.array([_learned(groups) for groups in sent.values()])
        shares = learned / learned.sum() if learned.sum() > 0 else np.full(len(sent), 1 / len(sent))
        sizes = np.array([float(update.num_examples) for _, update in total.updates])
        if not sizes.sum() > 0:
            raise BadUpdate(f"the {len(sent)} updates of this round are based on no examples")
        groups = list(sent.values())
        state = replace(
            ready,
            model=_weighted([each[MODEL] for each in groups], sizes / sizes.sum(), ready.model),
            lora_a=_weighted([each[LORA_A] for each in groups], shares, ready.lora_a),
            lora_b=_weighted([each[LORA_B] for each in groups], shares, ready.lora_b),
            memory={**ready.memory, **_ranks(sent, ready)},
        )
        return state, {"client_ranks": {client: int(rank) for client, rank in state.memory.items()}}


class PrunedRanks(Budget):
    """Limits as configured, and the reduced rank of a client that pruned itself."""

    def limit(self, state: Adapters, client: int) -> int | None:
        known = state.memory.get(str(client))
        return int(known) if known is not None else super().limit(state, client)


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """Return the strategy a `Config` describes."""
    method = fixed_rank(config, config.rank, experiment)
    return LowRank(
        replace(
            method,
            budget=PrunedRanks(method.budget.schedule, config.client_ranks),
            aggregation=LearnedWeights(method.setup),
            rules=("hetlora",),
            knobs={"gamma": config.gamma, "penalty": config.penalty},
        )
    )


def _learned(groups: Groups) -> float:
    """‖B A‖_F over all layers of one client's update."""
    norms = [MeanProduct(a, groups[LORA_B][name]).norm() for name, a in groups[LORA_A].items()]
    return float(np.sqrt(sum(norm**2 for norm in norms)))


def _ranks(sent: Mapping[int, Groups], ready: Adapters) -> dict[str, float]:
    """Return the ranks of clients that have less than the global factors."""
    ranks = {client: max(len(a) for a in groups[LORA_A].values()) for client, groups in sent.items()}
    return {str(client): float(rank) for client, rank in ranks.items() if rank < ready.rank}


def _weighted(arrays: Sequence[Mapping[str, Array]], shares: Array, like: Mapping[str, Array]) -> dict[str, Array]:
    """Σ shares_k arrays_k, smaller ones padded with zeros to the shapes of `like`."""
    result = {name: np.zeros(array.shape, np.float32) for name, array in like.items()}
    for share, named in zip(shares, arrays, strict=True):
        for name, array in named.items():
            result[name][tuple(slice(side) for side in array.shape)] += np.float32(share) * array
    return {name: total.astype(like[name].dtype) for name, total in result.items()}

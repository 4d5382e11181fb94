"""FLoRA, the server half, made of parts of the low-rank family."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.config import Experiment
from fedloom.strategies._low_rank.aggregation import Stack
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import fixed_rank
from fedloom.strategies.flora.config import Config


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """B = [p_1 B_1 … p_K B_K] and A = [A_1; …; A_K], so B A = Σ p_k B_k A_k exactly, for any mixture of ranks.

    Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations" (NeurIPS
    2024, arXiv 2409.05976). The stack is added to the base W of everybody, and the adapters begin again: each client's
    A is its own draw, as in the authors' code.
    """
    method = fixed_rank(config, config.rank, experiment)
    return LowRank(replace(method, aggregation=Stack(method.setup)))

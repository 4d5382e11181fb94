"""FLoRA, the server half: the engine whose rounds end with a merge and begin with fresh factors."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.config import Experiment
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import shared_method
from fedloom.strategies._low_rank.schedule import constant
from fedloom.strategies.flora.config import Config


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """B = [p_1 B_1 … p_K B_K] and A = [A_1; …; A_K], so B A = Σ p_k B_k A_k exactly, for any mixture of ranks.

    Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations" (NeurIPS
    2024, arXiv 2409.05976). The stack is added to the base W of everybody, and the adapters begin again.
    """
    method = shared_method(config, experiment, constant(experiment.rounds_known("strategy 'flora'"), config.rank))
    return LowRank(replace(method, aggregation="stack", client_ranks=config.client_ranks))

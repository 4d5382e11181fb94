"""FedLoRA, the server half, made of parts of the low-rank family."""

from __future__ import annotations

from fedloom.core.config import Experiment
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import fixed_rank
from fedloom.strategies.fedlora.config import Config


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """Return FedLoRA: A' = Σ p_k A_k and B' = Σ p_k B_k at a fixed rank r, the base frozen.

    Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning" (arXiv 2305.05644).
    """
    return LowRank(fixed_rank(config, config.rank, experiment))

"""FFA-LoRA, the server half, made of parts of the low-rank family."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.config import Experiment
from fedloom.strategies._low_rank.aggregation import FreezeA
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import fixed_rank
from fedloom.strategies.ffa_lora.config import Config


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """B' = Σ p_k B_k with A as it was drawn: Σ p_k B_k A = B' A, so the mean is exact; r·o elements go up.

    Sun et al., "Improving LoRA in Privacy-preserving Federated Learning" (ICLR 2024, arXiv 2403.12313).
    """
    method = fixed_rank(config, config.rank, experiment)
    return LowRank(replace(method, aggregation=FreezeA(method.setup)))

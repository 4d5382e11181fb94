"""FlexLoRA, the server half, made of parts of the low-rank family."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.config import Experiment
from fedloom.strategies._low_rank.aggregation import ProductSvd
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import fixed_rank
from fedloom.strategies.flexlora.config import Config


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """M = Σ p_k B_k A_k = U Σ Vᵀ; client k gets B = U_{r_k} Σ_{r_k} and A = V_{r_k}ᵀ, the best of its rank.

    Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources" (NeurIPS
    2024, arXiv 2402.11505). The paper's s_k = alpha/r_k is one constant s here, so it cancels.
    """
    method = fixed_rank(config, config.rank, experiment)
    return LowRank(replace(method, aggregation=ProductSvd(method.setup)))

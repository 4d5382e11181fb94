"""FlexLoRA: the mean of the clients' products, cut by SVD to each client's rank (Bai et al. 2024)."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.config import Experiment
from fedloom.strategies._low_rank.aggregation import ProductSvd
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import fixed_rank
from fedloom.strategies._low_rank.report import build_report
from fedloom.strategies._low_rank.settings import HeterogeneousSettings, Rank
from fedloom.strategies._low_rank.study import build_study

__all__ = ["Config", "build_report", "build_strategy", "build_study"]


class Config(HeterogeneousSettings):
    """Federated LoRA by SVD of the mean product. Cohort, weighting and quorum are settings of the run."""

    name: str = "flexlora"
    rank: Rank = 8
    """r of the global factors, and of a client without a limit."""


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """M = Σ p_k B_k A_k = U Σ Vᵀ; client k gets B = U_{r_k} Σ_{r_k} and A = V_{r_k}ᵀ, the best of its rank.

    Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources" (NeurIPS
    2024, arXiv 2402.11505). The paper's s_k = alpha/r_k is one constant s here, so it cancels.
    """
    method = fixed_rank(config, config.rank, experiment)
    return LowRank(replace(method, aggregation=ProductSvd(method.setup)))

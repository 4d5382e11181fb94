"""Federated LoRA with one fixed rank: the mean of the clients' factors (FedIT, Zhang et al. 2024)."""

from __future__ import annotations

from fedloom.core.config import Experiment
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import fixed_rank
from fedloom.strategies._low_rank.report import build_report
from fedloom.strategies._low_rank.settings import HeterogeneousSettings, Rank
from fedloom.strategies._low_rank.study import build_study

__all__ = ["Config", "build_report", "build_strategy", "build_study"]


class Config(HeterogeneousSettings):
    """Fixed-rank federated LoRA. Cohort, weighting and quorum are settings of the run, not of the strategy."""

    name: str = "fedlora"
    rank: Rank = 8
    """r of every adapter in every round."""


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """Return FedLoRA: A' = Σ p_k A_k and B' = Σ p_k B_k at a fixed rank r, the base frozen.

    Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning" (arXiv 2305.05644).
    """
    return LowRank(fixed_rank(config, config.rank, experiment))

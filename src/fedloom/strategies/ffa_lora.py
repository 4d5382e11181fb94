"""FFA-LoRA: the factors A stay at their shared first values, only B is trained and averaged (Sun et al. 2024)."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.config import Experiment
from fedloom.strategies._low_rank.aggregation import FreezeA
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import fixed_rank
from fedloom.strategies._low_rank.report import build_report
from fedloom.strategies._low_rank.settings import LowRankSettings, Rank
from fedloom.strategies._low_rank.study import build_study

__all__ = ["Config", "build_report", "build_strategy", "build_study"]


class Config(LowRankSettings):
    """Federated LoRA with frozen A. Cohort, weighting and quorum are settings of the run, not of the strategy."""

    name: str = "ffa_lora"
    rank: Rank = 8
    """r of every adapter in every round."""


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """B' = Σ p_k B_k with A as it was drawn: Σ p_k B_k A = B' A, so the mean is exact; r·o elements go up.

    Sun et al., "Improving LoRA in Privacy-preserving Federated Learning" (ICLR 2024, arXiv 2403.12313).
    """
    method = fixed_rank(config, config.rank, experiment)
    return LowRank(replace(method, aggregation=FreezeA(method.setup)))

"""FLoRA: clients' adapters are stacked, merged into the base and reinitialised (Wang et al. 2024)."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.config import Experiment
from fedloom.strategies._low_rank.aggregation import Stack
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import fixed_rank
from fedloom.strategies._low_rank.report import build_report
from fedloom.strategies._low_rank.settings import HeterogeneousSettings, Rank
from fedloom.strategies._low_rank.study import build_study

__all__ = ["Config", "build_report", "build_strategy", "build_study"]


class Config(HeterogeneousSettings):
    """Federated LoRA by stacking. Cohort, weighting and quorum are settings of the run, not of the strategy."""

    name: str = "flora"
    rank: Rank = 8
    """r of a client without a limit."""


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """B = [p_1 B_1 … p_K B_K] and A = [A_1; …; A_K], so B A = Σ p_k B_k A_k exactly, for any mixture of ranks.

    Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations" (NeurIPS
    2024, arXiv 2409.05976). The stack is added to the base W of everybody, and the adapters begin again: each client's
    A is its own draw, as in the authors' code.
    """
    method = fixed_rank(config, config.rank, experiment)
    return LowRank(replace(method, aggregation=Stack(method.setup)))

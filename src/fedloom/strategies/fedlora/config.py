"""Settings of FedLoRA."""

from __future__ import annotations

from fedloom.strategies._low_rank.settings import HeterogeneousSettings, Rank


class Config(HeterogeneousSettings):
    """Fixed-rank federated LoRA. Cohort, weighting and quorum are settings of the run, not of the strategy."""

    name: str = "fedlora"
    rank: Rank = 8
    """r of every adapter in every round."""

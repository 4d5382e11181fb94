"""Settings of FFA-LoRA."""

from __future__ import annotations

from fedloom.strategies._low_rank.settings import LowRankSettings, Rank


class Config(LowRankSettings):
    """Federated LoRA with frozen A. Cohort, weighting and quorum are settings of the run, not of the strategy."""

    name: str = "ffa_lora"
    rank: Rank = 8
    """r of every adapter in every round."""

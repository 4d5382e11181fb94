"""Settings of FLoRA."""

from __future__ import annotations

from fedloom.strategies._low_rank.settings import HeterogeneousSettings, Rank


class Config(HeterogeneousSettings):
    """Federated LoRA by stacking. Cohort, weighting and quorum are settings of the run, not of the strategy."""

    name: str = "flora"
    rank: Rank = 8
    """r of a client without a limit."""

"""Settings of FlexLoRA."""

from __future__ import annotations

from fedloom.strategies._low_rank.settings import HeterogeneousSettings, Rank


class Config(HeterogeneousSettings):
    """Federated LoRA by SVD of the mean product. Cohort, weighting and quorum are settings of the run."""

    name: str = "flexlora"
    rank: Rank = 8
    """r of the global factors, and of a client without a limit."""

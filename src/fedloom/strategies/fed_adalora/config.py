"""Settings of federated AdaLoRA."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedloom.strategies._low_rank.settings import LowRankSettings, Rank

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Config(LowRankSettings):
    """Federated AdaLoRA. Cohort, weighting and quorum are settings of the run, not of the strategy."""

    name: str = "fed_adalora"
    rank_max: Rank = 12
    """Rank every layer starts with (AdaLoRA's `init_r`)."""
    rank_min: Rank = 8
    """Mean rank of the layers at the end (AdaLoRA's `target_r`)."""
    heating: Share = 0.1
    """Fraction of the rounds before the total begins to decrease."""
    cooling: Share = 0.2
    """Fraction of the rounds at the end in which it is constant."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.85
    """Decay of the smoothed importance, β₁."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.85
    """Decay of its smoothed uncertainty, β₂."""
    orthogonality: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.5
    """Weight of the penalty that keeps A's rows and B's columns orthonormal (dimensionless)."""

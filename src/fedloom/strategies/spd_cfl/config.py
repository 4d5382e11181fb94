"""Settings of SPD-CFL. Only the paper's abstract was available: all of them are ours."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedloom.strategies._low_rank.settings import LowRankSettings, Rank


class Config(LowRankSettings):
    """Stepwise rank dropping, reconstructed from an abstract. `mu` ties factors to the round's global ones."""

    name: str = "spd_cfl"
    rank_max: Rank = 16
    """Rank of the first rounds."""
    rank_min: Rank = 2
    """Minimum rank."""
    step_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Factor of the rank at a step."""
    target_loss: Annotated[float, Field(gt=0.0)] | None = None
    """Mean training loss up to which a step may be made; None uses consistency alone."""
    consistency: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.9
    """Cosine of two successive rounds' sensitivities from which a step may be made."""
    mu_previous: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """Weight of the term that ties factors to the global ones a round ago (dimensionless); above 0 they are sent,
    too."""

"""Settings of FLASC."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedloom.strategies._low_rank.settings import LowRankSettings, Rank

Density = Annotated[float, Field(gt=0.0, le=1.0)]


class Config(LowRankSettings):
    """Sparse communication of adapters. Cohort, weighting and quorum are settings of the run, not of the strategy."""

    name: str = "flasc"
    rank: Rank = 16
    """r of every adapter in every round."""
    density_down: Density = 0.25
    """Share of the factors' entries that are sent to clients; the largest by magnitude, over all layers."""
    density_up: Density = 0.25
    """Share of the entries of a client's change that it sends."""
    server_learning_rate: Annotated[float, Field(gt=0.0)] = 1.0
    """What the clients' mean change is multiplied by before it is added."""

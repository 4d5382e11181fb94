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
    """Fraction of the factors' entries that are sent to clients; the largest by magnitude, over all layers."""
    density_up: Density = 0.25
    """Fraction of the entries of its change that a client sends."""
    server_learning_rate: Annotated[float, Field(gt=0.0)] = 1.0
    """Factor of the clients' mean change before it is added."""

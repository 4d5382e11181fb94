"""Settings of HetLoRA."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedloom.strategies._low_rank.settings import HeterogeneousSettings, Rank


class Config(HeterogeneousSettings):
    """Heterogeneous LoRA with self-pruning. Weights of the adapters are the method's own, not `round.weighting`'s."""

    name: str = "hetlora"
    rank: Rank = 8
    """r of the global factors, and of a client without a limit."""
    gamma: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
    """Fraction of its rank r that remains when a client prunes itself: ⌊gamma · r⌋."""
    penalty: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1e-3
    """Weight λ of ‖B_tail‖ ‖A_tail‖ in the local loss (dimensionless), the tail being what pruning would cut; 0 trains
    without it, and still prunes."""

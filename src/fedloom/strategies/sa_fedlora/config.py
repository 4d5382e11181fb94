"""Settings of SA-FedLoRA. Names the paper leaves open, and all values, are ours; see the README."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedloom.strategies._low_rank.aggregation import AggregationName
from fedloom.strategies._low_rank.resizing import Allocation
from fedloom.strategies._low_rank.schedule import Law, Order
from fedloom.strategies._low_rank.settings import HeterogeneousSettings, Rank
from fedloom.strategies._low_rank.shrink import Operator

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Config(HeterogeneousSettings):
    """SA-FedLoRA, reconstructed from its abstract. Cohort, weighting and quorum are settings of the run."""

    name: str = "sa_fedlora"
    initiating_rounds: Annotated[int, Field(ge=0)] | None = None
    """Rounds of the initiating stage, T_i; None takes ⌈`initiating_fraction` · rounds⌉."""
    initiating_fraction: Share = 0.06
    """Fraction of the rounds in the initiating stage, if `initiating_rounds` is not given. With whole models in it, the
    saving is at most one minus this fraction."""
    init_mode: Literal["full", "lora"] = "full"
    """What the initiating stage trains and sends: `full` the whole model, `lora` adapters of rank `rank_max` for
    clients without memory for a whole model's gradients."""
    init_mu: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.01
    """Weight μ of the initiating stage's regulariser μ/2 ‖w - a‖² (dimensionless). (`mu` is that of the annealing
    stage.)"""
    anchor: Literal["global", "pretrained"] = "global"
    """Anchor of the regulariser, a: the round's global model, or the pretrained one (each client then reads
    that once more). `init_mode = "lora"` supports only `global`."""
    rank_max: Rank = 16
    """r_max, the rank annealing starts from."""
    rank_min: Rank = 2
    """r_min, the rank it ends with."""
    law: Law = "cubic"
    """Law of the rank between the plateau and the cooled end."""
    heating: Share = 0.1
    """Fraction h of the annealing rounds with `rank_max`."""
    cooling: Share = 0.2
    """Fraction c of the annealing rounds with `rank_min`."""
    step_rounds: Annotated[int, Field(ge=1)] = 5
    """Rounds between two steps, for the law `step`."""
    step_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Factor of the rank at a step, for the law `step`."""
    order: Order = "falling"
    """`falling` anneals; `rising` (the same ranks in reverse) and `level` (the same total, evenly) are its controls."""
    shrink: Operator = "svd"
    """Reduction of factors to a smaller rank: `svd` keeps the largest singular values, `slice` the first components,
    `score` those of largest norm; `fold` is `svd` with the part cut off added to the base (clients read that once)."""
    aggregation: AggregationName = "factor"
    """`factor` averages A and B separately; `product_svd` cuts the mean of the products; `stack` adds that mean to the
    base and reinitialises the adapters; `freeze_a` shares one A and averages B; `residual` is `factor` with the
    difference to the mean of the products added to the base."""
    allocation: Allocation = "uniform"
    """`uniform` gives every layer the same rank; `importance` (ours) distributes the same total over the layers by the
    importance of their components."""

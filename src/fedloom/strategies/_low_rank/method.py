"""What makes one low-rank strategy differ from the next, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedloom.core.config import Experiment
from fedloom.core.records import Info
from fedloom.strategies._low_rank.aggregate import Aggregation
from fedloom.strategies._low_rank.schedule import Schedule
from fedloom.strategies._low_rank.settings import LowRankSettings
from fedloom.strategies._low_rank.shrink import Operator
from fedloom.strategies._low_rank.wire import Wire

SHARED = "_low_rank"
"""Folder of the shared rule and accumulator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A low-rank strategy's stages, budget, and ways to shrink and to aggregate."""

    name: str
    """The strategy's, as a user knows it."""
    schedule: Schedule
    targets: tuple[str, ...]
    scale: float
    seed: int
    """Of the run: the first factors A are drawn from it."""
    train_head: bool = True
    wire: Wire = "fp32"
    init_mode: Literal["full", "lora"] = "full"
    """What is trained in the initiating rounds."""
    init_mu: float = 0.0
    """Weight of the regulariser in the initiating rounds."""
    init_anchor: Literal["global", "pretrained"] = "global"
    mu: float = 0.0
    """Weight of the regulariser in the annealing rounds."""
    rate_factor: float = 1.0
    """On the clients' step size in adapter rounds."""
    shrink: Operator = "svd"
    allocation: Literal["uniform", "importance"] = "uniform"
    aggregation: Aggregation = "factor"
    client_ranks: tuple[int, ...] = ()
    start: Path | None = None
    """Folder of the adapters a run starts from."""
    rules: tuple[str, ...] = (SHARED,)
    knobs: Info = field(default_factory=dict)
    """For the clients of annealing rounds, beside those of the shared rule."""


def shared_method(config: LowRankSettings, experiment: Experiment, schedule: Schedule) -> Method:
    """The shared settings as a method: the mean of factors, on this schedule."""
    return Method(
        name=config.name,
        schedule=schedule,
        targets=config.targets,
        scale=config.scale,
        seed=experiment.seed,
        train_head=config.head == "train",
        wire=config.wire,
        mu=config.mu,
        rate_factor=config.rate_factor,
        start=Path(config.adapters).expanduser() if config.adapters else None,
    )

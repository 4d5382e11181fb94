"""The differences between low-rank strategies, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedloom.core.config import Experiment
from fedloom.core.records import Info
from fedloom.strategies._low_rank.aggregation import Aggregation, Factor
from fedloom.strategies._low_rank.budget import Budget
from fedloom.strategies._low_rank.resizing import Cut, Resizing
from fedloom.strategies._low_rank.schedule import Schedule, constant
from fedloom.strategies._low_rank.settings import HeterogeneousSettings, LowRankSettings
from fedloom.strategies._low_rank.setup import SHARED, Setup


@dataclass(frozen=True, kw_only=True, slots=True)
class Initiating:
    """Arrays trained in the initiating rounds."""

    whole: bool = True
    """Whole models; otherwise adapters of the largest rank."""
    mu: float = 0.0
    """Weight of the regulariser."""
    to_pretrained: bool = False
    """Whether it pulls whole models towards the initial model instead of the round's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A low-rank strategy's stages, budget, and ways to resize and to aggregate."""

    setup: Setup
    targets: tuple[str, ...]
    train_head: bool
    budget: Budget
    resizing: Resizing
    aggregation: Aggregation
    initiating: Initiating = Initiating()
    mu: float = 0.0
    """Weight of the regulariser in the annealing rounds."""
    rate_factor: float = 1.0
    """On the clients' step size in adapter rounds."""
    start: Path | None = None
    """Folder of the initial adapters."""
    rules: tuple[str, ...] = (SHARED,)
    knobs: Info = field(default_factory=dict)
    """For the clients of adapter rounds, besides those of the shared rule."""


def shared_method(config: LowRankSettings, experiment: Experiment, schedule: Schedule) -> Method:
    """Return the shared settings as a method on a schedule: the mean of factors, cut by SVD."""
    setup = Setup(
        strategy=config.name,
        seed=experiment.seed,
        scale=config.scale,
        rank_max=schedule.rank_max,
        wire=config.wire,
    )
    return Method(
        setup=setup,
        targets=config.targets,
        train_head=config.head == "train",
        budget=Budget(schedule, config.client_ranks if isinstance(config, HeterogeneousSettings) else ()),
        resizing=Cut(setup),
        aggregation=Factor(setup),
        mu=config.mu,
        rate_factor=config.rate_factor,
        start=Path(config.adapters).expanduser() if config.adapters else None,
    )


def fixed_rank(config: LowRankSettings, rank: int, experiment: Experiment) -> Method:
    """Return the shared settings as a method with one rank for all rounds.

    Raises:
        ConfigError: the run does not say how many rounds it has.
    """
    return shared_method(config, experiment, constant(experiment.rounds_known(f"strategy {config.name!r}"), rank))

"""The arguments of `Experiment(…)`, for type checkers and editors; their meaning is that of the fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Required, TypeAlias, TypedDict

from pydantic import BaseModel

Table: TypeAlias = Mapping[str, object]
"""A table of settings, as in TOML."""
Plugin: TypeAlias = str | Table | BaseModel
"""A plug-in's name, a table with its `name` and settings, or its `Config`."""


class ExperimentArguments(TypedDict, total=False):
    """The arguments of `Experiment(…)`; all but three have a default."""

    rounds: Required[int | Literal["open"]]
    """Rounds to run."""
    strategy: Required[Plugin]
    """The aggregation strategy."""
    workload: Required[Plugin]
    """Data, model and local training."""
    name: str
    """Display name; part of the run id."""
    seed: int
    """Seed of all randomness: same seed, same bits."""
    clients: int
    """Clients in the federation."""
    cohort: int | None
    """Clients sampled in each round; None samples all."""
    excluded: Sequence[int | str]
    """Clients that never take part."""
    selection: Plugin
    """Client selection; uniform sampling by default."""
    monitor: Plugin | None
    """Label-free monitoring; None disables it."""
    round: Table | BaseModel
    """Conduct of a round."""
    evaluation: Table | BaseModel
    """Evaluation on held-out data."""
    best: str | Table | BaseModel | None
    """Metric by which the final model is the best round's, and when to stop early; None takes the last round's."""
    checkpoint: Table | BaseModel
    """Persistence for resuming."""
    runtime: Table | BaseModel
    """Where clients run."""
    fleet: Table | BaseModel
    """Which nodes of a standing server do the run."""

"""Settings of the median ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import PluginSettings
from fedloom.core.errors import ConfigError
from fedloom.core.records import Info

Combination = Literal["median", "mean", "trimmed", "ema", "middle", "first", "last"]
Compared = Literal["median", "mean", "trimmed", "ema", "middle", "first", "last", "best", "seat"]


class Config(PluginSettings):
    """Rounds continue from w, the clients' combination; the evaluated and published model is an ensemble of past w."""

    name: str = "meat"
    clients: Literal["mean", "median"] = "mean"
    """Combination of a round's updates to w: their weighted mean, or their coordinate-wise median."""
    ensemble: Combination = "median"
    """Published combination of the snapshots. `median`: the paper's; `mean`: SWA; `trimmed`: mean without the extremes;
    `ema`: moving average; `middle`: the middle one in time, the median's baseline; `first`: what the released
    script computes, since its snapshot counter never moves; `last`: w itself, as if there were no ensemble."""
    start: Annotated[int, Field(ge=1)] | None = None
    """First round whose w becomes a snapshot, e_0. None takes 0.625 of the rounds, rounded up: 75 of 120."""
    window: Annotated[int, Field(ge=1)] | None = None
    """Number of newest snapshots; None uses all since `start`, as the paper does."""
    precision: Literal["full", "half"] = "full"
    """Storage of snapshots: unchanged, or floats as float16 in half the memory."""
    batch_norm: Literal["history", "cumulative", "released"] = "history"
    """Statistics for an ensemble's batch normalisation. `history`: combined like all other arrays; `cumulative`:
    recomputed by the clients, a plain mean over their batches; `released`: recomputed by the released code's rule (a
    median of running values that start from 0 and 1), which needs many batches."""
    trim: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.2
    """Fraction omitted at each end by `trimmed`."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Weight of the past in `ema`, per snapshot."""
    compare: tuple[Compared, ...] = ()
    """Models compared in evaluated rounds, clean and attacked, with the published one. Needs a workload
    with the action `robustness` (`meat`)."""
    table: bool = False
    """Attack the compared models with the workload's whole table in the last round (its action `attack`)."""
    planted: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Rounds whose snapshot (not w) gets outliers before it is stored: an instrument to measure the breakdown."""
    planted_scale: Annotated[float, Field(gt=0.0)] = 3.0
    """Standard deviation of those outliers, in units of each array's mean absolute weight."""

    def wanted_actions(self) -> Mapping[str, Info]:
        wanted: dict[str, Info] = {}
        if self.batch_norm != "history":
            wanted["statistics"] = {"rule": self.batch_norm}
        if self.compare:
            wanted["robustness"] = {}
        if self.table:
            wanted["attack"] = {}
        return wanted

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.table and not self.compare:
            raise ConfigError('strategy.table: has no effect without compared models; set strategy.compare = ["last"]')
        if self.window == 1 and self.ensemble != "last":
            raise ConfigError(
                f"strategy.window: one snapshot is no ensemble; {self.ensemble!r} needs at least 2, got 1"
            )
        return self

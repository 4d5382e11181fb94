"""Adapters out of a run: a folder in PEFT's form that other programs load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fedloom.core.errors import UsageError
from fedloom.core.records import arrays_sha256
from fedloom.core.saved_state import SavedState
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.peft_files import AdapterFile, export_adapters
from fedloom.strategies._low_rank.state import Adapters

BASE = "base.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """Files and facts of an export."""

    folder: Path
    round: int
    """Round of the exported adapters."""
    ranks: dict[str, int]
    """Rank of each module."""
    head: tuple[str, ...]
    """Arrays trained besides the adapters."""
    base: Path | None
    """The base of the adapters, if runs like this one change it; None if it is the initial model."""


def export(saved: SavedState, out: Path) -> Exported:
    """Write a run's newest adapters as a folder that `peft.PeftModel.from_pretrained` loads.

    Args:
        saved: of the run, which may still be running.
        out: the folder to write; it must be empty.

    Raises:
        UsageError: a strategy without adapters, a run that has none yet, or `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {str(out)!r} is not empty; choose a new or empty folder")
    strategy, state = _adapters_of(saved)
    state = strategy.published(state)
    a, b = state.product()
    frozen = state.frozen()
    adapters = AdapterFile(
        a=a,
        b={name: np.asarray(factor, np.float32) for name, factor in b.items()},
        scale=strategy.method.setup.scale,
        head=state.model,
        base_sha256=arrays_sha256(frozen),
    )
    info = saved.workload
    began_with = str((info.data.get("checkpoint") or {}).get("name", "")) if info else ""
    export_adapters(out, state.shapes(), adapters, base=began_with)
    if strategy.changes_base:
        (out / BASE).write_bytes(save({name: np.ascontiguousarray(array) for name, array in frozen.items()}))
    return Exported(
        folder=out,
        round=saved.round,
        ranks={name: len(factor) for name, factor in a.items()},
        head=tuple(state.model),
        base=out / BASE if strategy.changes_base else None,
    )


def _adapters_of(saved: SavedState) -> tuple[LowRank, Adapters]:
    """Return a run's strategy and its state, if it has adapters."""
    strategy: object = saved.strategy
    if not isinstance(strategy, LowRank) or not isinstance(saved.state, Adapters):
        raise UsageError(
            f"{saved.folder}: strategy {saved.experiment.strategy.name!r} trains no adapters; its model is in "
            f"{saved.folder}/model"
        )
    if saved.state.base is None:
        raise UsageError(
            f"{saved.folder}: round {saved.round} trained whole models, so there are no adapters (yet); "
            f"the run has {strategy.method.budget.schedule.initiating} such rounds of {saved.experiment.rounds}"
        )
    return strategy, saved.state

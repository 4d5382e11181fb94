"""Adapters out of a run: a folder in PEFT's form that other programs load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fedloom.core.errors import UsageError
from fedloom.core.plugins import build_strategy
from fedloom.core.records import arrays_sha256
from fedloom.core.state import load_state
from fedloom.reporting.run_folder import require_run_folder
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.peft_files import AdapterFile, export_adapters
from fedloom.strategies._low_rank.state import Adapters

BASE = "base.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written."""

    folder: Path
    round: int
    """Of the run, whose adapters these are."""
    ranks: dict[str, int]
    """Rank of each module."""
    head: tuple[str, ...]
    """Arrays trained beside the adapters."""
    base: Path | None
    """What the adapters stand on, where runs like this one change it; None where that is the model it began with."""


def export(run_dir: str | Path, out: str | Path) -> Exported:
    """Write the adapters of a run's newest checkpoint as a folder that `peft.PeftModel.from_pretrained` loads.

    Args:
        run_dir: the run's folder; the run may be going on.
        out: the folder to write; it must not hold anything yet.

    Raises:
        UsageError: no run's folder, a strategy without adapters, a run that has none yet, or `out` is not empty.
        CheckpointCorrupt: none of the run's checkpoints can be read.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--out {str(folder)!r} is not empty; adapters are never written over something else")
    store = DiskRunStore.open(require_run_folder(run_dir))
    strategy, state, round = _state(store)
    a, b = state.product()
    frozen = state.frozen()
    adapters = AdapterFile(
        a=a,
        b={name: np.asarray(factor, np.float32) for name, factor in b.items()},
        scale=strategy.method.setup.scale,
        head=state.model,
        base_sha256=arrays_sha256(frozen),
    )
    info = store.workload()
    began_with = str((info.data.get("checkpoint") or {}).get("name", "")) if info else ""
    export_adapters(folder, state.shapes(), adapters, base=began_with)
    if strategy.changes_base:
        (folder / BASE).write_bytes(save({name: np.ascontiguousarray(array) for name, array in frozen.items()}))
    return Exported(
        folder=folder,
        round=round,
        ranks={name: len(factor) for name, factor in a.items()},
        head=tuple(state.model),
        base=folder / BASE if strategy.changes_base else None,
    )


def _state(store: DiskRunStore) -> tuple[LowRank, Adapters, int]:
    """The run's strategy, its newest state, and the round that ended with it."""
    experiment = store.experiment()
    name = experiment.strategy.name
    strategy: object = build_strategy(experiment.strategy, experiment)
    if not isinstance(strategy, LowRank):
        raise UsageError(f"{store.folder}: strategy {name!r} trains no adapters; its model is in {store.folder}/model")
    checkpoint = store.latest_checkpoint()
    if checkpoint is None:
        raise UsageError(f"{store.folder}: the run has no checkpoint yet")
    state: Adapters = load_state(strategy.State, checkpoint.strategy, checkpoint.pinned)
    if state.base is None:
        raise UsageError(
            f"{store.folder}: round {checkpoint.round} trained whole models, so there are no adapters (yet); "
            f"the run has {strategy.method.budget.schedule.initiating} such rounds of {experiment.rounds}"
        )
    return strategy, state, checkpoint.round

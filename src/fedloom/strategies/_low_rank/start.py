"""Adapters that a run starts from, in place of fresh ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedloom.core.errors import ConfigError
from fedloom.core.records import arrays_sha256
from fedloom.strategies._low_rank.peft_files import import_adapters
from fedloom.strategies._low_rank.state import Adapters

SETTING = "strategy.adapters"


def started(state: Adapters, folder: Path, scale: float, rank_max: int) -> Adapters:
    """Return the state with the adapters (and the head, if it is there) of a folder in PEFT's form.

    Raises:
        DataMissing: it is not such a folder.
        UnsupportedFeature: its adapters are more than s·B A.
        ConfigError: they are for other modules, of too high a rank, or made on other weights.
    """
    read = import_adapters(folder, state.shapes(), state.head, scale=scale)
    highest = max(read.a, key=lambda name: len(read.a[name]))
    if len(read.a[highest]) > rank_max:
        raise ConfigError(
            f"{SETTING}: {folder} has rank {len(read.a[highest])} for module {highest!r}, and this run's largest rank "
            f"is {rank_max}; raise it, or take other adapters"
        )
    if read.base_sha256 is not None and read.base_sha256 != (here := arrays_sha256(state.frozen())):
        raise ConfigError(
            f"{SETTING}: the adapters in {folder} were made on weights with digest {read.base_sha256[:16]}…, this "
            f"run's have {here[:16]}…. Start from the same model: the one in base.safetensors next to the adapters, "
            "if their run changed it"
        )
    return replace(state, lora_a=read.a, lora_b=read.b, model={**state.model, **read.head})

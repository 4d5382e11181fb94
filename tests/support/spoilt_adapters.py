"""Federated LoRA whose server sends adapters that do not fit: what agents of another experiment would see."""

from __future__ import annotations

from typing import Literal

from fedloom.core.config import Experiment
from fedloom.core.records import ADAPTERS, LORA_A, LORA_B, Record
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import shared_method
from fedloom.strategies._low_rank.schedule import constant
from fedloom.strategies._low_rank.settings import LowRankSettings
from fedloom.strategies._low_rank.state import Adapters


class Config(LowRankSettings):
    """Rank 2, spoilt in one way."""

    spoil: Literal["missing", "left_over", "digest"]


class Spoilt(LowRank):
    def __init__(self, config: Config, experiment: Experiment) -> None:
        super().__init__(
            shared_method(config, experiment, constant(experiment.rounds_known("strategy spoilt_adapters"), 2))
        )
        self._spoil = config.spoil

    def _broadcast(self, ready: Adapters) -> Record:
        record = super()._broadcast(ready)
        groups = {group: dict(arrays) for group, arrays in record.groups.items()}
        adapters = dict(record.info[ADAPTERS])
        first = next(iter(groups[LORA_A]))
        if self._spoil == "missing":
            del groups[LORA_B][first]
        elif self._spoil == "left_over":
            groups[LORA_A]["nowhere"] = groups[LORA_A][first]
        else:
            adapters["base"] = [[name, "0" * 64] for name, _ in adapters["base"]]
        return Record(groups, {**record.info, ADAPTERS: adapters})


def build_strategy(config: Config, experiment: Experiment) -> Spoilt:
    return Spoilt(config, experiment)

"""Federated LoRA whose server sends adapters that do not fit: what agents of another experiment would see."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from fedloom.adapters.names import ADAPTERS, LORA_A, LORA_B
from fedloom.core.config import Experiment
from fedloom.core.records import Record
from fedloom.strategies._low_rank.aggregation import Factor
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import fixed_rank
from fedloom.strategies._low_rank.settings import LowRankSettings
from fedloom.strategies._low_rank.setup import Setup
from fedloom.strategies._low_rank.state import Adapters


class Config(LowRankSettings):
    """Rank 2, spoilt in one way."""

    spoil: Literal["missing", "left_over", "digest"]


class Spoilt(Factor):
    def __init__(self, setup: Setup, spoil: str) -> None:
        super().__init__(setup)
        self._spoil = spoil

    def broadcast(self, ready: Adapters, record: Record) -> Record:
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


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    method = fixed_rank(config, 2, experiment)
    return LowRank(replace(method, aggregation=Spoilt(method.setup, config.spoil)))

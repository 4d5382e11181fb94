"""The built-in accumulators, and those of strategy folders, keep to what every accumulator does."""

from __future__ import annotations

import numpy as np
import pytest

from fedloom.core import registry
from fedloom.core.accumulators import BUILTIN
from fedloom.core.records import Array, Update
from fedloom.testing.accumulator import AccumulatorConformance

STRATEGIES = (*registry.names("strategies"), "_low_rank")
OWN = [name for name in STRATEGIES if registry.has_part("strategies", name, "accumulator")]


@pytest.mark.parametrize("name", [*BUILTIN, *OWN], scope="class")
class TestAccumulators(AccumulatorConformance):
    @pytest.fixture(autouse=True)
    def _chosen(self, name: str) -> None:
        self.name = name

    def update(self, client: int) -> Update:
        update = super().update(client)
        if self.name != "integers":
            return update
        whole: dict[str, dict[str, Array]] = {
            group: {name: (array.astype(np.float64) * 1e8).astype(np.int64) for name, array in arrays.items()}
            for group, arrays in update.groups.items()
        }
        return Update(num_examples=update.num_examples, groups=whole, metrics=update.metrics)

"""Every installed monitor keeps to what all do."""

from __future__ import annotations

import pytest
from support_generative import MadeUpCensus

from fedloom.core import registry
from fedloom.testing.monitor import MonitorConformance

WATCHED: dict[str, type] = {"generative": MadeUpCensus}
"""What is watched by monitors that want more than logits."""


@pytest.mark.parametrize("name", registry.names("monitors"))
class TestMonitors(MonitorConformance):
    @pytest.fixture(autouse=True)
    def _chosen(self, name: str) -> None:
        self.name = name

    def workload(self) -> object:
        return WATCHED[self.name]() if self.name in WATCHED else super().workload()

"""Every installed monitor keeps to what all do; one is tested with its own models elsewhere."""

from __future__ import annotations

import pytest
from support_generative import MadeUpCensus
from support_llic import MadeUpCodec

from fedloom.core import registry
from fedloom.testing.monitor import MonitorConformance

WATCHED: dict[str, type] = {"generative": MadeUpCensus, "llic": MadeUpCodec}
"""What is watched by monitors that want more than logits."""

ELSEWHERE = {
    "geco": "tests/workloads/geco/test_monitor.py",
    "hubert_ee": "tests/workloads/hubert_ee/test_federated.py",
}
"""Monitors that need a workload with more, and where they are tested."""


@pytest.mark.parametrize("name", sorted(set(registry.names("monitors")) - ELSEWHERE.keys()))
class TestMonitors(MonitorConformance):
    @pytest.fixture(autouse=True)
    def _chosen(self, name: str) -> None:
        self.name = name

    def workload(self) -> object:
        return WATCHED[self.name]() if self.name in WATCHED else super().workload()

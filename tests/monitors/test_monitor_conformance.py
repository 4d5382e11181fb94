"""Every installed monitor keeps to what all do."""

from __future__ import annotations

import pytest

from fedloom.core import registry
from fedloom.testing.monitor import MonitorConformance


@pytest.mark.parametrize("name", registry.names("monitors"))
class TestMonitors(MonitorConformance):
    @pytest.fixture(autouse=True)
    def _chosen(self, name: str) -> None:
        self.name = name

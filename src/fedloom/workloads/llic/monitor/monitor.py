"""The server half: one client codes all held-out photographs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Monitor, MonitorReading, MonitorRequest
from fedloom.core.records import ClientReport, Info
from fedloom.workloads.llic.monitor.config import Config


class CodecMonitor(Monitor):
    """Passes on what the watch has found."""

    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        return MonitorRequest(clients=(0,), parts=1)

    def read(self, reports: Sequence[ClientReport], earlier: Sequence[Info]) -> MonitorReading:
        found = [report.info for report in reports if report.num_examples]
        return MonitorReading(metrics={}, info=dict(found[0]) if found else {})


def build_monitor(config: Config) -> CodecMonitor:
    """Return the server half a `Config` describes."""
    return CodecMonitor()

"""The server half: mean and worst of the clients' losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Monitor, MonitorReading, MonitorRequest
from fedloom.core.records import ClientReport, Info
from fedloom_qffl.monitor.config import Config


class Fairness(Monitor):
    """Mean and maximum over clients, each client counting once."""

    def __init__(self, config: Config) -> None:
        self._clients = config.clients

    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        return MonitorRequest(clients=tuple(range(min(population, self._clients or population))))

    def read(self, reports: Sequence[ClientReport], earlier: Sequence[Info]) -> MonitorReading:
        losses = [float(report.info["loss"]) for report in reports]
        if not losses:
            return MonitorReading(metrics={}, info={})
        info = {"mean": float(np.mean(losses)), "worst": max(losses)}
        return MonitorReading(metrics={"worst_client_loss": info["worst"]}, info=info)


def build_monitor(config: Config) -> Fairness:
    """Return the server half a `Config` describes."""
    return Fairness(config)

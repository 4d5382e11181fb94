"""A dead network is told while the run goes on, once, and in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.events import Notice


class Notices:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def write(self, event: Any) -> None:
        if isinstance(event, Notice):
            self.messages.append(event.message)

    def close(self) -> None:
        pass


def watched(rounds: int, out: Path, **workload: Any) -> list[str]:
    settings = {"name": "spiking_classification", "time_steps": 2, "model": {"hidden": [8]}, **workload}
    values = {"rounds": rounds, "clients": 10, "cohort": 2, "strategy": "fedavg", "workload": settings}
    notices = Notices()
    api.run(Experiment.parse({**values, "runtime": {"name": "inline"}}), out=out, sinks=[notices])
    return notices.messages


def test_a_dead_network_is_reported_once_and_in_the_report(tmp_path: Path) -> None:
    reported = watched(3, tmp_path / "dead", neuron={"threshold": 1000.0})
    assert len(reported) == 1
    assert reported[0].startswith(
        "round 1: dead is 1: that fraction of the spiking layers fires less than workload.dead_rate"
    )
    report = (tmp_path / "dead" / "report.html").read_text(encoding="utf-8")
    assert "dead was above 0 in 3 rounds, first in 1" in report and "lower workload.training.learning_rate" in report


def test_a_network_that_lives_and_a_twin_say_nothing(tmp_path: Path) -> None:
    assert watched(1, tmp_path / "alive", neuron={"threshold": 0.2}) == []
    assert 'class="banner' not in (tmp_path / "alive" / "report.html").read_text(encoding="utf-8")
    assert watched(1, tmp_path / "twin", twin=True) == []


def test_it_is_reported_when_it_comes_back(tmp_path: Path) -> None:
    """A floor that the untrained network misses and the trained one does not."""
    reported = watched(3, tmp_path / "back", training={"epochs": 2}, dead_rate_floor=0.005)
    assert len(reported) == 2
    assert reported[0].startswith("round 1: dead is 0.5") and reported[1] == "round 2: dead is 0 again"

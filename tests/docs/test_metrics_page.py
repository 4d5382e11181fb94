"""The page about Prometheus lists the metrics a server has, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

from fedloom.server.metrics import PrometheusSink

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "watch-with-prometheus.md"


def test_it_lists_every_metric_and_its_labels() -> None:
    registry = PrometheusSink().registry
    kinds = list(registry._collector_to_names)
    there = {
        f"{kind._name}{'_total' if kind._type == 'counter' else ''}": set(kind._labelnames)  # type: ignore[attr-defined]
        for kind in kinds
    }
    rows = re.findall(r"^\| `(fedloom_\w+)` \| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows} == there

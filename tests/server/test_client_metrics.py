"""Evaluation on each virtual client's own data: its metrics, the worst client, the 10th percentile, the spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.seeds import generator
from fedloom.reporting.report import write_report
from fedloom.reporting.run_folder import RunFolder


def experiment(**changes: object) -> Experiment:
    values: dict[str, object] = {
        "name": "own-data",
        "seed": 4,
        "rounds": 2,
        "clients": 8,
        "cohort": 3,
        "excluded": [1],
        "workload": {"name": "fedloom.testing.linear", "features": 4, "empty_clients": [6]},
        "strategy": {"name": "fedavg"},
        "runtime": {"name": "inline"},
        "evaluation": {"on_clients": True},
    }
    return Experiment.model_validate({**values, **changes})


def own_loss(client: int, w: np.ndarray, b: np.ndarray) -> float:
    rng = generator(4, "data", client)
    x = rng.standard_normal((20 + client % 7, 4)).astype(np.float32)
    y = (x @ np.arange(1, 5, dtype=np.float32) + 0.1 * rng.standard_normal(len(x))).astype(np.float32)
    return float(((x @ w + b - y) ** 2).mean())


def test_each_clients_metrics_are_in_the_record_and_the_report(tmp_path: Path) -> None:
    result = api.run(experiment(), out=tmp_path / "run")
    sections = [record.sections["on_clients"] for record in RunFolder.read(tmp_path / "run").rounds]
    assert len(sections) == 2
    last, arrays = sections[-1], result.arrays
    want = {client: own_loss(client, arrays["w"], arrays["b"]) for client in (0, 2, 3, 4, 5, 7)}
    found = {row["client"]: row["metrics"].get("loss") for row in last["sites"]}
    assert found.pop(6) is None, "no examples, no metrics"
    assert found == {client: pytest.approx(value, rel=1e-4) for client, value in want.items()}
    values = list(want.values())
    assert last["worst"]["loss"]["site"] == f"client-{max(want, key=lambda each: want[each])}"
    assert last["worst"]["loss"]["value"] == pytest.approx(max(values), rel=1e-4)
    assert last["p10"]["loss"] == pytest.approx(np.percentile(values, 90), rel=1e-4)
    mean = sum(values) / 6
    assert last["spread"]["loss"] == pytest.approx((sum((v - mean) ** 2 for v in values) / 6) ** 0.5, rel=1e-4)
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "worst client" in text and ">spread<" in text and ">client-7<" in text


def test_the_model_and_its_evaluation_are_those_without(tmp_path: Path) -> None:
    with_it = api.run(experiment(), out=tmp_path / "with")
    without = api.run(experiment(evaluation={}), out=tmp_path / "without")
    assert with_it.summary.model_sha256 == without.summary.model_sha256
    ones, others = (RunFolder.read(tmp_path / name).rounds for name in ("with", "without"))
    assert [each.evaluation for each in ones] == [each.evaluation for each in others]
    assert not any("on_clients" in each.sections for each in others)


def test_it_is_refused_where_clients_are_sites() -> None:
    values: dict[str, object] = {"clients": "nodes", "excluded": [], "cohort": None}
    with pytest.raises(ConfigError, match=r"evaluation\.on_clients: got True.*own validation data anyway"):
        experiment(**values)

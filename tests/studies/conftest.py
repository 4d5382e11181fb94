"""Small studies of a linear regression, and run folders written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedloom.core.history import RoundRecord, RunSummary, Timing, Traffic
from fedloom.studies.grid import Planned
from fedloom.testing import linear

LINEAR = Path(linear.__file__)


@pytest.fixture
def study() -> Callable[..., dict[str, Any]]:
    """A study of two arms over the linear workload, as its TOML would be."""

    def make(**changes: Any) -> dict[str, Any]:
        base = {
            "rounds": 3, "clients": 6, "cohort": 4, "strategy": "fedavg", "workload": {"name": str(LINEAR)},
        }  # fmt: skip
        values: dict[str, Any] = {
            "name": "little",
            "base": base,
            "reference": "few",
            "metric": "loss",
            "better": "lower",
            "arms": {"few": {"change": {"cohort": 2}}, "many": {}},
            "seeds": {"first": 5, "count": 2},
            "target": {"share": 1.5, "last": 1},
        }
        return {**values, **changes}

    return make


@pytest.fixture
def study_file(study: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """The same as a file."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "little.toml"
        path.write_text(tomli_w.dumps(study(**changes)), encoding="utf-8")
        return path

    return write


@pytest.fixture
def finished_run() -> Callable[..., None]:
    """Writes a finished run with the given curve where a study looks for it."""

    def write(
        planned: Planned,
        out: Path,
        curve: Sequence[float],
        *,
        metric: str = "accuracy",
        trainings: int = 2,
        cohorts: Sequence[Sequence[int]] = (),
        label_counts: Sequence[Sequence[int]] = (),
    ) -> None:
        folder = out / "runs" / planned.scenario / planned.arm / f"seed-{planned.seed}"
        folder.mkdir(parents=True)
        (folder / "experiment.toml").write_text(tomli_w.dumps(planned.experiment.to_dict()), encoding="utf-8")
        records = [
            RoundRecord(
                round=number,
                cohort=list(cohorts[number - 1]) if cohorts else [0, 1],
                num_examples=10,
                local_trainings=trainings,
                metrics={},
                evaluation={metric: value},
                traffic=Traffic(bytes_down=40 * trainings, bytes_up=20, params_down=10 * trainings, params_up=5),
                timing=Timing(total_s=0.5),
            )
            for number, value in enumerate(curve, start=1)
        ]
        (folder / "rounds.jsonl").write_text(
            "".join(f"{record.model_dump_json()}\n" for record in records), encoding="utf-8"
        )
        (folder / "workload.json").write_text(
            json.dumps({"data": {}, "label_counts": list(label_counts)}), encoding="utf-8"
        )
        summary = RunSummary(
            run_id=planned.key, run_dir=None, name="x", status="done", rounds=len(curve), metrics={}, bytes_up=0,
            bytes_down=0, params_up=0, params_down=0, wire_bytes_up=0, wire_bytes_down=0, seconds=1.0,
            model_sha256=None, num_parameters=1, seed=planned.seed, group_size=1, runtime="inline", workers=1,
            failures=0, environment={"fedloom": "0"},
        )  # fmt: skip
        (folder / "summary.json").write_text(summary.model_dump_json(), encoding="utf-8")

    return write

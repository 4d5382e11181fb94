"""Run folders made from the history's own models: what a server writes, without a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from fedloom.core.history import NodeShare, RoundRecord, RunSummary, Timing, Traffic
from fedloom.core.records import ClientFailure
from fedloom.core.seeds import generator


def round_record(
    number: int,
    cohort: Sequence[int],
    *,
    metrics: dict[str, float] | None = None,
    evaluation: dict[str, float] | None = None,
    failures: Sequence[ClientFailure] = (),
    **more: Any,
) -> RoundRecord:
    """A round whose clients each read 2,000 bytes and send 1,000."""
    answered = len(cohort) - len(failures)
    return RoundRecord(
        round=number,
        cohort=list(cohort),
        num_examples=100 * answered,
        metrics={"loss": 2.4 / number} if metrics is None else metrics,
        evaluation=evaluation,
        traffic=Traffic(
            bytes_down=2000 * len(cohort),
            bytes_up=1000 * answered,
            params_down=500 * len(cohort),
            params_up=250 * answered,
            wire_bytes_down=4000,
            wire_bytes_up=2000,
        ),
        timing=Timing(
            total_s=2.0, training_s=3.0, waiting_s=1.5, aggregation_s=0.1, evaluation_s=0.3, checkpoint_s=0.05
        ),
        client_seconds={str(client): 0.1 + 0.01 * (client % 7) for client in cohort[:answered]},
        failures=list(failures),
        nodes={
            "ray-0": NodeShare(jobs=answered, busy_s=1.5, wire_bytes_down=2000, wire_bytes_up=1000),
            "ray-1": NodeShare(jobs=1, busy_s=0.5, wire_bytes_down=2000, wire_bytes_up=1000),
        },
        **more,
    )


def learning_rounds(rounds: int, clients: int, cohort: int, *, every: int = 1, top: float = 0.93) -> list[RoundRecord]:
    """Rounds that learn: loss falls like 1/t, accuracy rises to `top`."""
    records = []
    for number in range(1, rounds + 1):
        rng = generator(7, "cohort", number)
        chosen = [int(client) for client in rng.choice(clients, cohort, replace=False)]
        failures = []
        if number % 4 == 0:
            failures = [
                ClientFailure(
                    client=chosen[0],
                    round=number,
                    stage="train",
                    error="ValueError",
                    message="expected 64 pixels, got 63. Is the file cut short?",
                    traceback='File "train.py", line 12, in train\nValueError: expected 64 pixels, got 63',
                    node="ray-1",
                )
            ]
        evaluation = None
        if number % every == 0 or number == rounds:
            share = 1 - np.exp(-number / (rounds / 5))
            evaluation = {"loss": float(2.3 - 2.0 * share + 0.05 * rng.random()), "accuracy": float(top * share)}
        records.append(
            round_record(
                number,
                chosen,
                metrics={"loss": float(2.4 / (1 + 0.3 * number))},
                evaluation=evaluation,
                failures=failures,
            )
        )
    return records


def run_summary(folder: Path, records: Sequence[RoundRecord], **changes: Any) -> RunSummary:
    total = sum((record.traffic for record in records), Traffic())
    last = (records[-1].evaluation or records[-1].metrics) if records else {}
    values: dict[str, Any] = {
        "run_id": f"{folder.name}-id", "run_dir": str(folder), "name": "digits", "status": "done",
        "rounds": len(records), "metrics": last, **total.model_dump(), "seconds": 2.0 * len(records),
        "model_sha256": "ab" * 32, "num_parameters": 650, "seed": 3, "group_size": 1, "runtime": "ray", "workers": 2,
        "failures": sum(len(record.failures) for record in records),
        "environment": {"fedloom": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "machine": "x86_64, 2 cores"},
    }  # fmt: skip
    return RunSummary(**(values | changes))


def class_counts(clients: int, classes: int = 10) -> list[list[int]]:
    """A Dirichlet(0.3) partition."""
    rng = generator(5, "partition")
    return [[int(n) for n in 120 * rng.dirichlet([0.3] * classes)] for _ in range(clients)]


def partition(clients: int) -> dict[str, Any]:
    """A workload's facts about the Dirichlet partition."""
    counts = class_counts(clients)
    return {
        "data": {"name": "digits", "kind": "real", "sha256": "9f" * 32, "licence": "BSD-3-Clause"},
        "label_counts": counts, "client_sizes": [sum(row) for row in counts], "label_names": list("0123456789"),
    }  # fmt: skip


class Runs:
    """Makes run folders below a folder."""

    round = staticmethod(round_record)
    learning = staticmethod(learning_rounds)
    summary = staticmethod(run_summary)
    partition = staticmethod(partition)

    def __init__(self, root: Path) -> None:
        self._root = root

    def make(
        self,
        name: str = "run-a",
        records: Sequence[RoundRecord] = (),
        *,
        clients: int = 10,
        summary: bool = True,
        settings: dict[str, Any] | None = None,
        workload: dict[str, Any] | None = None,
        events: Sequence[dict[str, Any]] = (),
        **changes: Any,
    ) -> Path:
        folder = self._root / name
        folder.mkdir(parents=True)
        experiment: dict[str, Any] = {
            "name": "digits", "rounds": max(len(records), 1), "seed": 3, "clients": clients,
            "cohort": len(records[0].cohort) if records else 1,
            "strategy": {"name": "fedavg"}, "workload": {"name": "image_classification", "lr": 0.1},
            "selection": {"name": "uniform"}, "runtime": {"name": "ray", "workers": 2},
        }  # fmt: skip
        (folder / "experiment.toml").write_text(tomli_w.dumps(experiment | (settings or {})), encoding="utf-8")
        (folder / "run.json").write_text(json.dumps({"run_id": f"{name}-id"}), encoding="utf-8")
        (folder / "rounds.jsonl").write_text(
            "".join(record.model_dump_json() + "\n" for record in records), encoding="utf-8"
        )
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
        if workload is not None:
            (folder / "workload.json").write_text(json.dumps(workload), encoding="utf-8")
        if summary:
            (folder / "summary.json").write_text(
                run_summary(folder, records, **changes).model_dump_json(), encoding="utf-8"
            )
        return folder


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)

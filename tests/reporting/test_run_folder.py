from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from fedloom.core.errors import UsageError
from fedloom.core.protocols import WorkloadInfo
from fedloom.reporting.curves import HELD_OUT, TRAINING, curve, metric_names
from fedloom.reporting.run_folder import RunFolder


def test_what_was_written_is_read(runs: Any) -> None:
    records = runs.learning(8, 10, 5)
    run = RunFolder.read(runs.make(records=records))
    assert run.rounds == tuple(records)
    assert (run.status, run.run_id, run.population, run.planned_rounds) == ("done", "run-a-id", 10, 8)
    assert run.traffic.bytes_down == 8 * 5 * 2000
    assert len(run.failures) == 2  # rounds 4 and 8


def test_a_killed_run_has_no_summary_and_half_a_line(runs: Any) -> None:
    folder = runs.make(records=runs.learning(3, 10, 5), summary=False)
    with (folder / "rounds.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"round": 4, "coh')
    run = RunFolder.read(folder)
    assert (run.status, len(run.rounds), run.seconds) == ("unfinished", 3, 6.0)


def test_a_round_done_twice_counts_once(runs: Any) -> None:
    again = runs.round(2, [1, 2], metrics={"loss": 0.5})
    run = RunFolder.read(runs.make(records=[runs.round(1, [0]), runs.round(2, [3]), again]))
    assert [record.round for record in run.rounds] == [1, 2]
    assert run.rounds[1].metrics == {"loss": 0.5}


def test_a_metric_that_is_not_a_number_survives_json(runs: Any) -> None:
    folder = runs.make(records=[runs.round(1, [0], metrics={"loss": math.nan}, evaluation={"loss": math.nan})])
    assert '"loss":null' in (folder / "rounds.jsonl").read_text(encoding="utf-8")
    record = RunFolder.read(folder).rounds[0]
    assert math.isnan(record.metrics["loss"])
    assert record.evaluation is not None and math.isnan(record.evaluation["loss"])


def test_losses_of_a_round_that_never_ended_count(runs: Any) -> None:
    def lost(round: int) -> dict[str, object]:
        failure = {"client": 3, "round": round, "stage": "train", "error": "ValueError", "message": "bad"}
        return {"event": "ClientLost", "failure": failure}

    run = RunFolder.read(runs.make(records=[runs.round(1, [0])], events=[lost(1), lost(2)]))
    assert [failure.round for failure in run.failures] == [2]  # round 1 has ended, and its record tells of none


def test_an_event_that_was_being_written_is_left_out(runs: Any) -> None:
    folder = runs.make(events=[{"event": "Notice", "message": "one"}])
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "Notice", "message": "tw')
    assert [event["message"] for event in RunFolder.read(folder).events] == ["one"]


def test_everything_a_workload_said_is_read(runs: Any) -> None:
    said: dict[str, Any] = {
        "data": {"name": "text"}, "client_sizes": [3, 4], "label_counts": [[1, 2], [4, 0]], "label_names": ["a", "b"],
        "watch": {"skipped": "Some rows were skipped"}, "exponentials": {"perplexity": "loss"},
    }  # fmt: skip
    assert set(said) == {field.name for field in dataclasses.fields(WorkloadInfo)}
    assert RunFolder.read(runs.make(workload=said)).workload == WorkloadInfo(**said)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("experiment.toml", "rounds = ", "experiment.toml: not valid TOML"),
        ("rounds.jsonl", "nonsense\n{}\n", "rounds.jsonl, line 1: not JSON"),
        ("rounds.jsonl", '{"round": "one"}\n', "rounds.jsonl, line 1: not a round record: round"),
        ("rounds.jsonl", "[1]\n", "rounds.jsonl, line 1: expected a JSON object, got list"),
        ("summary.json", "{", "summary.json: not JSON"),
        ("summary.json", '{"run_id": 3}', "summary.json: not a run's summary: run_id"),
        ("workload.json", "[]", "workload.json: expected a JSON object, got list"),
        ("workload.json", '{"data": {}, "sizes": [1]}', "description: unknown key 'sizes'; was it written by another"),
        ("workload.json", '{"data": {}, "client_sizes": null}', "workload.json: not a workload's .*client_sizes"),
        ("events.jsonl", '{"event": "Not\n{"event": "Notice"}\n', "events.jsonl, line 1: not JSON"),
    ],
)
def test_damage_is_named_by_file_and_line(runs: Any, file: str, content: str, said: str) -> None:
    folder = runs.make(records=[runs.round(1, [0])])
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        RunFolder.read(folder)


def test_other_folders_are_not_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"it has no experiment\.toml"):
        RunFolder.read(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        RunFolder.read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder.read(tmp_path / "file")


def test_curves_say_what_had_been_spent(runs: Any) -> None:
    records = [
        runs.round(1, [0, 1], metrics={"loss": 3.0}),
        runs.round(2, [0], metrics={"loss": 2.0}, evaluation={"accuracy": 0.5}),
        runs.round(3, [0, 1, 2], metrics={"loss": 1.0}, evaluation={"accuracy": 0.75, "f1": 0.5}),
    ]
    run = RunFolder.read(runs.make(records=records))
    assert metric_names(run) == ["loss", "accuracy", "f1"]
    accuracy = curve(run, "accuracy", HELD_OUT)
    assert accuracy is not None
    # 3,000 bytes for every client of a round, up and down together; 2 s for every round.
    assert list(accuracy.rounds) == [2, 3]
    assert accuracy.megabytes == pytest.approx((0.009, 0.018))
    assert accuracy.seconds == (4.0, 6.0)
    assert curve(run, "accuracy", TRAINING) is None

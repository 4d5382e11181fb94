from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

import pytest
from rich.console import Console

from fedloom.core.events import (
    ClientLost,
    ClientsDone,
    NodeChanged,
    NodeRefused,
    Notice,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
)
from fedloom.core.history import RoundRecord
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import ClientFailure
from fedloom.reporting.console import ConsoleSink, print_result
from fedloom.reporting.run_folder import RunFolder
from fedloom.reporting.sections import origin


class Screen:
    """A console whose output is kept."""

    def __init__(self, terminal: bool) -> None:
        self._file = io.StringIO()
        self.console = Console(file=self._file, force_terminal=terminal, width=120, color_system=None, markup=False)
        self.sink = ConsoleSink(self.console)

    @property
    def lines(self) -> list[str]:
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._file.getvalue())  # cursor movements of the live line
        return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]


def started(**changes: Any) -> RunStarted:
    values: dict[str, Any] = {
        "run_id": "r1", "name": "digits", "rounds": 3, "first_round": 1, "clients": 1000, "cohort": 50, "group_size": 4,
        "num_parameters": 12_345, "runtime": "ray", "workers": 2, "where": "Ray at 10.0.0.1:6379",
        "data": {"name": "digits", "kind": "real", "sha256": "0123456789abcdef"},
    }  # fmt: skip
    return RunStarted(**(values | changes))


def failure(client: int, message: str = "no such file") -> ClientFailure:
    return ClientFailure(client=client, round=1, stage="shard", error="DataMissing", message=message, node="ray-1")


def play(sink: ConsoleSink, *records: RoundRecord) -> None:
    for record in records:
        sink.write(RoundStarted(run_id="r1", round=record.round, cohort=len(record.cohort)))
        sink.write(ClientsDone(run_id="r1", round=record.round, done=1, cohort=len(record.cohort)))
        for each in record.failures:
            sink.write(ClientLost(run_id="r1", failure=each))
        sink.write(RoundFinished(run_id="r1", record=record))


def test_the_start_says_what_runs_where() -> None:
    screen = Screen(terminal=False)
    screen.sink.write(started())
    assert screen.lines == [
        "r1",
        "  runtime  ray, 2 workers: Ray at 10.0.0.1:6379",
        "  data     digits (real, sha256 0123456789ab…)",
        "  model    12,345 parameters",
        "  clients  1,000, 50 sampled per round, in groups of 4",
        "  rounds   3",
    ]


def test_the_start_counts_examples_and_says_what_was_left_out() -> None:
    screen = Screen(terminal=False)
    data = {"name": "d", "num_train": 1438, "num_test": 359, "num_labels": 10, "left_out": ["2 hidden files: .a"]}
    screen.sink.write(started(data={**data, "remarks": ["no test example: classes x"]}))
    assert screen.lines[3:6] == [
        "  examples 1,438 for training, 359 held out, 10 classes",
        "  omitted  2 hidden files: .a",
        "  note     no test example: classes x",
    ]
    screen = Screen(terminal=False)
    screen.sink.write(started(data={"num_train": "many", "left_out": 5}))  # what a node says need not be so
    assert not any("examples" in line for line in screen.lines)


def test_the_result_and_the_report_say_what_was_left_out(runs: Any) -> None:
    data = {"num_train": 8, "num_test": 2, "num_labels": 2, "left_out": ["1 broken link: a", "split 'b'"]}
    folder = runs.make(records=runs.learning(1, 4, 2), status="done")
    summary = runs.summary(folder, runs.learning(1, 4, 2), status="done").model_copy(update={"data": data})
    screen = Screen(terminal=False)
    print_result(screen.console, summary)
    said = [" ".join(line.split()) for line in screen.lines]
    assert {"examples 8 for training, 2 held out, 2 classes", "omitted 1 broken link: a", "omitted split 'b'"} <= {
        *said
    }
    info = WorkloadInfo(data={"name": "<d>", **data})
    page = str(origin.data(dataclasses.replace(RunFolder.read(folder), workload=info)))
    assert "8 for training, 2 held out, 2 classes" in page and "1 broken link: a; split" in page
    assert "num_train" not in page and "&lt;d&gt;" in page


def test_a_node_that_fails_before_the_start_is_reported() -> None:
    screen = Screen(terminal=False)
    refused: dict[str, Any] = {"run_id": "r1", "round": 0, "node": "lab-7"}
    screen.sink.write(NodeRefused(kind="hours", reason="it works at night only", **refused))
    screen.sink.write(NodeRefused(kind="failure", reason="stage load: DataMissing: no weights", **refused))
    assert screen.lines == ["node lab-7 failed: stage load: DataMissing: no weights; trying another node"]


def test_a_resumed_run_says_where_it_resumes_and_data_may_be_unknown() -> None:
    screen = Screen(terminal=False)
    screen.sink.write(started(first_round=3, data={}, group_size=1))
    assert "  rounds   3, resuming with round 3" in screen.lines
    assert "  data     not stated by the workload" in screen.lines
    assert "  clients  1,000, 50 sampled per round" in screen.lines


def test_without_a_terminal_a_round_is_one_line(runs: Any) -> None:
    screen = Screen(terminal=False)
    screen.sink.write(started())
    first = runs.round(1, [0, 1], metrics={"loss": 2.5}, evaluation={"loss": 2.0, "accuracy": 0.5})
    play(screen.sink, first, runs.round(2, [0, 1], metrics={"loss": 1.5}))
    screen.sink.close()
    assert screen.lines[6:] == [
        # 2 clients x 1,000 bytes up, 2,000 down; 2 s a round; the first one says nothing of the others
        "round 1/3  loss 2.0000  accuracy 0.5000  train loss 2.5000  2/2 updates  2.00 kB up  4.00 kB down  2.00 s",
        "round 2/3  train loss 1.5000  2/2 updates  2.00 kB up  4.00 kB down  2.00 s  ETA 2.00 s",
    ]


def test_an_open_number_of_rounds_is_called_open_and_has_no_end_to_wait_for(runs: Any) -> None:
    screen = Screen(terminal=False)
    screen.sink.write(started(rounds=None))
    play(screen.sink, runs.round(1, [0, 1], metrics={"loss": 2.5}))
    screen.sink.close()
    assert screen.lines[5:] == [
        "  rounds   open",
        "round 1/open  train loss 2.5000  2/2 updates  2.00 kB up  4.00 kB down  2.00 s",
    ]
    live = Screen(terminal=True)
    live.sink.write(started(rounds=None))
    play(live.sink, runs.round(1, [0, 1], metrics={"loss": 2.5}))
    live.sink.close()
    assert "round 2/open · 0/2 clients · 2.00 kB up · 4.00 kB down" in "\n".join(live.lines)


def test_in_a_terminal_rounds_are_rows_and_a_line_below_is_live(runs: Any) -> None:
    screen = Screen(terminal=True)
    screen.sink.write(started())
    play(
        screen.sink, runs.round(1, [0, 1], evaluation={"accuracy": 0.5}), runs.round(2, [0, 1], evaluation={"f1": 0.25})
    )
    screen.sink.close()
    text = "\n".join(screen.lines)
    assert [line.split() for line in screen.lines if "train loss" in line] == [
        ["round", "accuracy", "train", "loss", "updates", "up", "down", "time"],
        [
            "round",
            "accuracy",
            "f1",
            "train",
            "loss",
            "updates",
            "up",
            "down",
            "time",
        ],  # a metric seen for the first time
    ]
    assert "1     0.5000     2.4000       2/2   2.00 kB   4.00 kB       2.00 s" in text
    # The live line is drawn some times a second, and once when it ends: two rounds done, 2 s each.
    assert "round 3/3 · 0/2 clients · 4.00 kB up · 8.00 kB down · ETA 2.00 s" in text


def test_lost_clients_are_shown_with_their_cause_and_counted_when_many(runs: Any) -> None:
    screen = Screen(terminal=False)
    screen.sink.write(started())
    lost = [failure(client, "first line\nsecond \x1b[31mline") for client in range(8)]
    play(screen.sink, runs.round(1, range(10), failures=lost))
    shown = [line for line in screen.lines if "failed" in line]
    assert shown[0] == ("client 0 failed in round 1, stage shard on ray-1: DataMissing: first line second ?[31mline")
    assert len(shown) == 6
    assert shown[-1] == "3 more clients failed in round 1; see the report"


def test_nodes_and_notices_are_shown_but_not_every_change() -> None:
    screen = Screen(terminal=False)
    screen.sink.write(NodeChanged(node="ray-1", state="online"))
    screen.sink.write(NodeChanged(node="ray-1", state="lost", reason="no heartbeat for 10 s"))
    screen.sink.write(NodeChanged(node="ray-1", state="left", reason="the run is over"))
    screen.sink.write(Notice(run_id="r1", message="[bold]not markup[/bold]"))
    assert screen.lines == [
        "node ray-1 lost: no heartbeat for 10 s",
        "[bold]not markup[/bold]",
    ]


def test_a_second_run_starts_afresh(runs: Any, tmp_path: Any) -> None:
    screen = Screen(terminal=False)
    screen.sink.write(started())
    play(screen.sink, runs.round(1, [0], evaluation={"accuracy": 0.5}))
    summary = runs.summary(tmp_path, [])
    screen.sink.write(RunFinished(run_id="r1", summary=summary))
    assert screen.sink.summary == summary
    screen.sink.write(started(run_id="r2"))
    assert screen.sink.summary is None
    play(screen.sink, runs.round(1, [0], metrics={"perplexity": 12.5}))
    assert screen.lines[-1].startswith("round 1/3  train perplexity 12.5000  1/1 updates")


@pytest.mark.parametrize("status", ["done", "failed", "interrupted"])
def test_the_end_says_where_everything_is(runs: Any, status: str) -> None:
    folder = runs.make(records=runs.learning(4, 10, 5), status=status)
    (folder / "report.html").write_text("", encoding="utf-8")
    summary = runs.summary(folder, runs.learning(4, 10, 5), status=status)
    screen = Screen(terminal=False)
    print_result(screen.console, summary)
    text = " ".join(" ".join(screen.lines).split())
    assert f"{summary.run_id}: {status}" in text
    for words in ("accuracy", "rounds 4", "sent 19.0 kB up, 40.0 kB down", "missing updates 1", "ab" * 32):
        assert words in text, words
    # paths may be folded over lines in a narrow terminal
    assert f"{folder}/report.html" in "".join("".join(screen.lines).split())
    assert ("fedloom resume" in text) == (status != "done")

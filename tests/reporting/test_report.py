from __future__ import annotations

import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedloom.core.errors import StorageFull, UsageError
from fedloom.core.history import Traffic
from fedloom.core.records import ClientFailure
from fedloom.reporting import page, write_report
from fedloom.reporting.lines import lost_line
from fedloom.reporting.run_folder import RunFolder
from fedloom.reporting.sections.participation import count, participation
from fedloom.reporting.sections.partition import by_likeness, effective_classes

_VOID = {"meta", "br", "img", "link", "hr", "!doctype"}


class Outline(HTMLParser):
    """Every element with its attributes, the text, and whether tags close in order."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(document)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report_of(folder: Path) -> tuple[str, Outline]:
    place = write_report(folder)
    assert place == folder / "report.html"
    document = place.read_text(encoding="utf-8")
    return document, Outline(document)


def test_a_report_has_every_section(runs: Any) -> None:
    folder = runs.make(records=runs.learning(8, 10, 5), workload=runs.partition(10))
    _, outline = report_of(folder)
    for words in (
        "digits", "done", "8 of 8", "held-out data", "loss per round", "accuracy per byte sent",
        "Selected clients by round", "Classes by client", "Clients by number of examples",
        "kB per round, all clients", "sent so far", "waiting for clients", "aggregating", "evaluating",
        "ray-0", "expected 64 pixels, got 63",
        "workload.lr", "torch", "BSD-3-Clause", f"fedloom run {folder}/experiment.toml", "ab" * 32,
    ):  # fmt: skip
        assert words in outline.text, words
    assert "40.0 kB" not in outline.text and "80.0 kB" in outline.text  # 8 rounds x 5 clients x 2,000 bytes down


def test_a_report_loads_nothing_and_runs_nothing(runs: Any) -> None:
    document, outline = report_of(runs.make(records=runs.learning(8, 10, 5), workload=runs.partition(10)))
    assert not re.search(r"""(?:src|href|url|@import)\s*[=(]?\s*["']?(?:https?:)?//""", document)
    assert {"script", "link", "iframe", "object", "embed", "form", "base"}.isdisjoint(
        tag for tag, _ in outline.elements
    )
    for tag, attributes in outline.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:image/png;base64,"[:5]), (tag, attributes)
    policies = [a for tag, a in outline.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policies and (policies[0]["content"] or "").startswith("default-src 'none'")


def test_pictures_can_be_heard(runs: Any) -> None:
    _, outline = report_of(runs.make(records=runs.learning(8, 10, 5), workload=runs.partition(10)))
    pictures = [attributes for tag, attributes in outline.elements if tag == "svg"]
    assert len(pictures) >= 10
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 20 for a in pictures)
    assert any("accuracy per round, against round. held-out data: from" in (a["aria-label"] or "") for a in pictures)
    assert any(tag == "html" and a.get("lang") == "en" for tag, a in outline.elements)


def test_names_from_elsewhere_cannot_become_markup(runs: Any) -> None:
    evil = "<script>alert('x')</script>\"><img src=http://bad onerror=x>\x1b[2J\u202e"
    record = runs.round(
        1, [0, 1], metrics={evil: 1.0}, evaluation={evil: 2.0},
        failures=[ClientFailure(client=1, round=1, stage=evil, error=evil, message=evil, traceback=evil, node=evil)],
    )  # fmt: skip
    record = record.model_copy(update={"nodes": {evil: next(iter(record.nodes.values()))}})
    folder = runs.make(
        records=[record], settings={"name": evil, "workload": {"name": evil, evil.replace("\x1b", ""): evil}},
        workload={"data": {evil: evil}, "label_counts": [[1, 2], [3, 4]], "label_names": [evil, evil]},
        events=[{"event": "RunStarted", "where": evil, "at": evil}, {"event": "Notice", "message": evil}],
        status="failed", error=evil, run_id=evil, environment={evil: evil},
    )  # fmt: skip
    document, outline = report_of(folder)
    tags = {tag for tag, _ in outline.elements}
    assert "script" not in tags and "img" not in tags
    assert "&lt;script&gt;" in document
    assert "\x1b" not in document and "\u202e" not in document


def test_a_run_without_rounds_has_a_report(runs: Any) -> None:
    _, outline = report_of(runs.make(summary=False))
    assert "unfinished" in outline.text and "No round has finished" in outline.text
    assert "fedloom resume" in outline.text


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_broke_off_says_why_and_how_to_resume(runs: Any, status: str) -> None:
    folder = runs.make("a run", records=runs.learning(1, 10, 5), status=status, error="round 2: 3 of 5 answered",
                      model_sha256=None)  # fmt: skip
    _, outline = report_of(folder)
    assert "round 2: 3 of 5 answered" in outline.text
    assert f"fedloom resume '{folder}'" in outline.text  # a path with a space is quoted


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, -1e308, 0.0, 1e-300])
def test_any_metric_can_be_drawn(runs: Any, value: float) -> None:
    values = [1.0, value, value, 0.5]
    records = [runs.round(n, [0], metrics={"loss": v}, evaluation={"loss": value}) for n, v in enumerate(values, 1)]
    document, _ = report_of(runs.make(records=records))
    paths = re.findall(r'<path d="([^"]*)"', document)
    assert all(re.fullmatch(r"(?:[ML]-?[\d.]+ -?[\d.]+)*", path) for path in paths)
    if math.isnan(value):
        assert "No finite value" not in document  # the training curve has some
        assert any(path.count("M") == 2 for path in paths)  # and a gap


def test_nothing_but_nan_says_so(runs: Any) -> None:
    records = [runs.round(1, [0], metrics={"loss": math.nan})]
    assert "No finite value was measured" in report_of(runs.make(records=records))[1].text


def test_nothing_measured_and_nothing_sent(runs: Any) -> None:
    bare = runs.round(1, [], metrics={}).model_copy(update={"traffic": Traffic(), "nodes": {}, "client_seconds": {}})
    _, outline = report_of(runs.make(records=[bare], clients=3))
    assert "The run measured nothing" in outline.text


def test_ten_thousand_clients_stay_readable_and_small(runs: Any) -> None:
    folder = runs.make(records=runs.learning(400, 10_000, 50), clients=10_000, workload=runs.partition(10_000))
    document, outline = report_of(folder)
    assert len(document) < 600_000
    assert "A cell stands for about 157 clients and 3 rounds" in outline.text
    assert "A column is the mean of about 56 similar clients" in outline.text
    assert "400 of 400 rounds" not in outline.text


def test_participation_counts_every_question(runs: Any) -> None:
    lost = ClientFailure(client=2, round=2, stage="train", error="ValueError", message="x")
    records = [runs.round(1, [0, 2]), runs.round(2, [2, 1], failures=[lost])]
    counted = count(RunFolder.read(runs.make(records=records, clients=4)))
    np.testing.assert_array_equal(counted.sampled, [[1, 0], [0, 1], [1, 1], [0, 0]])
    np.testing.assert_array_equal(counted.lost, [[0, 0], [0, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(counted.times, [1, 1, 2, 0])


def test_candidates_are_told_from_the_selected(runs: Any) -> None:
    """Two rounds, each with four candidates of whom two are selected: 4 of 8 were not."""
    records = [runs.round(number, [0, 1], candidates=[0, 1, 2, 3], local_trainings=4) for number in (1, 2)]
    folder = RunFolder.read(runs.make(records=records, clients=4))
    assert "among 8 candidates, 4.0 per round; 4 of them worked and were not selected" in str(participation(folder))
    assert "of 4 candidates" in write_report(folder.path).read_text(encoding="utf-8")
    assert "candidates" not in str(participation(RunFolder.read(runs.make("plain", clients=4))))


def test_binned_participation_loses_nobody(runs: Any) -> None:
    counted = count(RunFolder.read(runs.make(records=runs.learning(500, 1000, 7), clients=1000)))
    assert counted.sampled.shape == (64, 180)
    assert counted.sampled.sum() == counted.times.sum() == 500 * 7
    assert counted.lost.sum() == 125  # every fourth round loses one


def test_effective_classes_are_between_one_and_all() -> None:
    assert effective_classes(np.eye(3)) == pytest.approx(1.0)
    assert effective_classes(np.ones((2, 5))) == pytest.approx(5.0)
    assert effective_classes(np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])) == pytest.approx(
        2.0
    )  # an empty client is none
    assert effective_classes(np.zeros((2, 3))) == 0.0


def test_likeness_keeps_single_class_clients_apart() -> None:
    counts = np.eye(4)[np.arange(400) % 4]  # 400 clients, each of one class, in turn
    columns = by_likeness(counts, 40)
    assert columns.shape == (4, 40)
    np.testing.assert_array_equal(columns.max(axis=0), 1.0)  # averaging in their own order would give 0.25 everywhere


def test_a_full_disk_leaves_the_old_report(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs.make(records=[runs.round(1, [0])])
    before = write_report(folder).read_text(encoding="utf-8")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="no space left"):
        write_report(folder)
    monkeypatch.undo()
    assert (folder / "report.html").read_text(encoding="utf-8") == before
    assert not list(folder.glob(".*"))


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be written"):
        page.write_page(tmp_path / "file" / "x.html", "")


def test_one_cause_of_several_clients_and_rounds_is_one_row(runs: Any) -> None:
    def failure(client: int, round: int) -> ClientFailure:
        where = f"client {client}, round {round}: " if client % 2 else f"client {client}: "
        error, message = "fedloom.core.errors.BadUpdate", f"{where}array 'w' is not finite"
        return ClientFailure(client=client, round=round, stage="aggregate", error=error, message=message, node="lab-1")

    lost = {round: [failure(client, round) for client in (3, 4)] for round in (1, 2)}
    records = [runs.round(round, [3, 4, 5], failures=lost[round]) for round in (1, 2)]
    page = write_report(runs.make(records=records, status="done")).read_text(encoding="utf-8")
    cause = "BadUpdate: array &#x27;w&#x27; is not finite"
    row = f'<th scope="row">{cause}</th><td>aggregate</td><td>3, 4</td><td>1, 2</td>'
    assert page.count(row) == 1
    assert lost_line(lost[1][0]) == (
        "client 3 failed in round 1, stage aggregate on lab-1: BadUpdate: array 'w' is not finite"
    )

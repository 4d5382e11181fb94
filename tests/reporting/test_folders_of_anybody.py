"""Folders of anybody's making: `report` and `compare` import nothing of them, make no markup, and name damage."""

from __future__ import annotations

import copy
import itertools
import json
import tomllib
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedloom.cli import main
from fedloom.core.code_names import CodeName, keep_in_store
from fedloom.core.kinds import SECTIONS
from fedloom.reporting.comparison import compare
from fedloom.reporting.comparison_page import write_picture
from fedloom.reporting.report import write_report
from fedloom.result import History, Report

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)></svg></style><b onclick=x>\x1b[2J\u202e"
CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
FILES = ("experiment.toml", "run.json", "rounds.jsonl", "events.jsonl", "summary.json", "workload.json")
Steps = tuple[str | int, ...]


class Elements(HTMLParser):
    """Elements of a page, each with the names of its attributes."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {tag, *(f"{tag}.{name}" for name, _ in attrs)}


def full(runs: Any, name: str = "run-a") -> Path:
    """A folder in which every section of a report has something to say."""
    record = runs.learning(4, 10, 5)[-1]
    sites = {
        "sites": [{"client": 0, "site": "north", "metrics": {"loss": 1.0}}], "missing": {"south": "gone"},
        "worst": {"loss": {"site": "north", "value": 1.0}}, "p10": {"loss": 1.0},
    }  # fmt: skip
    sections = {"sites": sites, "sites_fine_tuned": {**sites, "times": 1}, "left_out": {"training": {"loss": [1]}}}
    extra = {"sections": sections, "refusals": {"ray-0": "no"}, "info": {"rank": 2.0}, "monitor": {"score": 0.5}}
    matrix = {"sites": ["north"], "models": ["global", "north"], "metrics": {"loss": [[1.0, "n/a"]]}}
    return runs.make(  # type: ignore[no-any-return]
        name, [record.model_copy(update={**extra, "round": number}) for number in (1, 2)],
        workload={**runs.partition(10), "watch": {"loss": "look"}},
        events=[
            {"event": "RunStarted", "where": "here", "at": "2026-01-01", "name": "n", "run_id": "r", "rounds": 1},
            {"event": "Notice", "message": "a notice", "at": "2026-01-01"},
            {"event": "ClientLost",
             "failure": {"client": 1, "round": 3, "stage": "train", "error": "E", "message": "m"}},
        ],
        cross_sites=matrix, error="broke off", status="failed", data={"left_out": {"rows": 3}, "remarks": ["one"]},
    )  # fmt: skip


def places(value: object, at: Steps = ()) -> Iterator[Steps]:
    """Every text, number and key of a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            yield from places(inner, (*at, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:3]):
            yield from places(inner, (*at, number))


def changed(value: Any, at: Steps, new: object) -> Any:
    """The value with another one at a place."""
    whole = copy.deepcopy(value)
    inner = whole
    for step in at[:-1]:
        inner = inner[step]
    inner[at[-1]] = new
    return whole


def contents(folder: Path, file: str) -> list[Any]:
    text = (folder / file).read_text(encoding="utf-8")
    if file.endswith(".toml"):
        return [tomllib.loads(text)]
    return [json.loads(line) for line in (text.splitlines() if file.endswith("l") else [text])]


def write(folder: Path, file: str, values: Sequence[Any]) -> None:
    text = tomli_w.dumps(values[0]) if file.endswith(".toml") else "".join(json.dumps(each) + "\n" for each in values)
    (folder / file).write_text(text, encoding="utf-8")


def variants(folder: Path, new: Callable[[object], object], every: int) -> Iterator[str]:
    """Change one place of one file after the other, or every so-manieth; yields what was changed."""
    for file in FILES:
        before = contents(folder, file)
        for at in list(places(before[0]))[::every]:
            inner = before[0]
            for step in at:
                inner = inner[step]
            try:
                write(folder, file, [changed(before[0], at, new(inner)), *before[1:]])
            except (TypeError, ValueError):  # a value this file cannot have
                continue
            yield f"{file} {at}"
        write(folder, file, before)


def test_nothing_that_a_folder_names_is_imported(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    folder, other = full(runs), full(runs, "run-b")
    places = [folder / "plugins" / "evil.py", folder / "package" / "__init__.py", tmp_path / "fedloom_evil_module.py"]
    for place in places:
        place.parent.mkdir(exist_ok=True)
        place.write_text(CODE, encoding="utf-8")
    named = CodeName.of(places[0])
    stored = keep_in_store(named, places[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(folder)
    for name in (
        "./plugins/evil.py",
        str(places[0]),
        "./package",
        "fedloom_evil_module.x",
        "unittest.__main__",
        str(named),
    ):
        values = contents(folder, "experiment.toml")[0]
        write(folder, "experiment.toml", [values | {section: {"name": name} for section in SECTIONS}])
        assert main(["report", str(folder)]) == 0
    assert main(["compare", str(folder), str(other), "--out", str(tmp_path / "c.html")]) == 0
    assert not [place for place in (*places, stored) if place.with_name("ran").exists()]
    capsys.readouterr()


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_no_text_of_any_file_becomes_markup(runs: Any, tmp_path: Path, every: int) -> None:
    folder, other = full(runs), full(runs, "run-b")
    sound = Elements(write_report(folder).read_text(encoding="utf-8")).found
    sound |= Elements(write_picture(compare([folder, other]), tmp_path / "c.html").read_text(encoding="utf-8")).found
    drawn = 0

    def evil(inner: object) -> object:
        return EVIL if isinstance(inner, str) else {EVIL: inner} if isinstance(inner, int | float) else inner

    for what in variants(folder, evil, every):
        try:
            page = write_report(folder).read_text(encoding="utf-8")
        except Exception:  # what such an error says is the next test's
            continue
        assert "<script" not in page and "\x1b" not in page and "\u202e" not in page, what
        extra = Elements(page).found - sound
        assert not {each for each in extra if each.partition(".")[2].startswith("on") or each in ("img", "script")}, (
            what
        )
        drawn += "&lt;script" in page
    assert drawn > 20 // every, "texts of that many places are in the page"


ODD: tuple[object, ...] = (None, True, -1, 2**63, 10**400, 1e308, float("nan"), "", "x", [], [1], {}, {"a": 1}, [[]])


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_whatever_a_file_holds_the_command_says_which_folder(
    every: int, runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, odd = full(runs), itertools.cycle(ODD)
    for what in variants(folder, lambda inner: next(odd), every):
        code = main(["report", str(folder)])
        said = capsys.readouterr()
        assert code == 0 or (code == 2 and folder.name in said.err), (what, said.err[-300:])
        assert "fault of fedloom" not in said.err and "Traceback" not in said.err, (what, said.err[-600:])


@pytest.mark.parametrize(
    ("file", "at", "value"),
    [
        ("experiment.toml", ("clients",), 10**12), ("experiment.toml", ("rounds",), 10**15),
        ("rounds.jsonl", ("round",), 10**12), ("rounds.jsonl", ("cohort",), [10**12]),
        ("workload.json", ("client_sizes",), [10**15] * 3), ("rounds.jsonl", ("traffic", "bytes_up"), 2**62),
        ("rounds.jsonl", ("timing", "total_s"), 1e300),
    ],
)  # fmt: skip
def test_a_number_takes_no_memory(
    file: str, at: Steps, value: object, runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = full(runs)
    before = contents(folder, file)
    write(folder, file, [changed(before[0], at, value), *before[1:]])
    assert main(["report", str(folder)]) in (0, 2)
    page = folder / "report.html"
    assert not page.exists() or page.stat().st_size < 2_000_000
    capsys.readouterr()


def test_in_a_notebook_a_page_and_names_are_no_markup(tmp_path: Path, runs: Any) -> None:
    """A report's file may have been replaced: a notebook shows it in a frame that runs nothing and sees nothing."""
    (tmp_path / "report.html").write_text(f"<html>{EVIL}</html>", encoding="utf-8")
    assert Elements(Report(tmp_path / "report.html")._repr_html_()).found == {
        "iframe", "iframe.sandbox", "iframe.srcdoc", "iframe.style"
    }  # fmt: skip
    record = runs.round(1, [0], metrics={EVIL: 1.0}, evaluation={EVIL: 2.0})
    assert Elements(History([record])._repr_html_()).found == {"table", "tr", "th", "td"}

"""Which plug-ins a report asks for their part."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedloom.core.kinds import SECTIONS
from fedloom.reporting.console import print_tables
from fedloom.reporting.plugins import Contribution, PlainTable, contributions
from fedloom.reporting.run_folder import RunFolder

REPORT = """
from fedloom.reporting.plugins import Contribution

def build_report(run):
    return Contribution(numbers={"{name}": 1.0})
"""


def run_of(folder: Path, experiment: dict[str, str]) -> RunFolder:
    return RunFolder(path=folder, experiment=experiment, rounds=(), run_id="run")


def test_plugins_of_every_kind_are_asked(tmp_path: Path) -> None:
    experiment = {}
    for name in SECTIONS:
        file = tmp_path / f"{name}.py"
        file.write_text(REPORT.replace("{name}", name), encoding="utf-8")
        experiment[name] = str(file)
    found = contributions(run_of(tmp_path, experiment), with_code=True)
    assert [list(each.numbers) for each in found] == [[name] for name in SECTIONS]


def test_a_file_that_holds_several_plugins_is_asked_once(tmp_path: Path) -> None:
    file = tmp_path / "all.py"
    file.write_text(REPORT.replace("{name}", "all"), encoding="utf-8")
    (found,) = contributions(run_of(tmp_path, dict.fromkeys(SECTIONS, str(file))), with_code=True)
    assert found.numbers == {"all": 1.0}


def test_a_plugin_that_is_not_installed_is_left_out(tmp_path: Path) -> None:
    assert contributions(run_of(tmp_path, {"strategy": "nobodys", "workload": "image_classification"})) == []


def test_a_table_is_aligned_and_printed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = PlainTable(head=("mode", "accuracy"), rows=(("dgl", "97.21 %"), ("end_to_end", "9.8 %")))
    assert table.lines() == ["mode        accuracy", "dgl          97.21 %", "end_to_end     9.8 %"]
    run = run_of(tmp_path, {})
    monkeypatch.setattr("fedloom.reporting.console.RunFolder.read", lambda path: run)
    monkeypatch.setattr("fedloom.reporting.console.contributions", lambda found: [Contribution(tables=(table,))])
    console = Console(file=io.StringIO(), width=40)
    print_tables(console, str(tmp_path))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == ["", *(f"  {line}" for line in table.lines())]

"""Which plug-ins a report asks for their part."""

from pathlib import Path

from fedloom.core.kinds import SECTIONS
from fedloom.reporting.plugins import contributions
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
    found = contributions(run_of(tmp_path, experiment))
    assert [list(each.numbers) for each in found] == [[name] for name in SECTIONS]


def test_a_file_that_holds_several_plugins_is_asked_once(tmp_path: Path) -> None:
    file = tmp_path / "all.py"
    file.write_text(REPORT.replace("{name}", "all"), encoding="utf-8")
    (found,) = contributions(run_of(tmp_path, dict.fromkeys(SECTIONS, str(file))))
    assert found.numbers == {"all": 1.0}


def test_a_plugin_that_is_not_installed_is_left_out(tmp_path: Path) -> None:
    assert contributions(run_of(tmp_path, {"strategy": "nobodys", "workload": "image_classification"})) == []

"""A run records the code around it; resuming and comparing warn where that differs."""

from __future__ import annotations

import importlib.metadata
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import UsageError
from fedloom.core.events import Event, Notice
from fedloom.core.provenance import Provenance, read_provenance, repository
from fedloom.core.run_files import PROVENANCE
from fedloom.reporting.comparison import compare, print_comparison
from fedloom.reporting.comparison_page import render_comparison

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
PLUGIN = """
import scipy
from fedloom.testing.linear import Config, build_workload
"""
TOML = """
name = "recorded"
rounds = 2
clients = 2
strategy = "fedavg"
workload = "./mine.py"
[runtime]
name = "inline"
"""


class Notices:
    def __init__(self) -> None:
        self.found: list[str] = []

    def write(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.found.append(event.message)

    def close(self) -> None:
        """Do nothing."""


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *who, "-C", str(folder), *words], check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with an experiment and its plug-in."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text(PLUGIN, encoding="utf-8")
    (folder / "x.toml").write_text(TOML, encoding="utf-8")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def run(project: Path, name: str) -> Path:
    api.run(Experiment.load(project / "x.toml"), out=project / name, source=project / "x.toml")
    return project / name


def resumed(folder: Path) -> list[str]:
    notices = Notices()
    api.resume(folder, sinks=[notices])
    return notices.found


@needs_git
def test_commit_and_packages_are_in_the_folder_and_the_report(project: Path) -> None:
    folder = run(project, "run")
    found = read_provenance(folder)
    assert found is not None and found.repository is not None
    commit = git(project, "rev-parse", "HEAD")
    assert (found.repository.commit, found.repository.changes_sha256) == (commit, "")
    assert found.packages["scipy"] == importlib.metadata.version("scipy")
    assert "json" not in found.packages and "torch" not in found.packages
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert commit[:12] in report and "package scipy" in report


@needs_git
@pytest.mark.parametrize("change", ["commit", "tracked", "untracked", "package"])
def test_resuming_warns_if_code_has_changed(project: Path, change: str) -> None:
    folder = run(project, "run")
    assert resumed(folder) == []  # the run's own folder in the repository is no change
    before = git(project, "rev-parse", "HEAD")[:12]
    expected = f"commit {before} then, "
    if change == "commit":
        git(project, "commit", "-q", "--allow-empty", "-m", "second")
        expected += git(project, "rev-parse", "HEAD")[:12] + " now"
    elif change == "tracked":
        (project / "x.toml").write_text(TOML + "# more", encoding="utf-8")
        expected += f"{before}, changed ("
    elif change == "untracked":
        (project / "helper.py").write_text("x = 1", encoding="utf-8")
        expected += f"{before}, changed ("
    else:
        stored = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        stored["packages"]["scipy"] = "0.0.1"
        (folder / PROVENANCE).write_text(json.dumps(stored), encoding="utf-8")
        now = importlib.metadata.version("scipy")
        expected = f"package scipy has changed since the run began: version 0.0.1 then, {now} now"
    (said,) = resumed(folder)
    assert expected in said


@needs_git
def test_comparing_warns_if_code_differs(project: Path) -> None:
    first, same = run(project, "first"), run(project, "same")
    assert compare([first, same]).code == ()
    assert "Code that differs" not in render_comparison(compare([first, same]))
    (project / "mine.py").write_text(PLUGIN + "x = 1", encoding="utf-8")
    compared = compare([first, run(project, "other")])
    assert [row.name for row in compared.code] == ["code of workload.name", "commit"]
    screen = io.StringIO()
    print_comparison(Console(file=screen, width=250), compared)
    assert "warning: the runs' code differs" in screen.getvalue()
    assert "Code that differs" in render_comparison(compared)


@needs_git
def test_where_there_is_no_repository_none_is_recorded(tmp_path: Path) -> None:
    assert repository(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert repository(tmp_path) is None  # it has no commit


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) is None
    (tmp_path / PROVENANCE).write_text(Provenance().model_dump_json(), encoding="utf-8")
    assert read_provenance(tmp_path) == Provenance()
    (tmp_path / PROVENANCE).write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"provenance\.json: not a run's provenance"):
        read_provenance(tmp_path)

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedloom import api
from fedloom.cli import main
from fedloom.core import definitions
from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError, Interrupted, QuorumNotReached
from fedloom.core.events import Notice, RunFinished
from fedloom.core.history import RunSummary

TOML = """
rounds = 3
clients = 4
strategy = "fedavg"
workload = "image_classification"
"""


def summary_of(run_dir: Path, status: str = "done") -> RunSummary:
    return RunSummary(
        run_id="r1", run_dir=str(run_dir), name="x", status=status, rounds=3, metrics={"loss": float("nan")},
        bytes_up=10, bytes_down=20, params_up=1, params_down=2, wire_bytes_up=5, wire_bytes_down=6, seconds=1.5,
        model_sha256="ab" * 32, num_parameters=7, seed=1, group_size=1, runtime="inline", workers=1, failures=0,
    )  # fmt: skip


@dataclass
class FakeRuns:
    """Stands where `simulation.api` runs things: remembers what it was asked, ends as it was told."""

    run_dir: Path
    ends: FedloomError | BaseException | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)

    def run(
        self, experiment: Experiment, *, out: Path | None = None, sinks: Sequence[Any] = (), source: Path | None = None
    ) -> Any:
        assert isinstance(experiment, Experiment)
        return self._play({"experiment": experiment, "out": out}, sinks)

    def resume(
        self, run_dir: Path, *, sinks: Sequence[Any] = (), overrides: Sequence[str] = (), as_continuation: bool = False
    ) -> Any:
        assert Path(run_dir).is_dir()
        return self._play({"run_dir": run_dir, "overrides": list(overrides)}, sinks)

    def _play(self, asked: dict[str, Any], sinks: Sequence[Any]) -> Any:
        self.asked.append(asked)
        for sink in sinks:
            sink.write(Notice(run_id="r1", message="something happened"))
        if isinstance(self.ends, BaseException) and not isinstance(self.ends, FedloomError):
            raise self.ends
        status = "done" if self.ends is None else "interrupted" if isinstance(self.ends, Interrupted) else "failed"
        summary = summary_of(self.run_dir, status)
        for sink in sinks:
            sink.write(RunFinished(run_id="r1", summary=summary))
        if self.ends is not None:
            raise self.ends
        return SimpleNamespace(summary=summary)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRuns:
    made = FakeRuns(tmp_path / "run")
    monkeypatch.setattr(api, "run", made.run)
    monkeypatch.setattr(api, "resume", made.resume)
    return made


@pytest.fixture
def toml(tmp_path: Path) -> str:
    (tmp_path / "mine.toml").write_text(TOML, encoding="utf-8")
    return str(tmp_path / "mine.toml")


def test_options_become_settings(fake: FakeRuns, toml: str, tmp_path: Path) -> None:
    code = main(["run", toml, "--set", "rounds=7", "--set", "round.deadline_s=2.5", "--runtime", "process", "--workers",
                 "3", "--seed", "11", "--out", str(tmp_path / "here"), "--ray-address", "10.0.0.1:6379"])  # fmt: skip
    assert code == 0
    asked = fake.asked[0]
    experiment = asked["experiment"]
    assert (experiment.rounds, experiment.seed, experiment.round.deadline_s) == (7, 11, 2.5)
    assert experiment.runtime.model_dump() == {
        "name": "process", "workers": 3, "ray_address": "10.0.0.1:6379", "cpus_per_worker": 1.0, "gpus_per_worker": 0.0,
    }  # fmt: skip
    assert asked["out"] == tmp_path / "here"


def test_without_options_the_experiment_is_as_written(fake: FakeRuns, toml: str) -> None:
    assert main(["run", toml]) == 0
    assert fake.asked == [{"experiment": Experiment.load(toml), "out": None}]


def test_json_is_the_last_line_and_alone_on_stdout(
    fake: FakeRuns, toml: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", toml, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 1
    values = json.loads(shown.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert {"run_id", "run_dir", "rounds", "metrics", "bytes_up", "bytes_down", "params_up", "params_down", "seconds",
            "model_sha256"} <= values.keys()  # fmt: skip
    assert values["metrics"] == {"loss": None}
    assert "something happened" in shown.err and "r1: done" in shown.err


def test_without_json_people_read_stdout(fake: FakeRuns, toml: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", toml]) == 0
    shown = capsys.readouterr()
    assert "something happened" in shown.out and "r1: done" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("ends", "code", "status"),
    [
        (QuorumNotReached("3 of 5 [bold]answered"), 1, "failed"),
        (Interrupted("stopped after round 3"), 130, "interrupted"),
    ],
)
def test_a_run_that_breaks_off(
    fake: FakeRuns, toml: str, capsys: pytest.CaptureFixture[str], ends: FedloomError, code: int, status: str
) -> None:
    fake.ends = ends
    assert main(["run", toml, "--json"]) == code
    shown = capsys.readouterr()
    assert json.loads(shown.out)["status"] == status
    assert f"fedloom resume {fake.run_dir}" in shown.err
    assert shown.err.endswith(f"fedloom: {ends}\n")  # the message last, its brackets untouched
    assert "Traceback" not in shown.err


def test_an_internal_error_is_called_one(fake: FakeRuns, toml: str, capsys: pytest.CaptureFixture[str]) -> None:
    fake.ends = ZeroDivisionError("division by zero")
    assert main(["run", toml]) == 1
    shown = capsys.readouterr()
    assert "internal error: ZeroDivisionError: division by zero" in shown.err
    assert "--debug" in shown.err and "Traceback" not in shown.err


def test_an_early_ctrl_c_is_an_interrupt(fake: FakeRuns, toml: str, capsys: pytest.CaptureFixture[str]) -> None:
    fake.ends = KeyboardInterrupt()
    assert main(["run", toml]) == 130
    assert capsys.readouterr().err == "fedloom: interrupted\n"


@pytest.mark.parametrize("where", [["--debug", "run"], ["run", "--debug"]])
def test_debug_shows_the_traceback(
    fake: FakeRuns, toml: str, capsys: pytest.CaptureFixture[str], where: list[str]
) -> None:
    fake.ends = QuorumNotReached("3 of 5")
    assert main([*where, toml]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debug_by_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, value: str, shown: bool
) -> None:
    monkeypatch.setenv("FEDLOOM_DEBUG", value)
    assert main(["report", str(tmp_path)]) == 2
    assert ("Traceback" in capsys.readouterr().err) == shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "Missing argument 'TARGET'"),
        (["run", "no-such-preset"], "'no-such-preset'"),
        (["run", "nowhere/mine.toml"], "experiment file 'nowhere/mine.toml' not found"),
        (["run", "{toml}", "--set", "rouds=3"], "did you mean 'rounds'?"),
        (["run", "{toml}", "--set", "rounds"], "expected KEY=VALUE"),
        (["run", "{toml}", "--set", "strategy=fedvag"], "did you mean 'fedavg'?"),
        (["run", "{toml}", "--runtime", "cluster"], "'cluster' is not one of 'ray', 'process', 'inline'"),
        (["run", "{toml}", "--workers", "0"], "--workers"),
        (["run", "{toml}", "--wrokers", "2"], "--wrokers"),
        (["resume", "{folder}"], "it has no experiment.toml"),
        (["resume", "{folder}/nowhere"], "does not exist"),
        (["report", "{folder}"], "it has no experiment.toml"),
        (["compare", "{folder}"], "at least two run folders, got 1"),
        (["compare", "{folder}", "{toml}"], "not a run's folder"),
        (["list", "everything"], "'everything' is not one of"),
        (["show", "no-such-preset"], "'no-such-preset' is not a preset"),
        (["sing"], "No such command 'sing'"),
    ],
)
def test_wrong_usage_has_one_message_and_code_2(
    capsys: pytest.CaptureFixture[str], toml: str, tmp_path: Path, arguments: list[str], said: str
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert main([each.format(toml=toml, folder=folder) for each in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("fedloom: ") and said in shown.err
    assert "Traceback" not in shown.err


def test_resume_may_run_elsewhere(fake: FakeRuns, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "experiment.toml").write_text(TOML, encoding="utf-8")
    assert main(["resume", str(folder), "--runtime", "inline", "--workers", "2"]) == 0
    assert fake.asked == [{"run_dir": folder, "overrides": ['runtime.name="inline"', "runtime.workers=2"]}]


def test_lists_name_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "strategies"]) == 0
    shown = capsys.readouterr().out
    assert "fedavg" in shown and "Federated averaging: the weighted mean of the clients' models" in shown
    assert main(["list", "studies"]) == 0
    shown = capsys.readouterr().out
    assert "sfedca-smoke" in shown and "The study sfedca in miniature; its numbers mean nothing" in shown
    assert "fedavg" not in shown
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    kinds = ("presets", "strategies", "workloads", "selection", "monitors", "studies")
    assert all(word in shown for word in (*kinds, "uniform", "mano-monitor"))


def test_the_help_of_list_names_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--help"]) == 0
    assert "[presets|strategies|workloads|selection|monitors|studies]" in capsys.readouterr().out


def test_presets_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "demo.toml"
    preset.write_text("# What it shows [brackets]\nrounds = 3  # [bold]\n", encoding="utf-8")
    monkeypatch.setattr(definitions, "found", lambda what: {"demo": preset} if what == "presets" else {})
    assert main(["show", "demo"]) == 0
    assert capsys.readouterr().out == preset.read_text(encoding="utf-8")
    assert main(["list", "presets"]) == 0
    assert "What it shows [brackets]" in capsys.readouterr().out
    assert main(["show", "dmo"]) == 2
    assert "did you mean 'demo'?" in capsys.readouterr().err


def test_a_preset_s_name_comes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-fedavg").mkdir()
    assert api.load("digits-fedavg").name == "digits-fedavg"
    for folder in ("./digits-fedavg", Path("digits-fedavg")):
        with pytest.raises(FedloomError, match="no plug-in makes an experiment of"):
            api.load(folder)


def test_reports_and_comparisons_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.toml").write_text(
            TOML.replace("rounds = 3", f"rounds = {len(name) + ord(name)}"), encoding="utf-8"
        )
    assert main(["report", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a/report.html\n"
    assert (tmp_path / "a" / "report.html").is_file()
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "a", "b"]) == 0
    shown = capsys.readouterr().out
    assert "settings that differ" in shown and "curves: comparison.html" in shown
    assert (tmp_path / "comparison.html").is_file()
    assert main(["compare", "a", "b", "--out", "other.html"]) == 0
    assert (tmp_path / "other.html").is_file()


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert "Usage: fedloom" in shown.out + shown.err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fedloom 0.")


def test_arguments_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    assert (
        "A preset's name, a TOML file, a Flower app's folder, or a program that simulates one."
        in capsys.readouterr().out
    )


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from fedloom.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'ray', 'flwr', 'grpc', 'numpy', 'pydantic', 'transformers'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = "import sys; from fedloom.cli import main; sys.exit(main(['list', 'strategies']))"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.close()
    _, complaints = child.communicate(timeout=60)
    assert child.returncode == 1
    assert b"Traceback" not in complaints and b"BrokenPipe" not in complaints

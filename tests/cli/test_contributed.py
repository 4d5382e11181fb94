"""What plug-ins' folders contribute to the command line: verbs, and folders that `fedloom run` reads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedloom import api
from fedloom.cli.app import main
from fedloom.core import contributed
from fedloom.core.errors import PluginInvalid, UnknownName

GREET = '''"""Greet somebody."""

import typer

def build_command():
    app = typer.Typer()

    @app.command()
    def anything(name: str, loud: bool = False):
        """Say hello to NAME."""
        if name == "nobody":
            raise ValueError("there is nobody")
        typer.echo(f"hello {name}" + ("!" if loud else ""))

    return app
'''
TOOLS = '''"""Tools of a paper."""

import typer

def build_command():
    app = typer.Typer()
    app.command("one")(lambda: typer.echo("one was used"))
    app.command("two")(lambda: typer.echo("two was used"))
    return app
'''
LOADER = '''"""The folder of a tiny app, with a file tiny.txt."""

from fedloom.core.config import Experiment

def describes(folder):
    return (folder / "tiny.txt").is_file()

def load(folder, overrides):
    return Experiment.parse(
        {"rounds": 1, "clients": int((folder / "tiny.txt").read_text(encoding="utf-8")), "strategy": "fedavg",
         "workload": "image_classification"}
    ).override(overrides)
'''


def install(site: Path, name: str, **files: str) -> Path:
    """A package that is installed as a wheel would be; `files` are those of its commands."""
    package, info = site / name, site / f"{name}-1.0.dist-info"
    (package / "commands").mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text(f'"""The paper {name}."""\n', encoding="utf-8")
    for verb, text in files.items():
        (package / "commands" / f"{verb}.py").write_text(text, encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    points = f"[fedloom.strategies]\n{name} = {name}\nsame = {name}\n[fedloom.workloads]\n{name} = {name}\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    return package


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where packages are installed; what they import is forgotten."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tiny_paper", "other_paper")]:
        del sys.modules[name]


class TestVerbs:
    def test_the_help_shows_them_and_imports_none(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        install(site, "tiny_paper", greet=GREET, _helper="raise RuntimeError('imported')")
        assert main(["--help"]) == 0
        shown = capsys.readouterr().out
        assert "greet" in shown and "Greet somebody." in shown and "_helper" not in shown
        assert "adapters" in shown and "Adapters of a low-rank run, in PEFT's form." in shown
        assert "tiny_paper" not in sys.modules
        assert [each.name for each in contributed.commands() if not each.bundled] == ["greet"]

    def test_one_without_a_group_is_the_verb_itself(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        install(site, "tiny_paper", greet=GREET)
        assert main(["greet", "you", "--loud", "--debug"]) == 0
        assert capsys.readouterr().out == "hello you!\n"
        assert main(["greet"]) == 2 and "Missing argument 'NAME'" in capsys.readouterr().err
        assert main(["greet", "--help"]) == 0
        shown = capsys.readouterr().out
        assert "Usage: fedloom greet [OPTIONS] NAME" in shown and "Say hello to NAME." in shown
        assert "completion" not in shown

    def test_a_group_has_its_verbs_below(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        install(site, "tiny_paper", tools=TOOLS)
        assert main(["tools", "two", "--debug"]) == 0
        assert capsys.readouterr().out == "two was used\n"
        assert main(["tools", "three"]) == 2
        assert "No such command 'three'" in capsys.readouterr().err

    def test_the_nearest_is_offered_once(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        install(site, "tiny_paper", greet=GREET)
        for given, meant in (("gret", "greet"), ("rnu", "run"), ("adaptors", "adapters")):
            assert main([given]) == 2
            said = capsys.readouterr().err
            assert f"No such command {given!r}. Did you mean {meant!r}?" in said and said.count("Did you mean") == 1

    def test_the_platforms_own_comes_first(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        install(site, "tiny_paper", show=GREET)
        assert main(["show", "you"]) == 2
        assert "'you' is not a preset" in capsys.readouterr().err

    def test_two_of_one_name_are_an_error_when_it_is_used(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        paths = [install(site, name, greet=GREET) / "commands" / "greet.py" for name in ("other_paper", "tiny_paper")]
        assert main(["--help"]) == 0 and main(["list", "monitors"]) == 0
        capsys.readouterr()
        assert main(["greet", "you"]) == 2
        said = capsys.readouterr().err
        assert "several plug-ins have a command by this name" in said and all(str(path) in said for path in paths)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("import a_module_nobody_has\n", r"tiny.py, line 1: .*No module named 'a_module_nobody_has'"),
            ('"""No function."""\n', "expected a function build_command, found None"),
            ("def build_command():\n    return 3\n", "build_command returned 3, expected a typer.Typer"),
            ("import typer\nbuild_command = typer.Typer\n", "a typer.Typer without a command"),
            ("def build_command(x):\n    pass\n", "build_command: TypeError"),
            ("import snntorch\nraise SystemError('x')", "SystemError: x"),
        ],
        ids=["import", "nothing", "not a command", "empty", "arguments", "raises"],
    )
    def test_a_broken_one_is_named_and_all_others_work(
        self, text: str, says: str, site: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install(site, "tiny_paper", tiny=text)
        assert main(["--help"]) == 0 and main(["list", "monitors"]) == 0
        capsys.readouterr()
        with pytest.raises(PluginInvalid, match=f"(?s){says}"):
            raise_from(["tiny"])
        assert main(["tiny"]) == 2 and "tiny.py" in capsys.readouterr().err


def raise_from(arguments: list[str]) -> None:
    """The error a command raises, before it becomes an exit code."""
    from fedloom.cli.app import app

    app(arguments, standalone_mode=False)


class TestFolders:
    def test_a_plug_in_makes_an_experiment_of_them(self, site: Path, tmp_path: Path) -> None:
        (install(site, "tiny_paper") / "loader.py").write_text(LOADER, encoding="utf-8")
        (tmp_path / "app").mkdir()
        (tmp_path / "app" / "tiny.txt").write_text("7", encoding="utf-8")
        experiment = api.load(tmp_path / "app", ["rounds=3"])
        assert (experiment.num_clients, experiment.rounds) == (7, 3)

    def test_others_are_refused_with_what_there_is(
        self, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (install(site, "tiny_paper") / "loader.py").write_text(LOADER, encoding="utf-8")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UnknownName) as caught:
            api.load(tmp_path / "empty")
        said = str(caught.value)
        assert "no plug-in makes an experiment of" in said
        assert "flower: The folder of a Flower app" in said
        assert "tiny_paper: The folder of a tiny app, with a file tiny.txt." in said
        assert main(["run", str(tmp_path / "empty")]) == 2

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (
                "def describes(folder):\n    return True\ndef load(folder, overrides):\n    return {}\n",
                "load returned {}",
            ),
            ("def describes(folder):\n    return folder.no_such\n", "loader.py, line 2: .*no_such"),
        ],
    )
    def test_a_broken_one_is_named(self, text: str, says: str, site: Path, tmp_path: Path) -> None:
        (install(site, "tiny_paper") / "loader.py").write_text(text, encoding="utf-8")
        (tmp_path / "app").mkdir()
        with pytest.raises(PluginInvalid, match=says):
            api.load(tmp_path / "app")

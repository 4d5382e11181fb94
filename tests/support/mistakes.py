"""Mistakes in users' code, each tried through the commands that read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from fedloom.cli import main

COMMANDS = ("check", "run", "submit")
Mistake = tuple[str, str, str, str, str]
"""What is wrong, the text to replace and its replacement, the line that is named, the words of the error."""


def through_commands(mistakes: Mapping[str, Mistake], *, never: Iterable[tuple[str, str]] = ()) -> list[ParameterSet]:
    """Return each mistake with each command: one command in turn among the fast tests, the others among the slow ones.

    Args:
        mistakes: by name.
        never: kinds of mistakes and commands that do not meet.
    """
    left_out = set(never)
    pairs = [
        (name, mistake, [command for command in COMMANDS if (mistake[0], command) not in left_out])
        for name, mistake in mistakes.items()
    ]
    return [
        pytest.param(
            *mistake,
            command,
            id=f"{name}-{command}",
            marks=[] if commands.index(command) == number % len(commands) else [pytest.mark.slow],
        )
        for number, (name, mistake, commands) in enumerate(pairs)
        for command in commands
    ]


def expect_refusal(
    command: str, toml: Path, code: Path, at: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run a command on an experiment; it must end as wrong input, name a line of the code, and leave no run folder.

    Args:
        command: one of `COMMANDS`.
        toml: the experiment.
        code: the user's file.
        at: text of the lines that may be named; empty if no line is.
        said: text of the error.
        capsys: of the test.
    """
    out = toml.parent / "run"
    more = {"check": [], "run": ["--out", str(out)], "submit": ["--server", "127.0.0.1:9"]}
    lines = code.read_text(encoding="utf-8").splitlines()
    places = [f"{code}, line {number}" for number, line in enumerate(lines, 1) if at and at in line]
    status, err = main([command, str(toml), *more[command]]), capsys.readouterr().err
    assert status == 2 and said in err, f"{status}: {err}"
    assert not at or any(err.startswith(f"fedloom: {place}") for place in places), err
    assert not out.exists()

"""Shared by all tests: an environment of their own, a tiny experiment, and where its workload lies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from types import TracebackType
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile(  # nothing depends on how fast, or how busy, the machine is
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")
pytest.register_assert_rewrite("fedloom.testing")

from fedloom.core.config import Experiment  # noqa: E402  # after the line above
from fedloom.simulation.ray_privacy import set_up_variables  # noqa: E402
from fedloom.testing.linear import __file__ as LINEAR  # noqa: E402

_OF_THE_USER = re.compile(
    r"(?i)(ray|flwr|fedloom|hf|huggingface|transformers|grpc|xdg|lc|lang|tty|clicolor|_?typer)(_.*)?"
    r"|python.*|language|columns|lines|terminal_width|(no|force)_color|colorterm|py_colors|github_actions"
    r"|(no|all|http|https|ftp)_proxy"
    r"|ci|build_number"  # where pytest finds these it shows whole differences, which takes minutes for large arrays
)
"""Variables that change what fedloom, its libraries, pytest or a terminal do: no test depends on those of the user."""
_OF_THE_TESTS = {
    "LC_ALL": "C.UTF-8",
    "TERM": "xterm",
    "PYTHONUTF8": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What the processes that tests start find instead. Time zone and umask stay as they are: tests hold under any."""


def _isolate() -> Path:
    """Give this process and those it starts an environment of the tests' own; the home folder that was made."""
    for name in [name for name in os.environ if _OF_THE_USER.fullmatch(name)]:
        del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="fedloom-home-"))
    os.environ.update(_OF_THE_TESTS, HOME=str(home))
    os.environ.update(set_up_variables(os.environ, home, joins=False))  # before a test imports Ray in this process
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; tests press Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return home


_HOME = _isolate()  # before the tests' modules are imported: some libraries read the environment then


def pytest_unconfigure() -> None:
    """Remove the tests' home folder."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """Give each frame of a failure a line: a time-out may hit an instruction without one, which pytest cannot show."""
    try:
        return (yield)
    except BaseException as exc:
        raise exc.with_traceback(_numbered(exc.__traceback__)) from exc.__cause__


def _numbered(entry: TracebackType | None) -> TracebackType | None:
    if entry is None:
        return None
    line = entry.tb_lineno or entry.tb_frame.f_code.co_firstlineno
    return TracebackType(_numbered(entry.tb_next), entry.tb_frame, entry.tb_lasti, line)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own, with identities of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))


@pytest.fixture
def linear() -> Callable[..., Experiment]:
    """Makes the small linear-regression experiment; keyword arguments replace settings, `workload` is merged."""

    def make(**values: Any) -> Experiment:
        workload = {"name": LINEAR, **values.pop("workload", {})}
        base = {"rounds": 4, "clients": 12, "cohort": 6, "strategy": "fedavg", "runtime": {"name": "inline"}}
        return Experiment.parse({**base, "workload": workload, **values})

    return make

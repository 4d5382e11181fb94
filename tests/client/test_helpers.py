"""Helpers in this process and in processes of their own: called, failing, counted, and never left behind."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support_paths import SUPPORT

from fedloom.client.helper_processes.inline import InlineHelpers
from fedloom.client.helper_processes.limit import HelperLimit, RunHelpers
from fedloom.client.helper_processes.process import ProcessHelpers
from fedloom.core.errors import ClientFailed, PolicyRefused
from fedloom.core.protocols import HelperHandle, Helpers
from fedloom.core.registry import load_file
from fedloom.testing.fleet import wait_until

TABLE = load_file(SUPPORT / "helping.py").Table


@pytest.fixture(params=[InlineHelpers, ProcessHelpers])
def helpers(request: pytest.FixtureRequest) -> Iterator[RunHelpers]:
    inner: Helpers = request.param()
    made = RunHelpers(inner, HelperLimit(None))
    yield made
    made.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_helper_keeps_what_it_made_and_copies_what_it_is_given(helpers: RunHelpers) -> None:
    helper, other = helpers.start(TABLE, 1, 4), helpers.start(TABLE, 2, 4)
    w = np.arange(4, dtype=np.float32)
    matrix = np.random.Generator(np.random.PCG64(1)).standard_normal((4, 4)).astype(np.float32)
    step = helper.call("step", w, 2.0)
    assert isinstance(step, np.ndarray) and step.flags.writeable and w.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(step, np.float32(2.0) * np.tanh(matrix @ w))
    assert not np.array_equal(step, np.asarray(other.call("step", w, 2.0)))


def test_what_a_helper_raises_comes_with_its_traceback_and_it_continues(helpers: RunHelpers) -> None:
    helper = helpers.start(TABLE, 1, 4)
    with pytest.raises(ClientFailed, match=r"helper Table:\n(?s:.*)in fail(?s:.*)ValueError: the table is broken"):
        helper.call("fail")
    with pytest.raises(ClientFailed, match=r"no (attribute|method) 'mend'"):
        helper.call("mend")
    with pytest.raises(ClientFailed, match="missing 1 required positional argument"):
        helpers.start(TABLE, 1)
    assert isinstance(helper.call("where"), int)


def test_only_what_another_process_can_import_makes_a_helper(helpers: RunHelpers) -> None:
    for factory in (lambda: TABLE(1, 4), helpers.start):
        with pytest.raises(ClientFailed, match="expected a top-level function or class of an importable module, got"):
            helpers.start(factory)


def test_stopped_is_stopped(helpers: RunHelpers) -> None:
    helper = helpers.start(TABLE, 1, 4)
    helper.stop()
    helper.stop()
    with pytest.raises(ClientFailed, match=r"(stopped|has ended)"):
        helper.call("where")


def test_a_factory_of_an_installed_module_needs_no_file(helpers: RunHelpers) -> None:
    from fractions import Fraction

    assert helpers.start(Fraction, 355, 113).call("limit_denominator", 10) == Fraction(22, 7)


class TestProcesses:
    def start(self) -> tuple[HelperHandle, int]:
        helper = ProcessHelpers().start(TABLE, 1, 4)
        pid = helper.call("where")
        assert isinstance(pid, int) and pid != os.getpid()
        return helper, pid

    def test_each_is_a_process_that_ends_when_it_is_stopped(self) -> None:
        helper, pid = self.start()
        assert alive(pid)
        helper.stop()
        assert not alive(pid)

    def test_one_that_dies_says_how(self) -> None:
        helper, pid = self.start()
        with pytest.raises(ClientFailed, match=r"helper Table: its process has ended \(exit status 7\)"):
            helper.call("die")
        helper.stop()
        helper, pid = self.start()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ClientFailed, match=r"its process has ended \(signal 9\)"):
            helper.call("where")
        helper.stop()

    def test_it_ends_with_a_parent_that_is_killed_in_the_middle_of_a_call(self) -> None:
        code = (
            "import sys; from pathlib import Path\n"
            "from fedloom.client.helper_processes.process import ProcessHelpers\n"
            "from fedloom.core.registry import load_file\n"
            "helper = ProcessHelpers().start(load_file(Path(sys.argv[1])).Sleeper)\n"
            "print(helper.call('where'), flush=True); helper.call('sleep')\n"
        )
        parent = subprocess.Popen(
            [sys.executable, "-c", code, str(SUPPORT / "sleeping_helper.py")], stdout=subprocess.PIPE, encoding="utf-8"
        )
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        wait_until(lambda: not alive(pid), 60, "the end of the helper")


class TestLimit:
    def test_a_node_has_as_many_as_its_policy_allows_all_runs_together(self) -> None:
        limit = HelperLimit(2)
        one, other = RunHelpers(InlineHelpers(), limit), RunHelpers(InlineHelpers(), limit)
        one.start(TABLE, 1, 4)
        second = other.start(TABLE, 1, 4)
        for helpers in (one, other):
            with pytest.raises(PolicyRefused, match=r"beyond the 2 allowed here \(limits.helpers\)") as caught:
                helpers.start(TABLE, 1, 4)
            assert caught.value.kind == "helpers"
        second.stop()
        second.stop()
        other.start(TABLE, 1, 4)
        one.close()
        other.start(TABLE, 1, 4)

    def test_one_that_could_not_be_made_does_not_count(self) -> None:
        helpers = RunHelpers(InlineHelpers(), HelperLimit(1))
        with pytest.raises(ClientFailed):
            helpers.start(TABLE)
        helpers.start(TABLE, 1, 4)


def test_a_factory_in_a_plugins_folder_is_found_by_another_process(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("", encoding="utf-8")
    (folder / "adding.py").write_text(
        "class Adds:\n    def add(self, one, two):\n        return one + two\n", encoding="utf-8"
    )
    package = load_file(folder)
    factory = vars(importlib.import_module(f"{package.__name__}.adding"))["Adds"]
    helper = ProcessHelpers().start(factory)
    try:
        assert helper.call("add", 1, 2) == 3
    finally:
        helper.stop()

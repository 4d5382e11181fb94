"""Runs the tests next to a run; their numbers are in its folder, one file each."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from fedloom.core.config import Experiment
from fedloom.core.kinds import Kind
from fedloom.core.plugins import build_value
from fedloom.core.records import Info, JsonObject
from fedloom.core.registry import PartRef
from fedloom.reporting.page import write_page
from fedloom.reporting.study_part import StudyPart
from fedloom.studies.parts import PlannedTest


def to_message(test: PlannedTest) -> JsonObject:
    """Return the test as one JSON object, for a worker."""
    plugin = {"kind": test.ref.kind.value, "name": test.ref.name}
    return {"name": test.name, "plugin": plugin, "settings": test.test.model_dump(mode="json")}


def from_message(message: Info) -> PlannedTest:
    """Return the test that `to_message` was given.

    Raises:
        UnknownName: the plug-in is not installed here.
        PluginInvalid: its study part is not sound.
    """
    ref = PartRef(Kind(message["plugin"]["kind"]), message["plugin"]["name"], "study")
    kind = build_value(ref, StudyPart).tests[message["name"]]
    return PlannedTest(message["name"], ref, kind.model_validate(message["settings"]))


def do_test(test: PlannedTest, experiment: Experiment, folder: Path) -> None:
    """Do a test for a run's experiment and write its finite numbers to the run's folder."""
    numbers = {name: value for name, value in test.test.measure(experiment).items() if math.isfinite(value)}
    write_page(_file(folder, test), json.dumps(numbers) + "\n")


def all_done(tests: Sequence[PlannedTest], folder: Path) -> bool:
    """Return whether the numbers of all tests are in the run's folder."""
    return all(_file(folder, test).is_file() for test in tests)


def read_tests(tests: Sequence[PlannedTest], folder: Path) -> dict[str, float]:
    """Return the numbers of the tests next to a run."""
    done = [_file(folder, test) for test in tests if _file(folder, test).is_file()]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in done]
    return {name: float(value) for numbers in found for name, value in numbers.items()}


def _file(folder: Path, test: PlannedTest) -> Path:
    return folder / f"test-{test.name}.json"

"""The files of a run's folder: their names, and how those of lines and of JSON are read and written.

    runs/<id>/
      experiment.toml     the resolved experiment
      run.json            the run's id
      run.lock            the process at work in the folder, on file systems without locks
      plugins.json        files and folders of code that the experiment names by path, with their SHA-256
      plugins/            copies of these
      data.json           where the data lies that the experiment names by path, as seen from this folder
      provenance.json     commit of the repository around the experiment, versions of the packages its parts import
      workload.json       source and partition of the data
      rounds.jsonl        one record per round
      choices.jsonl       the selection's input and choice, round by round
      rosters.jsonl       where clients are sites: which site is which client, and which of them are connected
      events.jsonl        everything that happened, with its time
      checkpoints/        round-000012.<checksum>.safetensors, and pinned-<digest>.safetensors, what does not change
      clients/            states of stateful clients
      updates/            where a run keeps what clients change: <round>/<client>.safetensors
      start.safetensors   the model the run begins with, where it is not the workload's initial one
      answers/            on a standing server: results since the last checkpoint
      model/              model.safetensors, the final arrays
      summary.json  report.html

One damage is expected: a process that was killed, or met a full disk, leaves a last line without its newline. Readers
skip such a torn line, and the next line written replaces it. Everything else is an error that names file and line.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pydantic

from fedloom.core.errors import UsageError
from fedloom.core.history import Choice, RosterLine, RoundRecord, RunSummary
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import Info

EXPERIMENT = "experiment.toml"
RUN = "run.json"
LOCK = "run.lock"
PLUGINS_LIST = "plugins.json"
PLUGINS = "plugins"
DATA_LIST = "data.json"
PROVENANCE = "provenance.json"
WORKLOAD = "workload.json"
ROUNDS = "rounds.jsonl"
CHOICES = "choices.jsonl"
ROSTERS = "rosters.jsonl"
EVENTS = "events.jsonl"
SUMMARY = "summary.json"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
CLIENTS = "clients"
UPDATES = "updates"
START = "start.safetensors"
ANSWERS = "answers"
MODEL = "model/model.safetensors"

_MAX_COUNT = 2**53
"""Bound of numbers of examples, which are exact as floats."""
_VERSION = "was it written by another version of fedloom?"
Line = TypeVar("Line", RoundRecord, Choice, RosterLine)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file of lines, in place of a torn one.

    Args:
        path: the file; created if it does not exist.
        line: without its newline.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.ftruncate(descriptor, path.read_bytes().rfind(b"\n") + 1)
        rest = memoryview(line.encode() + b"\n")
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def read_rounds(folder: Path, upto: int | None = None) -> list[RoundRecord]:
    """Read `rounds.jsonl`, in the order of its lines; a resumed run may have done a round twice.

    Args:
        folder: the run's.
        upto: the last round to read; later lines may be damaged. None for all.

    Raises:
        UsageError: a line is no round record; the message names it.
    """
    return _records(folder / ROUNDS, RoundRecord, "a round record", upto)


def read_choices(folder: Path, upto: int | None = None) -> list[Choice]:
    """Read `choices.jsonl`; arguments and errors as for `read_rounds`."""
    return _records(folder / CHOICES, Choice, "a record of choices", upto)


def read_rosters(folder: Path) -> list[RosterLine]:
    """Read `rosters.jsonl`; errors as for `read_rounds`."""
    return _records(folder / ROSTERS, RosterLine, "a record of a roster", None)


def read_events(folder: Path) -> list[Info]:
    """Read `events.jsonl`: for each event its class's name in `event`, ISO time in `at`, and its fields.

    Raises:
        UsageError: a line is no JSON object; the message names it.
    """
    return [_object(line, f"{folder / EVENTS}, line {number}") for number, line in _whole_lines(folder / EVENTS)]


def read_run_id(folder: Path) -> str:
    """Read the run's id; the folder's name if it was never written.

    Raises:
        UsageError: `run.json` is damaged.
    """
    path = folder / RUN
    return str(_object(path.read_bytes(), str(path))["run_id"]) if path.is_file() else folder.resolve().name


def read_workload(folder: Path) -> WorkloadInfo | None:
    """Read the workload's description; None if it is not there yet.

    Raises:
        UsageError: `workload.json` is damaged, or of another version.
    """
    path = folder / WORKLOAD
    if not path.is_file():
        return None
    try:
        return workload_of(_object(path.read_bytes(), str(path)))
    except ValueError as exc:
        raise UsageError(f"{path}: {exc}; {_VERSION}") from exc


def read_summary(folder: Path) -> RunSummary | None:
    """Read the run's summary; None while it runs, and after it was killed.

    Raises:
        UsageError: `summary.json` is damaged, or of another version.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return None
    try:
        return RunSummary.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as exc:
        raise UsageError(f"{path}: " + _problem(exc, "a run's summary")) from exc


def workload_values(info: WorkloadInfo) -> Info:
    """Turn a workload's description into a JSON object; `workload_of` reads it back."""
    return dataclasses.asdict(info)


def workload_of(values: Info) -> WorkloadInfo:
    """Turn a JSON object into a workload's description.

    Raises:
        ValueError: a key is missing, unknown, of the wrong type or out of range; the message names it.
    """
    unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(WorkloadInfo)})
    if unknown:
        raise ValueError(f"not a workload's description: unknown key {unknown[0]!r}")
    try:
        info = _workload_adapter().validate_python(values)
    except pydantic.ValidationError as exc:
        raise ValueError(f"not a workload's description: {_first(exc)}") from exc
    _check_counts("client_sizes", [info.client_sizes])
    _check_counts("label_counts", info.label_counts)
    return info


def _check_counts(key: str, rows: Sequence[Sequence[int]]) -> None:
    """Refuse rows of different lengths, and numbers that count nothing."""
    for row in rows:
        wrong = next((count for count in row if not 0 <= count < _MAX_COUNT), None)
        if wrong is not None:
            raise ValueError(f"not a workload's description: {key}: expected counts below 2^53, got {str(wrong)[:40]}")
        if len(row) != len(rows[0]):
            raise ValueError(
                f"not a workload's description: {key}: expected rows of one length, got {len(rows[0])} and {len(row)}"
            )


@functools.cache
def _workload_adapter() -> pydantic.TypeAdapter[WorkloadInfo]:
    return pydantic.TypeAdapter(WorkloadInfo)


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that have their newline, numbered from 1."""
    if path.is_file():
        *whole, _torn = path.read_bytes().split(b"\n")
        yield from enumerate(whole, start=1)


def _records(path: Path, kind: type[Line], what: str, upto: int | None) -> list[Line]:
    records: list[Line] = []
    for number, line in _whole_lines(path):
        try:
            records.append(kind.model_validate_json(line))
        except pydantic.ValidationError as exc:
            if upto is not None and upto <= (records[-1].round if records else 0):
                break
            raise UsageError(f"{path}, line {number}: {_problem(exc, what)}") from exc
    return [record for record in records if upto is None or record.round <= upto]


def _object(content: bytes, where: str) -> Info:
    try:
        value = json.loads(content)
    except ValueError as exc:
        raise UsageError(f"{where}: not JSON ({exc}); the file is damaged") from exc
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _problem(exc: pydantic.ValidationError, what: str) -> str:
    error = exc.errors()[0]
    if error["type"] == "json_invalid":
        return f"not JSON ({error['msg']}); the file is damaged"
    if not error["loc"]:
        return f"expected a JSON object, got {type(error['input']).__name__}"
    return f"not {what}: {_first(exc)}; {_VERSION}"


def _first(exc: pydantic.ValidationError) -> str:
    error = exc.errors()[0]
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"

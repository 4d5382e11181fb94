"""A run's copies of the code that its experiment refers to by path, so that a moved project or run resumes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pydantic

from fedloom.core.code_files import code_bytes, code_digest, copy_code, set_text
from fedloom.core.config import Experiment
from fedloom.core.errors import UsageError
from fedloom.core.records import JsonObject
from fedloom.core.run_files import PLUGINS, PLUGINS_LIST
from fedloom.server.store.files import full_disk, write

_log = logging.getLogger(__name__)

MAX_APP_BYTES = 64 << 20
"""Limit of the files of an app's folder that a run copies."""


class PluginCopy(pydantic.BaseModel):
    """One file or folder of code, as the run's start found it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    setting: str
    """Setting that names it, such as `workload.name`."""
    source: str
    """Absolute path of the original."""
    from_run: str
    """Its path relative to the run's folder, by which it is found after both have moved together. It is followed only
    to a file or folder of the original's name: where the run alone has moved, it may lead anywhere."""
    sha256: str
    copy_at: str
    """Path of the copy, relative to the run's folder."""


def save_code(folder: Path, experiment: Experiment) -> JsonObject:
    """Copy the code a run uses and write down which it is; return the experiment's values, which refer to the copies.

    Args:
        folder: the run's.
        experiment: as it was loaded; relative paths start at the working directory.

    Raises:
        StorageFull: there is no room for the copies.
        OSError: the code cannot be read.
    """
    values, there = experiment.to_dict(), dict[Path, str]()
    listed = list[JsonObject]()
    for each in experiment.code_files(apps=True):
        source = Path(each.path).expanduser().resolve()
        if not source.exists():
            continue  # code for clients alone, which may have it elsewhere
        if each.steps != ("name",) and source not in there and _is_too_large(each.dotted, source):
            continue
        if source not in there:
            there[source] = _copy(folder, each.section if each.steps == ("name",) else each.dotted, source)
        set_text(values[each.section], each.steps, f"./{there[source]}{each.rest}")
        entry = PluginCopy(
            setting=each.dotted,
            source=str(source),
            from_run=os.path.relpath(source, folder.resolve()),
            sha256=code_digest(folder / there[source]),
            copy_at=there[source],
        )
        listed.append(entry.model_dump())
    if listed:
        write(folder / PLUGINS_LIST, json.dumps(listed, indent=2) + "\n")
    return values


def portable(folder: Path, experiment: Experiment) -> JsonObject:
    """Return an experiment's values in which copies are relative to the run's folder, as `save_code` returned them."""
    values = experiment.to_dict()
    for each in experiment.code_files(apps=True):
        path = Path(each.path).resolve()
        if path.is_relative_to((folder / PLUGINS).resolve()):
            set_text(values[each.section], each.steps, f"./{path.relative_to(folder.resolve())}{each.rest}")
    return values


def saved_code(folder: Path) -> list[PluginCopy]:
    """Return what `save_code` recorded; nothing if the run refers to no code by path.

    Raises:
        UsageError: the list is damaged.
    """
    path = folder / PLUGINS_LIST
    if not path.is_file():
        return []
    try:
        return pydantic.TypeAdapter(list[PluginCopy]).validate_json(path.read_bytes())
    except pydantic.ValidationError as exc:
        raise UsageError(f"{path}: not a list of copied code; the file is damaged ({exc.errors()[0]['msg']})") from exc


def changed_code(folder: Path) -> Iterator[str]:
    """Yield a sentence for each file or folder of code that has changed since the run began, with both digests."""
    for each in saved_code(folder):
        now = _digest(folder / each.copy_at)
        if now is not None and now != each.sha256:
            yield (
                f"{each.setting}: the run's copy {folder / each.copy_at} was changed after the run began: SHA-256 "
                f"{each.sha256} then, {now} now. The changed copy is resumed"
            )
        for place in (folder / each.from_run, Path(each.source)):
            now = _digest(place) if place.resolve().name == Path(each.source).name else None
            if now is not None:
                if now != each.sha256:
                    yield _words(each, place.resolve(), now)
                break


def _words(each: PluginCopy, place: Path, now: str) -> str:
    return (
        f"{each.setting}: {place} has changed since the run began: SHA-256 {each.sha256} then, {now} now. The run "
        f"is resumed as it was, from {each.copy_at}; to use other code, start a new run"
    )


def _digest(place: Path) -> str | None:
    try:
        return code_digest(place) if place.exists() else None
    except OSError:
        return None


def _is_too_large(setting: str, source: Path) -> bool:
    """Return whether an app's folder has more than code in it, with a warning: a run then makes no copy."""
    if not source.is_dir() or code_bytes(source) <= MAX_APP_BYTES:
        return False
    _log.warning(
        "%s: %s has %d MB, more than the %d MB up to which a run copies an app. The run resumes only while the folder "
        "is there as it is now; put data outside of it",
        setting,
        source,
        code_bytes(source) >> 20,
        MAX_APP_BYTES >> 20,
    )
    return True


def _copy(folder: Path, name: str, source: Path) -> str:
    """Copy code into the run's folder; returns the copy's path in it."""
    target = Path(PLUGINS, name, source.name)
    with full_disk(folder):
        copy_code(source, folder / target, folder)
    return target.as_posix()

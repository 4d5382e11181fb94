"""Where a run's data lies as seen from its folder, so that a project resumes after it has been moved."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pydantic

from fedloom.core.code_files import set_text
from fedloom.core.config import Experiment
from fedloom.core.config.data_paths import absolute
from fedloom.core.run_files import DATA_LIST
from fedloom.server.store.files import write

_log = logging.getLogger(__name__)


class DataPlace(pydantic.BaseModel):
    """One file or folder of data."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    setting: str
    """Setting that names it, such as `workload.data.folder`."""
    source: str
    """Its absolute path."""
    from_run: str
    """Its path relative to the run's folder, by which it is found after both have moved together."""


def save_data_places(folder: Path, experiment: Experiment) -> None:
    """Write down where the data lies that the experiment names by absolute paths and that is on this machine."""
    places = [
        DataPlace(
            setting=f"{section}.{text.dotted}",
            source=text.value,
            from_run=os.path.relpath(os.path.realpath(text.value), folder.resolve()),
        ).model_dump()
        for section, text in experiment.data_paths()
        if Path(text.value).is_absolute() and Path(text.value).exists()
    ]
    if places:
        write(folder / DATA_LIST, json.dumps(places, indent=2) + "\n")


def with_data_found(folder: Path, experiment: Experiment) -> Experiment:
    """Return a run's experiment with the data where it lies now: as seen from the run's folder, or where it was."""
    try:
        listed = pydantic.TypeAdapter(list[DataPlace]).validate_json((folder / DATA_LIST).read_bytes())
    except (OSError, pydantic.ValidationError):
        return experiment
    places, values = {(each.setting, each.source): each for each in listed}, experiment.to_dict()
    for section, text in experiment.data_paths():
        place = places.get((f"{section}.{text.dotted}", text.value))
        now = absolute(folder.resolve() / place.from_run) if place is not None else None
        if now is not None and now.exists() and not _is_same(now, Path(text.value)):
            _log.info("%s.%s: the data is at %s now, was at %s", section, text.dotted, now, text.value)
            set_text(values[section], text.steps, str(now))
    return Experiment.parse(values) if values != experiment.to_dict() else experiment


def _is_same(now: Path, before: Path) -> bool:
    return before.exists() and now.samefile(before)

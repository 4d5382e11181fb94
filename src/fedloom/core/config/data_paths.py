"""Where relative paths of data start: at the experiment's file; those of the command line at the working directory.

A path of data is a setting of the kind `PATH`, or `HUB` where it is no name at a hub, of any plug-in.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedloom.core.code_files import set_text
from fedloom.core.config.settings import PluginSettings
from fedloom.core.kinds import SECTIONS
from fedloom.core.records import JsonObject
from fedloom.core.setting_types import SettingKind, TextSetting, text_settings

_log = logging.getLogger(__name__)

Sections = Mapping[str, PluginSettings]
"""The plug-ins' settings of an experiment, by section."""


def data_paths(sections: Sections) -> Iterator[tuple[str, TextSetting]]:
    """Yield the settings that are paths of data, each with its section; none that begin with `$` or `~`."""
    for section, settings in sections.items():
        for text in text_settings(type(settings), settings.model_dump(mode="json", exclude_none=True)):
            is_path = text.kind in (SettingKind.PATH, SettingKind.HUB) and not text.known
            if is_path and text.value.strip() and text.value[0] not in "$~" and "\0" not in text.value:
                yield section, text


def start_at(folder: Path, sections: Sections, values: JsonObject, given: Sequence[str]) -> None:
    """Make relative paths of data absolute if they lie in the folder of the experiment's file.

    Args:
        folder: of the file.
        sections: the plug-ins' settings.
        values: the experiment's values, which are changed.
        given: `KEY=VALUE` settings of the command line, whose paths start at the working directory.
    """
    keys = [each.partition("=")[0].strip() for each in given]
    for section, text in data_paths(sections):
        dotted, beside = f"{section}.{text.dotted}", absolute(folder / text.value)
        from_file = not any(dotted == key or dotted.startswith(f"{key}.") for key in keys)
        if Path(text.value).is_absolute() or not from_file or not _exists(beside):
            continue
        if _exists(Path(text.value)) and not beside.samefile(text.value):
            _log.warning(
                "%s = %r: %s is used, which is relative to the experiment's file; %s, which is relative to the working "
                "directory, is not",
                dotted,
                text.value,
                beside,
                absolute(Path(text.value)),
            )
        set_text(values[section], text.steps, str(beside))


def start_here(sections: Sections, values: JsonObject) -> None:
    """Make relative paths of data absolute that lie in the working directory."""
    for section, text in data_paths(sections):
        if not Path(text.value).is_absolute() and _exists(Path(text.value)):
            set_text(values[section], text.steps, str(absolute(Path(text.value))))


def absolute(path: Path) -> Path:
    """Return a path as an absolute one without `..`; links in it are left as they are."""
    return Path(os.path.normpath(path.absolute()))


def sections_of(experiment: Mapping[str, object]) -> dict[str, PluginSettings]:
    """Return the plug-ins' settings of an experiment's fields."""
    found = {section: experiment.get(section) for section in SECTIONS}
    return {section: settings for section, settings in found.items() if isinstance(settings, PluginSettings)}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False

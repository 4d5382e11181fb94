"""Files of studies: found by name, merged with the study they extend."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

from fedloom.core import definitions
from fedloom.core.config import with_overrides
from fedloom.core.errors import ConfigError, UnknownName
from fedloom.core.records import JsonObject
from fedloom.core.text import did_you_mean
from fedloom.core.toml_files import read_toml
from fedloom.studies.definition import Definition

_STUDY_KEY = "study."


def names() -> tuple[str, ...]:
    """Return the names of the studies that come with fedloom and with installed methods."""
    return tuple(_files())


def titles() -> dict[str, str]:
    """Return the title of each study of `names`."""
    return {name: str(_read(name, ())["title"]) for name in names()}


def load(target: str | Path, overrides: Sequence[str] = ()) -> tuple[Definition, list[str]]:
    """Load a study from its name or a TOML file.

    Args:
        target: which.
        overrides: `KEY=VALUE`. `study.KEY` changes the definition; any other is a setting of every experiment.

    Returns:
        The definition, and the overrides left for the experiments.

    Raises:
        UnknownName: it is neither a study's name nor a file.
        ConfigError: a setting is wrong.
    """
    own = [text.removeprefix(_STUDY_KEY) for text in overrides if text.startswith(_STUDY_KEY)]
    values = with_overrides(_read(target, ()), own)
    return Definition.parse(values), [text for text in overrides if not text.startswith(_STUDY_KEY)]


def _read(target: str | Path, below: tuple[str, ...]) -> JsonObject:
    """Return a study's TOML merged with the one it extends: each of its top-level keys replaces the other's."""
    path = _path(target)
    if str(path) in below:
        raise ConfigError(f"extends: {' extends '.join((*below, str(path)))}: a cycle")
    try:
        values = read_toml(path)
    except FileNotFoundError as exc:
        raise ConfigError(f"study file {str(path)!r} not found (looked in {Path.cwd()})") from exc
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read as a study: {exc}") from exc
    values = _files_beside(values, path.parent)
    extended = values.pop("extends", None)
    return values if extended is None else {**_read(extended, (*below, str(path))), **values}


def _path(target: str | Path) -> Path:
    path = Path(target)
    if path.is_file() or path.suffix == ".toml":
        return path
    files = _files()
    if str(target) not in files:
        hint = did_you_mean(str(target), files)
        raise UnknownName(f"{str(target)!r} is not a study or a TOML file; {hint}studies: {', '.join(files)}")
    return files[str(target)]


def _files_beside(values: JsonObject, folder: Path) -> JsonObject:
    """Resolve base experiments and extended studies that are TOML files next to the study's."""
    extends = values.get("extends")
    if isinstance(extends, str) and extends.endswith(".toml"):
        values["extends"] = str((folder / extends).resolve())
    for table in (values, *(each for each in _tables(values.get("scenarios")))):
        base = table.get("base")
        if isinstance(base, str) and base.endswith(".toml"):
            table["base"] = str((folder / base).resolve())
    return values


def _tables(value: object) -> list[JsonObject]:
    return [each for each in value.values() if isinstance(each, dict)] if isinstance(value, dict) else []


def _files() -> dict[str, Path]:
    return definitions.found("studies")

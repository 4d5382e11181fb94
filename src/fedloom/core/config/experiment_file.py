"""Reads an experiment's TOML file to a table of settings."""

from __future__ import annotations

import tomllib
from pathlib import Path

from fedloom.core import registry
from fedloom.core.errors import ConfigError
from fedloom.core.kinds import SECTIONS
from fedloom.core.records import JsonObject
from fedloom.core.toml_files import read_toml


def read_experiment_file(path: Path) -> JsonObject:
    """Read a TOML file; names of plug-ins that are paths become absolute, relative to the file.

    Raises:
        ConfigError: there is no such file, or it is no TOML.
    """
    try:
        values = read_toml(path)
    except FileNotFoundError as exc:
        raise ConfigError(f"experiment file {str(path)!r} not found (looked in {Path.cwd()})") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read as an experiment file: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc
    for section in SECTIONS:
        table = values.get(section)
        if isinstance(table, str):
            table = values[section] = {"name": table}
        if isinstance(table, dict) and registry.is_path(str(table.get("name", ""))):
            table["name"] = str((path.parent / table["name"]).resolve())
    return values

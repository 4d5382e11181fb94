"""A node's own values for hosted apps: `node-config.toml` in its folder, and `--node-config` on the command line."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from fedloom.core import files
from fedloom.core.config import plugin_schema
from fedloom.core.errors import ConfigError, UsageError
from fedloom.core.kinds import Kind
from fedloom.core.records import Info, JsonObject
from fedloom.core.toml_files import read_toml

FILE = "node-config.toml"
"""The file's name, in the folder of a node's identity."""
SETTING = "node_config"
"""The workloads' setting that takes the values."""
Value: TypeAlias = bool | int | float | str
_PAIR = re.compile(r"""\s*(?P<key>[\w.-]+)=(?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s'"]\S*)(?=\s|$)""")


def parse(texts: Sequence[str]) -> dict[str, Value]:
    """Return the values of `--node-config` options.

    Args:
        texts: each is `KEY=VALUE`, several of these with spaces between, or the path of a TOML file. A value is TOML's
            (`0`, `true`, `'/data/site'`); anything else without spaces is text.

    Raises:
        UsageError: one is none of these.
    """
    found: dict[str, Value] = {}
    for text in texts:
        if text.endswith(".toml") and "=" not in text:
            found |= read(Path(text).expanduser())
            continue
        place = 0
        while text[place:].strip():
            pair = _PAIR.match(text, place)
            if pair is None:
                raise UsageError(
                    f"--node-config {text!r}: expected KEY=VALUE, several with spaces between, or a .toml file; text "
                    f"with spaces is quoted: KEY='VALUE'. Got {text[place:].strip()!r}"
                )
            found[pair["key"]] = _value(pair["value"])
            place = pair.end()
    return found


def read(path: Path) -> dict[str, Value]:
    """Return the values of a TOML file.

    Raises:
        UsageError: it is not there, others can write it, or it has something besides texts, numbers and booleans.
    """
    try:
        files.require_unwritable_by_others(path, "the node's values")
        values = read_toml(path)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"{path}: cannot be read as a node's values: {exc}") from exc
    for key, value in values.items():
        if not isinstance(value, bool | int | float | str):
            raise UsageError(f"{path}: {key}: expected a text, a number or a boolean, got {value!r}")
    return values


def own_values(folder: Path, given: Mapping[str, Value]) -> dict[str, Value]:
    """Return the values of a node's folder, over which those of the command line come.

    Raises:
        UsageError: the file cannot be read.
    """
    path = folder / FILE
    return {**(read(path) if path.exists() else {}), **given}


def write(folder: Path, values: Mapping[str, Value]) -> Path:
    """Write a node's values to its folder; returns the file."""
    lines = [f"{json.dumps(key)} = {_toml(value)}\n" for key, value in values.items()]
    path = folder / FILE
    files.write(
        path, "# This node's own values for hosted apps; they never leave it, their names do.\n" + "".join(lines)
    )
    return path


def inserted(experiment: Info, values: Mapping[str, Value]) -> Info:
    """Return an experiment whose workload gets a node's values, if it takes any; a server's of the same names yield.

    Raises:
        ConfigError: the experiment has values for each of several clients: those of a node are its own.
    """
    workload = experiment.get("workload")
    if not values or not isinstance(workload, Mapping):
        return experiment
    if SETTING not in plugin_schema(Kind.WORKLOAD, str(workload.get("name"))).model_fields:
        return experiment
    shared = workload.get(SETTING) or {}
    if not isinstance(shared, Mapping):
        raise ConfigError(f"workload.{SETTING}: a list by client is for simulations; this node has values of its own")
    own: JsonObject = copy.deepcopy(dict(workload))
    own[SETTING] = {**shared, **values}
    return {**experiment, "workload": own}


def _value(text: str) -> Value:
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str) else text


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)

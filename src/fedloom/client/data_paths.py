"""Paths of a workload's data: below the node's data folder, or in a run's view of it; any other one is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fedloom.client.data_view import DataView
from fedloom.client.policy import MAX_RETRY_S
from fedloom.core.config import plugin_schema
from fedloom.core.errors import PolicyRefused
from fedloom.core.kinds import Kind
from fedloom.core.records import JsonObject
from fedloom.core.setting_types import DATA, TextSetting, offence, text_settings


def own_path(setting: TextSetting, data: Path | None) -> str:
    """Return a path with `$DATA` replaced by the node's folder; any other one is refused."""
    try:
        return _resolved(setting.value, setting.dotted, data)
    except (ValueError, OSError, RuntimeError) as exc:  # half a character, a zero, a loop of links
        raise PolicyRefused(
            f"workload setting {setting.dotted} = {setting.value[:80]!r} cannot be a path: {type(exc).__name__}",
            kind="data",
        ) from exc


def in_view(own: JsonObject, workload: str, data: Path | None, view: DataView) -> JsonObject:
    """Return the workload's settings with paths of a view instead of those below the data folder."""
    if data is None:
        return own
    root = data.resolve()
    for setting in list(text_settings(plugin_schema(Kind.WORKLOAD, workload), own)):
        is_path_below = setting.value.startswith("/") and Path(setting.value).is_relative_to(root)
        if setting.steps != ("name",) and is_path_below and offence(setting) == "path":
            inside = PurePosixPath(Path(setting.value).relative_to(root))
            replace_text(own, setting.steps, view.path(root, inside))
    return own


def replace_text(table: JsonObject, steps: Sequence[str | int], value: str) -> None:
    """Set the text at a place in nested tables and lists."""
    inner: Any = table
    for step in steps[:-1]:
        if isinstance(inner[step], tuple):
            inner[step] = list(inner[step])
        inner = inner[step]
    inner[steps[-1]] = value


def _resolved(value: str, where: str, data: Path | None) -> str:
    if value == DATA or value.startswith(f"{DATA}/"):
        return _inside_data(value, data, where)
    if data is not None and value.startswith("/") and Path(value).resolve().is_relative_to(data.resolve()):
        return str(Path(value).resolve())
    raise PolicyRefused(
        f"workload setting {where} = {value[:80]!r} may be a path, but only paths below the node's data folder are "
        f"allowed: write it as {DATA} or {DATA}/… in the experiment",
        kind="data",
    )


def _inside_data(value: str, data: Path | None, where: str) -> str:
    if data is None:
        raise PolicyRefused(f"workload setting {where} uses {DATA}, but this node has no data folder", kind="data")
    root = data.resolve()
    if not root.is_dir():
        raise PolicyRefused(
            f"workload setting {where} uses {DATA}, but the folder for it does not exist now",
            kind="data",
            retry_s=MAX_RETRY_S,
        )
    path = (root / value.removeprefix(DATA).lstrip("/")).resolve()
    if not path.is_relative_to(root):
        raise PolicyRefused(f"workload setting {where} points outside the data folder", kind="data")
    return str(path)

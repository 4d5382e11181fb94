"""A pytest plug-in that leaves out the tests which name a method that is not there.

`FEDLOOM_REMOVED` has the names (of methods, their presets and studies), separated by commas. A test names one if its
own source, its module's imports, or its parameters do.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import pytest

_NAMES = "|".join(map(re.escape, sorted(filter(None, os.environ.get("FEDLOOM_REMOVED", "").split(",")))))
_NAMED = re.compile(rf"""["'/.\s=-](?:{_NAMES})["'/.\s=:\]-]""")
_TABLES = ("test_setting_types.py",)
"""Modules that hold a table over the settings of all methods."""
_IMPORTED = re.compile(rf"^\s*(?:from|import) .*\b(?:{_NAMES})\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out modules that import a method, or go over all of them."""
    if collection_path.name in _TABLES:
        return True
    if collection_path.suffix == ".py" and _IMPORTED.search(collection_path.read_text(encoding="utf-8")):
        return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests whose source or parameters name a method."""
    kept = [item for item in items if not _needs_a_method(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def _needs_a_method(item: pytest.Item) -> bool:
    function = getattr(item, "function", None)
    source = inspect.getsource(function) if function is not None else ""
    return bool(_NAMED.search(source) or _NAMED.search(f" {item.name.partition('[')[2]} "))

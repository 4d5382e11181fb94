"""A pytest plug-in that leaves out the tests which name a method that is not there.

`FEDLOOM_REMOVED` has the names (of methods, their presets and studies), separated by commas. A test names one if its
own source does, its parameters, or what it uses of its module: functions, fixtures and constants, and what these use.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
from collections.abc import Mapping
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
    selected = [item for item in items if not _needs_a_method(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(selected)])
    items[:] = selected


def _needs_a_method(item: pytest.Item) -> bool:
    function = getattr(item, "function", None)
    source = _with_what_it_uses(inspect.getsource(function), item.path) if function is not None else ""
    return bool(_NAMED.search(source) or _NAMED.search(f" {item.name.partition('[')[2]} "))


def _with_what_it_uses(source: str, module: Path) -> str:
    """Return a source followed by those of the definitions of its module that it uses, directly or over others."""
    defined, used = _definitions(module), dict[str, str]()
    waiting = [source]
    while waiting:
        for name in set(re.findall(r"\w+", waiting.pop())) & defined.keys() - used.keys():
            used[name] = defined[name]
            waiting.append(defined[name])
    return "\n".join((source, *used.values()))


@functools.cache
def _definitions(module: Path) -> Mapping[str, str]:
    """Return the source of each function, class and constant at the top level of a module, by name; no tests."""
    text = module.read_text(encoding="utf-8")
    found = dict[str, str]()
    for node in ast.parse(text).body:
        source = ast.get_source_segment(text, node) or ""
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.lower().startswith("test"):
            found[node.name] = source
        elif isinstance(node, ast.Assign):
            found |= {each.id: source for each in node.targets if isinstance(each, ast.Name)}
    return found

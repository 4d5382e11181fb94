"""How loosely the source is typed, counted on the syntax tree; generated code is left out."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fedloom
from fedloom.core import protocols

MOST_ANY = 150
"""Uses of the name `Any`, imports left out: JSON, array types, and the edges to untyped libraries."""
MOST_ASSERTED_TYPES = 5
"""Statements `assert isinstance(…)`."""
MOST_HOOKS_BY_NAME = 0
"""Calls of `getattr` or `hasattr` with the name of an interface's member written out."""
MOST_SIGNATURES = {"core": 0, "server": 0, "client": 0}
"""Functions of a package with `Any` in their signature."""

SOURCE = Path(fedloom.__file__).parent
Counter = Callable[[ast.AST], Iterator[ast.AST]]


def any_names(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if (isinstance(node, ast.Name) and node.id == "Any") or (
            isinstance(node, ast.Attribute) and node.attr == "Any"
        ):
            yield node


def asserted_types(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and _called(node.test) == "isinstance":
            yield node


def hooks_by_name(tree: ast.AST) -> Iterator[ast.AST]:
    names = hook_names()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in ("getattr", "hasattr") and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value in names:
                yield node


def hook_names() -> set[str]:
    """Every public member of the interfaces in `core.protocols`; the values they exchange are none."""
    interfaces = [
        each
        for name in protocols.__all__
        if inspect.isclass(each := vars(protocols)[name]) and not dataclasses.is_dataclass(each)
    ]
    members = {name for each in interfaces for name in (*vars(each), *inspect.get_annotations(each))}
    return {name for name in members if not name.startswith("_")}


def in_signatures(tree: ast.AST) -> Iterator[ast.AST]:
    """Functions whose parameters or result are typed with `Any`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts = [node.args, *([node.returns] if node.returns else [])]
            if any(_is_any(each) for part in parts for each in ast.walk(part)):
                yield node


def _is_any(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and node.id == "Any") or (isinstance(node, ast.Attribute) and node.attr == "Any")


def _called(node: ast.AST) -> str:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def places(count: Counter, room: str = "") -> list[str]:
    files = [file for file in sorted((SOURCE / room).rglob("*.py")) if "_pb2" not in file.name]
    return [
        f"{file.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}"
        for file in files
        for node in count(ast.parse(file.read_text(encoding="utf-8")))
    ]


@pytest.mark.parametrize(
    ("count", "most"),
    [(any_names, MOST_ANY), (asserted_types, MOST_ASSERTED_TYPES), (hooks_by_name, MOST_HOOKS_BY_NAME)],
)
def test_the_source_stays_within_its_limits(count: Counter, most: int) -> None:
    found = places(count)
    assert len(found) <= most, f"{len(found)} found, at most {most}: {', '.join(found)}"


def test_the_counters_count() -> None:
    tree = ast.parse(
        "from typing import Any\n"
        "import typing\n"
        "x: Any = 1\n"
        "def f(y: dict[str, typing.Any]) -> list[Any]:\n"
        "    assert isinstance(y, dict)\n"
        "    assert y\n"
        "    getattr(y, 'report', None), hasattr(y, 'logits'), getattr(y, 'shape'), getattr(y, name)\n"
    )
    assert [len(list(count(tree))) for count in (any_names, asserted_types, hooks_by_name, in_signatures)] == [
        3,
        1,
        2,
        1,
    ]


def test_the_interfaces_have_the_hooks_that_were_once_looked_up_by_name() -> None:
    once = {"model_inputs", "evaluation", "report", "missed", "incoming", "begin", "together", "program", "train_group"}
    assert once <= hook_names()


@pytest.mark.parametrize(("room", "most"), MOST_SIGNATURES.items())
def test_signatures_of_the_platform_say_what_they_take(room: str, most: int) -> None:
    found = places(in_signatures, room)
    assert len(found) <= most, f"{len(found)} found, at most {most}: {', '.join(found)}"

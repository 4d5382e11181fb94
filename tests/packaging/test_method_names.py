"""The platform's packages name no method: none of its settings, metrics or groups of arrays either.

Names are read off the syntax tree of the methods' folders; nothing is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import fedloom
from fedloom.core.extras import EXTRAS

SOURCE = Path(fedloom.__file__).parent
GENERIC = ("api.py", "core", "server", "studies", "reporting", "simulation", "client", "cli")
KINDS = ("strategies", "selection", "workloads", "monitors")
WORD = re.compile(r"[a-z][a-z0-9]*(?:[_/-][a-z0-9]+)*")
SHARED = {
    "accuracy": "the metric of every classification",
    "config": "a part of every plug-in",
    "device": "what computes, and a machine's network card",
    "examples": "a weighting, and a unit",
    "loss": "the metric of every training",
    "second": "a unit",
    "statistics": "a stage of a job",
    "std": "a moment of data, which sites agree on",
    "training": "the phase of a round",
    "uniform": "the selection of an experiment that names none, and a weighting",
}
"""Names of methods that are the platform's own words, too, and why."""


def method_files() -> Iterator[Path]:
    """Yield the Python files of methods and of the libraries that methods share."""
    for kind in (*KINDS, "adapters"):
        yield from sorted((SOURCE / kind).rglob("*.py"))


def method_names() -> set[str]:
    return {
        path.stem
        for kind in KINDS
        for path in (SOURCE / kind).iterdir()
        if not path.name.startswith("_") and (path.is_dir() or path.suffix == ".py")
    }


def settings(tree: ast.Module) -> Iterator[str]:
    """Yield the fields of settings classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.bases:
            yield from (
                each.target.id
                for each in node.body
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            )


def keys(tree: ast.Module) -> Iterator[str]:
    """Yield the constants of a module, and the keys of metrics, of numbers, and of their columns."""
    for each in tree.body:
        if isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant) and isinstance(each.value.value, str):
            yield each.value.value
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("metrics", "numbers", "number", "groups"):
            values = node.value.keys if isinstance(node.value, ast.Dict) else [node.value]
            yield from (key.value for key in values if isinstance(key, ast.Constant) and isinstance(key.value, str))


@cache
def names_of_methods() -> dict[str, str]:
    """Every name with a place that has it."""
    found = dict.fromkeys(sorted(method_names()), "a method's name")
    for file in method_files():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for name in (*(settings(tree) if "config" in file.name or file.parent.name in KINDS else ()), *keys(tree)):
            if WORD.fullmatch(name):
                found.setdefault(name, str(file.relative_to(SOURCE)))
    others = {
        *SHARED,
        *EXTRAS,
        *EXTRAS.values(),
        *words_of_the_platform(),
    }  # EXTRAS has packages, and extras of fedloom
    return {name: place for name, place in found.items() if name not in others}


@cache
def words_of_the_platform() -> frozenset[str]:
    """Fields, parameters and functions of the platform's own code: what it calls things itself."""
    found = set[str]()
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return frozenset(found - method_names())


@cache
def trees() -> list[tuple[Path, ast.Module]]:
    files = [
        file for name in GENERIC for file in ((SOURCE / name).rglob("*.py") if "." not in name else [SOURCE / name])
    ]
    return [(file, ast.parse(file.read_text(encoding="utf-8"))) for file in sorted(files)]


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the string constants that are no docstrings, with their lines."""
    documentation = {
        id(each.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for each in node.body
        if isinstance(each, ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


def test_generic_packages_name_no_method() -> None:
    names = names_of_methods()
    found = [
        f"{file.relative_to(SOURCE)}:{line}: {text!r} ({names[text]})"
        for file, tree in trees()
        for line, text in texts(tree)
        if text in names
    ]
    assert not found, "\n".join(found)


def test_the_guard_finds_what_it_looks_for() -> None:
    names = names_of_methods()
    assert {"firing_credit", "mano", "estimated_accuracy", "lora_a", "shortlist"} <= names.keys()
    tree = ast.parse('"""mano"""\nif name == "mano":\n    total = record.groups["lora_a"]\n')
    assert [text for _, text in texts(tree) if text in names] == ["mano", "lora_a"]

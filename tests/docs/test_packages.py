"""The README and the architecture page list the packages of the tree in the order of the layers, with their imports."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path

import grimp
from fedloom_docs_pages import ROOT

SOURCE = ROOT / "src" / "fedloom"
ARCHITECTURE = ROOT / "docs" / "explanation" / "architecture.md"


def tree() -> set[str]:
    """Packages and modules of fedloom, and the packages of the server, as the pages name them."""
    modules = {path.name for path in SOURCE.glob("*.py") if not path.name.startswith("__")}
    packages = [path.parent for folder in (SOURCE, SOURCE / "server") for path in folder.glob("*/__init__.py")]
    return modules | {path.relative_to(SOURCE).as_posix() for path in packages}


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of a section's table, its head left out."""
    _, _, section = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_readme_lists_every_package() -> None:
    named = [code(first)[0] for first, *_ in rows(ROOT / "README.md", "Repository")]
    listed = [name.removeprefix("src/fedloom/") for name in named if name.startswith("src/fedloom/")]
    assert sorted(listed) == sorted(tree())


def test_the_architecture_page_lists_every_package_in_the_order_of_the_layers() -> None:
    listed = [code(first)[0] for first, *_ in rows(ARCHITECTURE, "The packages")]
    assert sorted(listed) == sorted(tree())
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    layer = {name.strip("() "): number for number, line in enumerate(layers) for name in re.split(r"[|:]", line)}
    numbers = [layer[name.partition("/")[0].removesuffix(".py")] for name in listed]
    assert numbers == sorted(numbers)


def test_the_architecture_page_says_what_each_package_imports() -> None:
    reported = {
        code(first)[0].removesuffix(".py"): set(code(imports))
        for first, _, imports in rows(ARCHITECTURE, "The packages")
    }
    found: dict[str, set[str]] = defaultdict(set)
    graph = grimp.build_graph("fedloom", cache_dir=None)
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            (one, *_), (other, *_) = (name.split(".")[1:] or [""] for name in (module, imported))
            if one and other and one != other:
                found[one].add(f"{other}.py" if f"{other}.py" in tree() else other)
    for package in reported.keys() - {name for name in reported if "/" in name}:
        assert reported[package] == found[package], f"{package} imports {sorted(found[package])}"

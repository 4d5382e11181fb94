"""Client halves of strategies, selections and monitors, whose settings no policy judges: they open nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fedloom

ROOT = Path(fedloom.__file__).parent
HALVES = sorted(
    path
    for name in ("rule.py", "measure.py", "watch.py", "accumulator.py")
    for folder in ("strategies", "selection", "monitors")
    for path in (ROOT / folder).rglob(name)
)
OPENING = {
    "open", "Path", "eval", "exec", "compile", "__import__", "import_module", "load", "loadtxt", "genfromtxt", "memmap",
    "fromfile", "load_file", "safe_open", "from_pretrained", "read_text", "read_bytes", "urlopen", "run", "Popen",
    "system", "getattr", "globals", "builtins",
}  # fmt: skip
"""Names by which a text would become a file, a module, a process or an attribute."""
MODULES = {"importlib", "subprocess", "os", "pathlib", "shutil", "socket", "urllib", "runpy", "pickle", "ctypes", "io"}


def used(source: str) -> set[str]:
    """Names that are called, and modules that are imported."""
    found: set[str] = set()
    for each in ast.walk(ast.parse(source)):
        match each:
            case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
                found.add(name)
            case ast.Import(names=names):
                found |= {name.name.partition(".")[0] for name in names}
            case ast.ImportFrom(module=str(module)):
                found.add(module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", HALVES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_client_half_opens_or_imports_what_it_is_given(path: Path) -> None:
    assert not used(path.read_text(encoding="utf-8")) & (OPENING | MODULES)


def test_all_kinds_of_halves_are_looked_at_and_an_opening_one_is_seen() -> None:
    assert len(HALVES) >= 15 and {path.stem for path in HALVES} == {"rule", "measure", "watch", "accumulator"}
    assert used("import os.path\nfrom pathlib import Path\nnp.load(x)\nopen(y)") == {"os", "pathlib", "load", "open"}

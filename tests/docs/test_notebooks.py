"""The notebooks in `examples` run from their first cell to their last, and show what their text says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fedloom_docs_pages import ROOT

_BOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
_SHOWN = {
    "your_model": ["accuracy", "RunResult(Net, 5 rounds", "iframe", " True", "RunResult(Net, 8 rounds"],
    "your_strategy": ["'accuracy'", "(True, True)", "part_way"],
}
"""What the outputs contain, in order."""


def _name(book: Path) -> str:
    return book.stem


def test_every_notebook_is_known() -> None:
    assert {book.stem for book in _BOOKS} == _SHOWN.keys()


@pytest.mark.parametrize("book", _BOOKS, ids=_name)
def test_it_lies_here_without_outputs(book: Path) -> None:
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the notebook's client, not of fedloom
@pytest.mark.parametrize("book", _BOOKS, ids=_name)
def test_every_cell_runs(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    shutil.copy(book, tmp_path)
    opened = nbformat.read(tmp_path / book.name, as_version=4)
    nbclient.NotebookClient(opened, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "\n".join(_text(output) for cell in opened.cells for output in cell.get("outputs", []))
    place = 0
    for wanted in _SHOWN[book.stem]:
        place = said.find(wanted, place)
        assert place >= 0, f"{book.name}: {wanted!r} is not shown after what comes before it:\n{said[-3000:]}"


def _text(output: Any) -> str:
    """Return an output's texts: what was printed, and each form of a value."""
    return str(output.get("text", "")) + "\n".join(map(str, output.get("data", {}).values()))

"""Each method's page says how near it is to what was published."""

from pathlib import Path

import pytest

import fedloom
from fedloom.core import registry

ROOT = Path(fedloom.__file__).parent
WORDS = ("*faithful*", "*simplified*: ", "*reconstruction*: ", "*control*", "*reference*: ", "*ours*")
HOSTS = ("flower", "flower_app")
"""Strategies that run what others bring."""
METHODS = [
    (kind, name)
    for kind in ("selection", "strategies")
    for name in registry.names(kind)
    if name not in HOSTS and (ROOT / kind / name).is_dir()
]


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_a_methods_page_says_how_near_it_is_to_what_was_published(kind: str, name: str) -> None:
    page = (ROOT / kind / name / "README.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| Standing | ")]
    assert len(rows) == 1, f"{kind}/{name}: expected one row '| Standing |', got {rows}"
    assert rows[0].removeprefix("| Standing | ").startswith(WORDS), rows[0]

"""Each method's page says how near it is to what was published."""

from pathlib import Path

import pytest

import fedloom
from fedloom.core import registry

ROOT = Path(fedloom.__file__).parent
WORDS = ("*faithful*", "*simplified*: ", "*reconstruction*: ", "*control*", "*reference*: ", "*ours*")
HOSTS = ("flower", "flower_app")
"""Strategies that run what others bring."""
SHARED = {"fedlora": "_low_rank", "ffa_lora": "_low_rank", "flora": "_low_rank", "flexlora": "_low_rank"}
"""Methods described on the page of another folder, in a section of their name."""


def page_of(kind: str, name: str) -> str:
    text = (ROOT / kind / SHARED.get(name, name) / "README.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {name}\n")[2].partition("\n## ")[0] if name in SHARED else text


METHODS = [
    (kind, name)
    for kind in ("selection", "strategies")
    for name in registry.names(kind)
    if name not in HOSTS and (ROOT / kind / SHARED.get(name, name) / "README.md").is_file()
]


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_a_methods_page_says_how_near_it_is_to_what_was_published(kind: str, name: str) -> None:
    rows = [line for line in page_of(kind, name).splitlines() if line.startswith("| Standing | ")]
    assert len(rows) == 1, f"{kind}/{name}: expected one row '| Standing |', got {rows}"
    assert rows[0].removeprefix("| Standing | ").startswith(WORDS), rows[0]

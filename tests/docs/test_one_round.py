"""The architecture page names the files of one round, in order, and says truly how much there is to read."""

from __future__ import annotations

import re

from fedloom_docs_pages import ROOT

PAGE = ROOT / "docs" / "explanation" / "architecture.md"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def section() -> str:
    _, _, text = PAGE.read_text(encoding="utf-8").partition("\n## One round, file by file\n")
    return text.partition("\n## ")[0]


def test_the_files_of_a_round_are_named_and_counted() -> None:
    named = re.findall(r"^\d+\. `([^`]+)`", section(), re.MULTILINE)
    texts = [(ROOT / "src" / "fedloom" / name).read_text(encoding="utf-8") for name in named]
    lines = sum(len(text.splitlines()) for text in texts)
    reported = re.search(r"through (\w+) files, about ([\d,]+) lines", section())
    assert reported is not None and NUMBERS.index(reported[1]) == len(named) <= 9
    assert abs(int(reported[2].replace(",", "")) - lines) <= 50, f"the page says {reported[2]}, the files have {lines}"
    assert lines <= 2200
    assert "strategy.plan(" in texts[0] and "strategy.finish(" in texts[0]

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of output is folded."""
    monkeypatch.setenv("COLUMNS", "200")

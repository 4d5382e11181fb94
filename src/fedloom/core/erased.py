"""The mark on a run whose client has withdrawn: it stays readable, and is never resumed."""

from __future__ import annotations

import json
from pathlib import Path

from fedloom.core import files
from fedloom.core.errors import UsageError

ERASED = "erased.json"
"""File of a run's folder: who has withdrawn, and the run that continues without."""


def mark(folder: Path, client: str, continued_in: str) -> None:
    """Mark a run's folder: a client of it has withdrawn."""
    files.write(folder / ERASED, json.dumps({"client": client, "continued_in": continued_in}) + "\n")


def require_not_erased(folder: Path, run: str) -> None:
    """Refuse to go on with a run from which a client has withdrawn.

    Args:
        folder: the run's.
        run: its name for the message.

    Raises:
        UsageError: names the client, and the run without it.
    """
    path = folder / ERASED
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        client, continued_in = found["client"], found["continued_in"]
    except (ValueError, KeyError, TypeError):
        client, continued_in = "a client", "another folder"
    raise UsageError(
        f"{run}: {client} has withdrawn from this run, so it is not continued. The run without it is {continued_in}"
    )

"""Where in an app's own code an exception was raised."""

from __future__ import annotations

import traceback
from pathlib import Path


def own_line(exc: BaseException, folder: Path) -> str:
    """Return where in an app's own code an exception was raised, as `file, line N: `; empty if nowhere."""
    home = folder.resolve()
    for frame in reversed(traceback.extract_tb(exc.__traceback__)):
        if Path(frame.filename).resolve().is_relative_to(home):
            return f"{Path(frame.filename).resolve().relative_to(home)}, line {frame.lineno}: "
    return ""

"""A wall clock that jumps: what this process's fedloom reads as the time of day, moved by a signal.

Only the project's own reads are moved. The kernel's clock is everybody's, and a shim below the C library would disagree
with it about when a wait is over, which no real jump does.
"""

from __future__ import annotations

import datetime
import signal
import sys
import time
from pathlib import Path
from typing import Any

_real_time = time.time
_shift_s = 0.0


class _Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.datetime.fromtimestamp(_real_time() + _shift_s, tz)


def install(file: Path) -> None:
    """From now on SIGUSR1 adds the seconds that stand in a file to this process's time of day."""

    def jump(number: int, frame: object) -> None:
        global _shift_s
        _shift_s += float(file.read_text(encoding="utf-8"))

    signal.signal(signal.SIGUSR1, jump)
    time.time = lambda: _real_time() + _shift_s
    for name, module in list(sys.modules.items()):
        if name.startswith("fedloom.") and getattr(module, "datetime", None) is datetime.datetime:
            module.datetime = _Shifted  # type: ignore[attr-defined]

"""Ray's own logs: their last lines, for messages about its failures, and their copies."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from fedloom.core.text import clean

_LINES = 5
_QUIET = re.compile(r":|\[[^]]* [DIW] \d")
"""Start of a line that names a job, or is of Ray's own at a level below error."""
_FATAL = ("Fatal Python error", "*** SIG")
"""Start of the report of a process that a signal has ended: its first lines say where."""
_READ = 16384
"""Bytes read from the end of a file."""
_FILES = ("raylet.err", "gcs_server.err", "worker-*.err", "python-core-worker-*.log")
"""Files of a session's `logs`, those that say most first."""


def log_tail(folder: Path) -> str:
    """Return the last lines of the newest log that says anything, to be appended to a message; empty if none does.

    Args:
        folder: of a Ray started here, with its sessions in it.
    """
    for pattern in _FILES:
        found = [path for path in folder.glob(f"session_*/logs/{pattern}") if _size(path)]
        for path in sorted(found, key=_changed, reverse=True)[:1]:
            if lines := _last_lines(path):
                return f"\nRay's log {path.resolve()}:\n" + "\n".join(f"  {line}" for line in lines)
    return ""


def keep_logs(folder: Path) -> bool:
    """Remove all but the logs of a Ray started here; returns whether there are any.

    Args:
        folder: with its sessions in it.
    """
    logs = [path for path in folder.glob("session_*/logs") if path.is_dir() and not path.parent.is_symlink()]
    for session in folder.iterdir() if logs else ():
        if session.is_symlink() or not session.is_dir():
            session.unlink(missing_ok=True)
            continue
        for path in session.iterdir():
            if path in logs:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return bool(logs)


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, _size(path) - _READ))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = [clean(line, 300) for line in text.splitlines() if line.strip() and not _QUIET.match(line)]
    fatal = [index for index, line in enumerate(lines) if line.startswith(_FATAL)]
    return lines[fatal[-1] :][:_LINES] if fatal else lines[-_LINES:]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

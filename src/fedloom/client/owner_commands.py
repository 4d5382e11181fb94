"""Runs the commands in a node's policy, and reads their replies."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

LATER = 75
"""Exit status of a command whose decision is not made yet (EX_TEMPFAIL)."""
MAX_LINE = 200
"""Characters of a command's reason."""


def ask(command: Sequence[str], timeout_s: float, stdin: str = "", *, what: str = "the hook") -> tuple[int, str]:
    """Run a command; returns its exit status, and its reason if it refuses: the first line it prints.

    Args:
        command: program and arguments; no shell is involved.
        timeout_s: seconds after which it is killed, which is a no.
        stdin: what it reads.
        what: the command's name, for the reason.

    Returns:
        0 with an empty reason; or another status, 1 where the command cannot be run or takes too long.
    """
    try:
        done = subprocess.run(
            command, input=stdin.encode(), capture_output=True, timeout=timeout_s, check=False, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        return 1, f"{what} did not finish within {timeout_s:g} s"
    except OSError as exc:
        return 1, f"{what} cannot be run: {exc.strerror}"
    if done.returncode == 0:
        return 0, ""
    lines = (line.strip()[:MAX_LINE] for line in done.stdout.decode(errors="replace").splitlines() if line.strip())
    return done.returncode, next(lines, f"{what} exited with {done.returncode}")

"""Run a command as on a machine where everything differs: `python .ci/hostile.py COMMAND...`.

Time zone, locale, umask, instruction set and ignored signals reach the command. Nonsense in variables, the home folder,
leftovers of a Ray that is gone and taken ports are there to be run into.
"""

from __future__ import annotations

import contextlib
import locale
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

NOWHERE = "/nonexistent/folder"
NOBODY = "127.0.0.1:1"
PORTS = (7070, 7071, 9090, 6379, 8265)
"""Defaults of fedloom's server and its metrics, and of Ray."""


def environment(scratch: Path) -> dict[str, str]:
    """This process's variables and hostile ones; Ray's folder in `scratch` names a cluster that is gone."""
    (scratch / "ray").mkdir()
    (scratch / "ray" / "ray_current_cluster").write_text(NOBODY, encoding="utf-8")
    proxies = ("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY")
    folders = ("HOME", "XDG_CACHE_HOME", "FEDLOOM_CACHE", "FEDLOOM_IDENTITY", "FLWR_HOME", "HF_HOME")
    return {
        **os.environ,
        **dict.fromkeys(proxies, f"http://{NOBODY}"),
        **dict.fromkeys(folders, NOWHERE),
        **dict.fromkeys(("LANG", "LC_ALL"), foreign_locale()),
        "ATEN_CPU_CAPABILITY": "default",
        "CI": "true",
        "COLUMNS": "20",
        "FEDLOOM_DEBUG": "1",
        "NO_COLOR": "1",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "RAY_ADDRESS": NOBODY,
        "RAY_NAMESPACE": "nonsense",
        "TERM": "dumb",
        "TMPDIR": str(scratch),
        "TZ": "Pacific/Kiritimati",
    }


def foreign_locale() -> str:
    """Turkish, whose letters change case in their own way, if it is installed; else C."""
    with contextlib.suppress(locale.Error):
        return locale.setlocale(locale.LC_ALL, "tr_TR.UTF-8")
    return "C"


@contextlib.contextmanager
def taken_ports() -> Iterator[None]:
    """Listen on the default ports, unless others do."""
    with contextlib.ExitStack() as stack:
        for port in PORTS:
            taken = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                taken.bind(("", port))
                taken.listen()
        yield


def main(command: list[str]) -> int:
    """Run the command; its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for a shell's background job
    # A short path: Ray's sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="hostile-", dir="/tmp") as scratch, taken_ports():
        return subprocess.run(command, env=environment(Path(scratch)), umask=0o077, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

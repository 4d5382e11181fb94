"""The commands as people type them, run to their end or started, in a folder of their own, maybe on another machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fedloom.client.leftovers import descendants
from fedloom.testing.fleet import wait_until


class Shell:
    """Commands of one person or device.

    Args:
        folder: where they are typed.
        before: what each command is started by, such as another network namespace.
    """

    def __init__(self, folder: Path, before: Sequence[str] = ()) -> None:
        self.folder, self._before = folder, before
        self._started: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str, code: int = 0) -> str:
        """What a command prints, stdout and stderr; it must end with the code."""
        done = subprocess.run(
            self._command(arguments), capture_output=True, encoding="utf-8", cwd=self.folder, timeout=90
        )
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def start(self, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
        """A running command, and the file it prints to."""
        log = self.folder / f"log-{len(self._started)}"
        with log.open("w", encoding="utf-8") as file:
            program = subprocess.Popen(
                self._command(arguments), stdout=file, stderr=file, encoding="utf-8", cwd=self.folder
            )
        self._started.append(program)
        return program, log

    def serve(self, port: int = 0, *options: str, host: str = "127.0.0.1") -> tuple[subprocess.Popen[str], str, Path]:
        """A server on the folder `state`: its process, port, and log."""
        where = ("--host", host, "--port", str(port), "--state", "state", "--log", "json")
        program, log = self.start("serve", *where, *options)
        found = wait_until(
            lambda: re.search(rf"listening on {re.escape(host)}:(\d+)", log.read_text(encoding="utf-8")),
            60,
            "the server",
        )
        return program, found[1], log

    def freeze(self, program: subprocess.Popen[str], *, frozen: bool = True) -> None:
        """Stop a program where it is, with its children, or have it continue."""
        for pid in (program.pid, *descendants(program.pid)):
            os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def close(self) -> None:
        """Kill what still runs."""
        for program in self._started:
            program.kill()
            program.wait()

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [*self._before, sys.executable, "-m", "fedloom", *arguments]

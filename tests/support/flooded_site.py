"""A server in a process of its own, its members, and how fast an administrator is answered."""

from __future__ import annotations

import time
from pathlib import Path

from shell import Shell

from fedloom.client.admin import AdminClient
from fedloom.client.control import ControlClient
from fedloom.client.enroll import join
from fedloom.core.identity import Identity

BOUND_S = 1.0
"""Seconds within which an administrator's call must be answered."""
ASKED = 20


class Site:
    """A server in a process of its own, and members of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shell = Shell(folder)
        self.process, port, self.log = self.shell.serve(0)
        self.port = int(port)
        self.admin = Identity.load(folder / "state" / "admin")

    def joined(self, name: str, role: str = "node") -> Identity:
        with AdminClient(self.admin) as admin:
            token = admin.create_token(name, role=role, ttl_s=600.0)
        return join(token.encode(), self.folder / name)

    def slowest_call_s(self, seconds: float = 0.0) -> float:
        """The longest of many calls of an administrator, each by a connection of its own, over some seconds."""
        longest = 0.0
        for _ in range(ASKED):
            begin = time.monotonic()
            with AdminClient(self.admin, timeout_s=30.0) as admin:
                admin.members()
            with ControlClient(self.admin.address, identity=self.admin, timeout_s=30.0) as control:
                control.runs()
            longest = max(longest, (time.monotonic() - begin) / 2)
            time.sleep(seconds / ASKED)
        return longest

    def memory_mb(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmRSS")

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def written(self) -> int:
        """Bytes of the server's log, its audit log and everything else in its state folder.

        SQLite's log ahead of the database is left out: at a thousand pages it is taken over and begins anew.
        """
        state = [path for path in (self.folder / "state").rglob("*") if path.is_file()]
        files = [self.log, *(path for path in state if not path.name.endswith(("-wal", "-shm")))]
        return sum(path.stat().st_size for path in files)

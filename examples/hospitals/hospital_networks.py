"""A network for machines that are folders: a network namespace for each, all on one switch; none where not allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Self

_NET = "10.179.83"
_LOOPBACK = "127.0.0.1"


class Networks:
    """The namespaces of some machines, as long as the block lasts.

    Args:
        names: of the machines.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._made = list(names), list[str]()
        self.text = ""
        """What the machines have in common, in words."""

    def __enter__(self) -> Self:
        try:
            self._make()
            self.text = f"each machine has a network namespace and an address of its own in {_NET}.0/24"
        except (OSError, subprocess.CalledProcessError) as exc:
            self.__exit__()
            self._names = []
            why = exc.stderr.decode().strip() if isinstance(exc, subprocess.CalledProcessError) else str(exc)
            self.text = f"the machines share this one's network: no network namespaces can be made here ({why})"
        return self

    def __exit__(self, *exc: object) -> None:
        for name in reversed(self._made):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        self._made = []

    def before(self, name: str) -> tuple[str, ...]:
        """Return what a machine's commands are started by."""
        return ("ip", "netns", "exec", self._namespace(name)) if name in self._names else ()

    def address(self, name: str) -> str:
        """Return a machine's address."""
        return f"{_NET}.{self._names.index(name) + 1}" if name in self._names else _LOOPBACK

    def _namespace(self, name: str) -> str:
        return f"hospitals-{os.getpid()}-{name}"

    def _make(self) -> None:
        if shutil.which("ip") is None:
            raise OSError("there is no program `ip`")
        switch = self._add("switch")
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number, name in enumerate(self._names, 1):
            there, port = self._add(name), f"port{number}"
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", there)
            _ip("-n", switch, "link", "set", port, "master", "bridge")
            _ip("-n", switch, "link", "set", port, "up")
            _ip("-n", there, "addr", "add", f"{_NET}.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", there, "link", "set", device, "up")

    def _add(self, name: str) -> str:
        namespace = self._namespace(name)
        _ip("netns", "add", namespace)
        self._made.append(namespace)
        return namespace


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)

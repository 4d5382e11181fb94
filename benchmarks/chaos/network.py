"""Each node in a network namespace of its own, behind a link that can be cut and slowed. Needs root and iproute2."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

_CLONE_NEWNET = 0x40000000


class Network:
    """Links between this namespace, where the server is, and one namespace for each node.

    Args:
        nodes: their names.
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        self._index = {node: number for number, node in enumerate(nodes, start=1)}
        self._word = f"fl{os.getpid() % 100_000}"

    def address(self, node: str) -> str:
        """The server's address as the node sees it."""
        return f"10.{200 + os.getpid() % 50}.{self._index[node]}.1"

    def namespace(self, node: str) -> str:
        """The name to enter by."""
        return f"{self._word}-{self._index[node]}"

    def cut(self, node: str) -> None:
        """Nothing gets through, and nobody is told."""
        _run("ip", "link", "set", self._link(node), "down")

    def mend(self, node: str) -> None:
        """Everything gets through again."""
        _run("ip", "link", "set", self._link(node), "up")

    def slow(self, node: str, kbit_s: float) -> None:
        """Let so much through in each direction."""
        shape = ("root", "tbf", "rate", f"{kbit_s:.0f}kbit", "burst", "16kb", "latency", "400ms")
        _run("tc", "qdisc", "replace", "dev", self._link(node), *shape)
        _run("ip", "netns", "exec", self.namespace(node), "tc", "qdisc", "replace", "dev", "up0", *shape)

    def fast(self, node: str) -> None:
        """Take the brake off."""
        with contextlib.suppress(OSError):
            _run("tc", "qdisc", "del", "dev", self._link(node), "root")
            _run("ip", "netns", "exec", self.namespace(node), "tc", "qdisc", "del", "dev", "up0", "root")

    def heal(self) -> None:
        """Every link as new."""
        for node in self._index:
            self.mend(node)
            self.fast(node)

    def _link(self, node: str) -> str:
        return f"{self._word}v{self._index[node]}"

    def _make(self) -> None:
        for node in self._index:
            space, here = self.namespace(node), self.address(node)
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", self._link(node), "type", "veth", "peer", "name", "up0", "netns", space)
            _run("ip", "addr", "add", f"{here}/30", "dev", self._link(node))
            _run("ip", "link", "set", self._link(node), "up")
            _run("ip", "-n", space, "addr", "add", f"{here[:-1]}2/30", "dev", "up0")
            for device in ("up0", "lo"):
                _run("ip", "-n", space, "link", "set", device, "up")

    def _unmake(self) -> None:
        for node in self._index:
            with contextlib.suppress(OSError):
                _run("ip", "netns", "del", self.namespace(node))


@contextlib.contextmanager
def network(nodes: Sequence[str]) -> Iterator[Network | None]:
    """The links, or None on a machine that does not let us make any."""
    made = Network(nodes)
    try:
        made._make()
    except OSError:
        made._unmake()
        yield None
        return
    try:
        yield made
    finally:
        made._unmake()


def enter(namespace: str) -> None:
    """Move this process into a network namespace."""
    with (Path("/run/netns") / namespace).open(encoding="utf-8") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")

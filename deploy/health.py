#!/usr/bin/env python3
"""Is the program of this container at work? Exit code 0 if so. Looks at the kernel's table of connections only.

A server is when it listens on its port. A client is when it has a connection to its server. A Ray node is when its
raylet has one to the head. Without arguments the first process of the container tells which it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

ESTABLISHED, LISTENING = "01", "0A"
SERVER_PORT, RAY_PORT = 7070, 6379


def connections(proc: Path = Path("/proc")) -> list[tuple[int, int, str]]:
    """Local port, remote port and state of each TCP connection of this network namespace."""
    found = []
    for table in ("tcp", "tcp6"):
        path = proc / "net" / table
        lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
        for fields in map(str.split, lines):
            local, remote = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
            found.append((local, remote, fields[3]))
    return found


def expected(command: list[str]) -> tuple[str, int]:
    """What the program with this command line does when it is well: `listening` or `connected`, and the port."""

    def option(name: str, default: int) -> int:
        values = [command[at + 1] for at, word in enumerate(command[:-1]) if word == name]
        values += [word.partition("=")[2] for word in command if word.startswith(f"{name}=")]
        port = values[-1].rpartition(":")[2] if values else ""
        return int(port) if port.isdigit() else default

    if "serve" in command:
        return "listening", option("--port", SERVER_PORT)
    if "--head" in command:
        return "listening", option("--port", RAY_PORT)
    if any(Path(word).name == "ray" for word in command):
        return "connected", option("--address", RAY_PORT)
    return "connected", option("--server", SERVER_PORT)


def healthy(what: str, port: int, table: list[tuple[int, int, str]]) -> bool:
    """Whether the table has the connection or the listening socket."""
    if what == "listening":
        return any(local == port and state == LISTENING for local, _, state in table)
    return any(remote == port and state == ESTABLISHED for _, remote, state in table)


def main(arguments: list[str]) -> int:
    """`fedloom-health`, or `fedloom-health listening|connected PORT`."""
    if arguments:
        what, port = arguments[0], int(arguments[1])
    else:
        what, port = expected(Path("/proc/1/cmdline").read_text(encoding="utf-8").split("\0"))
    if healthy(what, port, connections()):
        return 0
    print(f"not {what}: port {port}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

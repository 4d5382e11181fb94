"""The hospitals in containers: a hospital's program, and the program that does every step; see compose.yml.

    python in_container.py NAME     be the hospital of this name
    python in_container.py          do every step, beside the server

The two meet in the folder `HOSPITALS_SHARED`, where each hospital finds its token and learns of its crash. The steps
use the server's state folder, `HOSPITALS_STATE`, and write the results to `HOSPITALS_RESULTS`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hospital_data import HOSPITALS, make_data, policy
from hospital_steps import Failed, Federation, do_every_step, wait_for

PATIENCE_S = 120.0


class Signs:
    """What a hospital and the steps let each other know: files in the shared folder."""

    def __init__(self, name: str) -> None:
        folder = Path(os.environ["HOSPITALS_SHARED"])
        self.token, self.crash, self.down, self.ended = (
            folder / f"{name}.{sign}" for sign in ("token", "crash", "down", "ended")
        )


class DistantHospital:
    """A hospital in another container, for the steps."""

    def __init__(self, name: str) -> None:
        self._signs = Signs(name)

    def join(self, token: str) -> None:
        """Join the server with a token, and start the client."""
        new = self._signs.token.with_suffix(".new")
        new.write_text(token, encoding="utf-8")
        new.rename(self._signs.token)

    def kill(self) -> None:
        """Kill the client, as a power cut would."""
        self._signs.crash.touch()
        wait_for(self._signs.down.exists, PATIENCE_S, "the crash")

    def start(self) -> None:
        """Start the client again."""
        self._signs.crash.unlink()

    def has_ended(self) -> bool:
        """Return whether the client has ended by itself."""
        return self._signs.ended.exists()


class ServerHere:
    """The server whose network and state folder this container has."""

    def __init__(self) -> None:
        self.state, self.results = Path(os.environ["HOSPITALS_STATE"]), Path(os.environ["HOSPITALS_RESULTS"])

    def fedloom(self, *arguments: str) -> str:
        """Run a command to its end; returns what it printed to stdout."""
        done = subprocess.run(["fedloom", *arguments], capture_output=True, encoding="utf-8", timeout=300)
        if done.returncode:
            raise Failed(f"fedloom {' '.join(arguments)}: exit {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout


def be_hospital(name: str, home: Path) -> int:
    """Join with the token that comes, and run the client through a crash; when it has ended by itself, wait."""
    signs, identity = Signs(name), home / "identity"
    make_data(home / "data", name)
    wait_for(signs.token.exists, PATIENCE_S, "a token")
    subprocess.run(["fedloom", "join", "-", "--identity", str(identity)], stdin=signs.token.open(), check=True)
    (identity / "policy.toml").write_text(policy(home / "data"), encoding="utf-8")
    while True:
        client = subprocess.Popen(["fedloom", "client", "--identity", str(identity)])
        while client.poll() is None and not signs.crash.exists():
            time.sleep(0.1)
        if client.poll() is not None:
            signs.ended.touch()
            signal.pause()  # a container that ends would end the others
            return 0
        client.kill()
        client.wait()
        signs.down.touch()
        while signs.crash.exists():
            time.sleep(0.1)
        signs.down.unlink()


def do_steps() -> int:
    """Do every step; returns the exit status."""
    server = ServerHere()
    try:
        wait_for((server.state / "admin" / "server.json").exists, PATIENCE_S, "the server's start")
        do_every_step(Federation(server, {name: DistantHospital(name) for name in HOSPITALS}))
    except Failed as exc:
        print(f"FAILED: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(be_hospital(sys.argv[1], Path.home()) if len(sys.argv) > 1 else do_steps())

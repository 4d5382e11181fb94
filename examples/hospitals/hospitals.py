"""Three hospitals and a server as separate programs: enrolment, three methods, a crash, a revocation, and the results.

    python examples/hospitals/hospitals.py [FOLDER]

Exits with 1 as soon as a step did not do what it should, and says which. FOLDER (a temporary one by default) gets a
folder for each machine: its identity, policy, data, cache and log. Where the user may make network namespaces, each
machine is in one of its own, with an address of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from hospital_data import HOSPITALS, make_data, policy
from hospital_networks import Networks
from hospital_steps import Failed, Federation, do_every_step, say, wait_for


class Machine:
    """One computer: a folder that is its home, and the program that runs on it.

    Args:
        folder: its home.
        before: what commands are started by, to be in its network.
    """

    def __init__(self, folder: Path, before: tuple[str, ...]) -> None:
        self.folder, self._before = folder, before
        folder.mkdir(parents=True)
        own = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config"), "FEDLOOM_CACHE": str(folder / "cache")}
        self._environment = {**os.environ, **own, "OMP_NUM_THREADS": "1", "COLUMNS": "250"}
        self._program: subprocess.Popen[bytes] | None = None

    def fedloom(self, *arguments: str, stdin: str = "") -> str:
        """Run a command to its end; returns what it printed to stdout."""
        done = subprocess.run(
            [*self._before, sys.executable, "-m", "fedloom", *arguments],
            cwd=self.folder,
            env=self._environment,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        if done.returncode:
            raise Failed(f"fedloom {' '.join(arguments)}: exit {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def run(self, *arguments: str) -> None:
        """Start a program that goes on; its output is in `log`."""
        command = [*self._before, sys.executable, "-m", "fedloom", *arguments]
        with (self.folder / "log").open("ab") as log:
            self._program = subprocess.Popen(command, cwd=self.folder, env=self._environment, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        """What the program has printed."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """Kill the program, as a power cut would."""
        if self._program is not None and self._program.poll() is None:
            self._program.kill()
            self._program.wait()

    def has_ended(self) -> bool:
        """Return whether the program has ended by itself."""
        return self._program is not None and self._program.poll() is not None


class LocalServer(Machine):
    """The server's machine."""

    def __init__(self, folder: Path, before: tuple[str, ...], host: str) -> None:
        super().__init__(folder, before)
        self.state, self.results = folder / "state", folder / "results"
        self.run("serve", "--host", host, "--port", "0", "--state", "state")
        found = wait_for(lambda: re.search(r"listening on \S+:\d+", self.log), 60, "the server's start")
        say(f"the server is {found[0]}")


class LocalHospital(Machine):
    """A hospital's machine."""

    def __init__(self, folder: Path, before: tuple[str, ...]) -> None:
        super().__init__(folder, before)
        make_data(folder / "data", folder.name)

    def join(self, token: str) -> None:
        """Join the server with a token, and start the client."""
        self.fedloom("join", "-", "--identity", "identity", stdin=token)
        (self.folder / "identity" / "policy.toml").write_text(policy(self.folder / "data"), encoding="utf-8")
        self.start()

    def start(self) -> None:
        """Start the client."""
        self.run("client", "--identity", "identity")


def main() -> int:
    """Run every step; returns the exit status."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="hospitals-"))
    machines: list[Machine] = []
    with Networks(["server", *HOSPITALS]) as networks:
        say(networks.text)
        try:
            server = LocalServer(folder / "server", networks.before("server"), networks.address("server"))
            machines.append(server)
            hospitals = {name: LocalHospital(folder / name, networks.before(name)) for name in HOSPITALS}
            machines += hospitals.values()
            do_every_step(Federation(server, {**hospitals}))
        except Failed as exc:
            print(f"FAILED: {exc}\nSee the logs in {folder}", file=sys.stderr)
            return 1
        finally:
            for machine in reversed(machines):
                machine.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())

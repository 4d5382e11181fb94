"""A server and sites that have really joined: programs with homes, identities, policies and data of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from shell import Shell

from fedloom.core.records import Array
from fedloom.testing.fleet import wait_until

WORKLOADS = ("image_classification", "spiking_classification")
AS_ADMIN = ("--identity", "state/admin")


def pictures(size: int, seed: int, classes: int = 3, side: int = 8) -> tuple[Array, Array]:
    """Return images and classes of a site, each class of a brightness of its own."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(size) % classes)
    return (rng.integers(0, 60, (size, side, side)) + 60 * y[:, None, None]).astype(np.uint8), y


class Federation:
    """A server and its sites, each with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shells: list[Shell] = []
        self.server = self.shell("server")
        self.program, self.port, _ = self.server.serve(0)
        self.sites: dict[str, Any] = {}
        self.before: dict[str, tuple[str, ...]] = {}
        """What commands of a machine are started by, such as variables of its environment, by its name."""

    def join(self, name: str, pixels: Array, classes: Array, *more: str) -> Shell:
        """Join a site whose images and classes these are, the first 20 of which are its validation data too.

        Args:
            name: of the member.
            pixels: (n, height, width), uint8.
            classes: (n,), int64.
            more: options of `fedloom join`.
        """
        shell = self.enrol(
            name, *(f"--allow={workload}={self.folder / name / 'data'}" for workload in WORKLOADS), *more
        )
        np.savez(
            shell.folder / "data" / "x.npz",
            x_train=pixels,
            y_train=classes,
            x_test=pixels[:20],
            y_test=classes[:20],
        )
        return shell

    def enrol(self, name: str, *more: str) -> Shell:
        """Join a machine with an empty folder `data`; options as of `fedloom join`."""
        shell = self.shell(name, *self.before.get(name, ()))
        (shell.folder / "data").mkdir()
        token = self.server.run("token", "create", "--name", name, *AS_ADMIN).strip()
        shell.run("join", token, *more)
        return shell

    def policy(self, name: str) -> Path:
        """Return the file of a site's policy."""
        (found,) = (self.folder / name).rglob("policy.toml")
        return found

    def shell(self, name: str, *before: str) -> Shell:
        """Return a machine: a folder with a home of its own; its commands are started by `before`."""
        folder = self.folder / name
        folder.mkdir()
        home = ("env", f"FEDLOOM_CACHE={folder / 'cache'}", f"XDG_CONFIG_HOME={folder / 'config'}", "OMP_NUM_THREADS=1")
        self._shells.append(Shell(folder, (*home, *before)))
        return self._shells[-1]

    def start(self, names: Sequence[str]) -> None:
        """Start sites' agents, in this order."""
        for name in names:
            shell = next(shell for shell in self._shells if shell.folder.name == name)
            self.sites[name] = shell.start("client")
            wait_until(lambda name=name: name in self._online(), 60, f"{name} connecting")  # type: ignore[misc]

    def allow_sharing(self, *names: str) -> None:
        """Let models trained at sites alone be evaluated at others, by their policies."""
        for name in names:
            policy = self.policy(name)
            policy.write_text(f"share_local_model = true\n{policy.read_text(encoding='utf-8')}", encoding="utf-8")

    def kill(self, name: str) -> None:
        """Kill a site's agent."""
        self.sites[name][0].kill()
        self.sites[name][0].wait()

    def restart_server(self) -> None:
        """Kill the server, and start it again."""
        self.program.kill()
        self.program.wait()
        self.program, _, _ = self.server.serve(int(self.port))

    def submit(self, experiment: str) -> str:
        """Submit an experiment; returns the run's id."""
        (self.server.folder / "x.toml").write_text(experiment, encoding="utf-8")
        return self.server.run("submit", "x.toml", *AS_ADMIN).strip().splitlines()[-1]

    def run_folder(self, run_id: str) -> Path:
        """Return a run's folder on the server."""
        return self.server.folder / "state" / "runs" / run_id

    def rounds(self, run_id: str) -> list[Any]:
        """Return a run's records so far."""
        path = self.run_folder(run_id) / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def ended(self, run_id: str) -> Any:
        """Wait for the end of a run, whatever it is; returns its summary."""
        summary = self.run_folder(run_id) / "summary.json"
        logs = {name: log.read_text(encoding="utf-8")[-1500:] for name, (_, log) in self.sites.items()}
        wait_until(summary.exists, 240, f"the end of {run_id}; the sites said {logs}")
        return json.loads(summary.read_text(encoding="utf-8"))

    def said(self, run_id: str) -> str:
        """Return the notices of a run so far."""
        events = self.run_folder(run_id) / "events.jsonl"
        lines = map(json.loads, events.read_text(encoding="utf-8").splitlines()) if events.exists() else ()
        return "\n".join(str(line.get("message", "")) for line in lines)

    def result(self, run_id: str) -> Any:
        """Wait for a run that has to be done at the end; returns its summary."""
        found = self.ended(run_id)
        assert (found["status"], found["error"]) == ("done", None), found
        return found

    def _online(self) -> str:
        lines = self.server.run("nodes", *AS_ADMIN).splitlines()
        return "\n".join(line for line in lines if " online " in line or " busy " in line)

    def close(self) -> None:
        """End every program."""
        for shell in self._shells:
            shell.close()

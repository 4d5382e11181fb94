"""What is done with the hospitals, whatever they run on, and what has to come of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from hospital_data import HERE, HOSPITALS

T = TypeVar("T")


class Failed(Exception):
    """A step did not do what it should."""


class Hospital(Protocol):
    """A machine with a hospital's data."""

    def join(self, token: str) -> None:
        """Join the server with a token, and start the client."""

    def kill(self) -> None:
        """Kill the client, as a power cut would."""

    def start(self) -> None:
        """Start the client again."""

    def has_ended(self) -> bool:
        """Return whether the client has ended by itself."""


class Server(Protocol):
    """The machine of the server, and of its administrator."""

    state: Path
    """The server's state folder."""
    results: Path
    """Where results are fetched to."""

    def fedloom(self, *arguments: str) -> str:
        """Run a command to its end; returns what it printed to stdout."""


class Federation:
    """The server and the hospitals.

    Args:
        server: is running.
        hospitals: by name.
    """

    def __init__(self, server: Server, hospitals: dict[str, Hospital]) -> None:
        self.server, self.hospitals = server, hospitals

    def enrol(self) -> None:
        """Join and start every hospital."""
        for name, hospital in self.hospitals.items():
            hospital.join(self.admin("token", "create", "--name", name).strip().splitlines()[-1])
        wait_for(lambda: self.admin("nodes").count("online") == len(self.hospitals), 120, "three hospitals online")
        say("three hospitals have joined, each with its own key, policy and data")

    def admin(self, *arguments: str) -> str:
        """Run a command as the server's administrator."""
        return self.server.fedloom(*arguments, "--identity", str(self.server.state / "admin"))

    def submit(self, experiment: str) -> str:
        """Submit an experiment of this folder; returns the run's id."""
        return self.admin("submit", str(HERE / experiment)).strip().splitlines()[-1]

    def summary(self, run: str) -> dict[str, object]:
        """Wait for a run's end; returns its summary."""
        found: dict[str, object] = json.loads(self.admin("watch", run, "--json").strip().splitlines()[-1])
        require(found["status"] == "done", f"run {run} is {found['status']}: {found['error']}")
        return found

    def rounds(self, run: str) -> list[dict[str, object]]:
        """Return the records of a run's rounds so far."""
        file = self.server.state / "runs" / run / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def do_every_step(federation: Federation) -> None:
    """Enrol the hospitals, train three methods, lose two hospitals, and fetch the results.

    Raises:
        Failed: a step did not do what it should.
    """
    federation.enrol()
    train_three_methods(federation)
    fetch_results(federation, lose_two_hospitals(federation))
    say("every step did what it should")


def train_three_methods(federation: Federation) -> None:
    """Train SA-FedLoRA on the notes and SFedCA on the images, with every hospital in every round."""
    for experiment, count in (("notes.toml", 3), ("scans.toml", 2)):
        run = federation.submit(experiment)
        summary = federation.summary(run)
        records = federation.rounds(run)
        sampled = [record["cohort"] for record in records]
        require(all(len(set(cohort)) == count for cohort in sampled), f"{experiment}: cohorts {sampled}")
        sites = [site["site"] for site in records[-1]["sections"]["sites"]["sites"]]
        require(sites == sorted(HOSPITALS), f"{experiment}: evaluated at {sites}")
        say(f"{experiment}: {len(records)} rounds at {', '.join(sites)}; {summary['metrics']}")


def lose_two_hospitals(federation: Federation) -> str:
    """Train FedAvg on the tables while one hospital crashes and comes back, and another is revoked; returns the run."""
    run = federation.submit("patients.toml")
    wait_for(lambda: len(federation.rounds(run)) >= 3, 60, "three rounds of three hospitals")
    numbers = [site["site"] for site in federation.rounds(run)[-1]["sections"]["sites"]["sites"]]
    require(numbers == sorted(HOSPITALS), f"the clients are {numbers}")
    federation.hospitals["south"].kill()
    wait_for(lambda: missing(federation, run) == {1}, 60, "rounds without south")
    federation.hospitals["south"].start()
    wait_for(lambda: not missing(federation, run), 60, "south's return as client 1")
    say("south crashed, was missing, and is client 1 again")
    federation.admin("node", "revoke", "west")
    wait_for(lambda: missing(federation, run) == {2}, 60, "rounds without west")
    wait_for(lambda: federation.hospitals["west"].has_ended(), 30, "the end of west's client")
    say("west was revoked: its client has ended, and no round has its updates")
    return run


def missing(federation: Federation, run: str) -> set[int]:
    """Return the clients without an update in the newest round."""
    records = federation.rounds(run)
    return {failure["client"] for failure in records[-1]["failures"]}


def fetch_results(federation: Federation, run: str) -> None:
    """Fetch model and report to a folder of their owner, and check them."""
    summary = federation.summary(run)
    results = federation.server.results
    federation.admin("fetch", run, "--out", str(results))
    models, report = list(results.rglob("*.safetensors")), next(results.rglob("report.html"), None)
    require(bool(models) and models[0].stat().st_size > 0, f"no model in {results}")
    require(report is not None and "10th percentile" in report.read_text(encoding="utf-8"), "no report of the sites")
    last = [record for record in federation.rounds(run) if record["evaluation"]][-1]
    accuracy = last["evaluation"]["accuracy"]
    require(accuracy > 0.8, f"the model is right on {accuracy:.1%} of the validation data, expected more than 80 %")
    say(f"model and report are fetched; accuracy {accuracy:.1%} after {summary['rounds']} rounds")


def wait_for(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Return a condition's first true value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise Failed(f"{what}: not within {seconds:.0f} s")


def require(condition: bool, otherwise: str) -> None:
    """Raise `Failed` unless a condition holds."""
    if not condition:
        raise Failed(otherwise)


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

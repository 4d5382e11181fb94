"""Three hospitals and a server as separate programs: enrolment, three methods, a crash, a revocation, and the results.

    python examples/hospitals/hospitals.py [FOLDER]

Exits with 1 as soon as a step did not do what it should, and says which. FOLDER (a temporary one by default) gets a
folder for each machine: its identity, policy, data, cache and log.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

T = TypeVar("T")
HERE = Path(__file__).resolve().parent
PLUGIN = HERE / "patients.py"
HOSPITALS = {"north": 0.5, "south": 0.3, "west": 0.2}
"""Each hospital's share of the examples."""
COLUMNS = ("radius", "texture", "perimeter", "area", "smoothness")
WORDS = {
    "heart": ("pulse", "valve", "rhythm", "pressure", "murmur"),
    "lung": ("breath", "cough", "oxygen", "wheeze", "sputum"),
    "skin": ("rash", "lesion", "itch", "mole", "blister"),
}


class Failed(Exception):
    """A step did not do what it should."""


class Machine:
    """One computer: a folder that is its home, and the programs that run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        own = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config"), "FEDLOOM_CACHE": str(folder / "cache")}
        self._environment = {**os.environ, **own, "OMP_NUM_THREADS": "1", "COLUMNS": "250"}
        self.program: subprocess.Popen[bytes] | None = None

    def fedloom(self, *arguments: str) -> str:
        """Run a command to its end; returns what it printed to stdout."""
        command = [sys.executable, "-m", "fedloom", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self._environment, capture_output=True, timeout=300)
        if done.returncode:
            raise Failed(f"fedloom {' '.join(arguments)}: exit {done.returncode}: {done.stderr.decode()[-2000:]}")
        return done.stdout.decode()

    def start(self, *arguments: str) -> None:
        """Start a program that goes on; its output is in `log`."""
        command = [sys.executable, "-m", "fedloom", *arguments]
        with (self.folder / "log").open("ab") as log:
            self.program = subprocess.Popen(command, cwd=self.folder, env=self._environment, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """Kill the program, as a power cut would."""
        if self.program is not None and self.program.poll() is None:
            self.program.kill()
            self.program.wait()


class Federation:
    """The server and the hospitals.

    Args:
        folder: gets a folder for each machine.
    """

    def __init__(self, folder: Path) -> None:
        self.server = Machine(folder / "server")
        self.sites = {name: Machine(folder / name) for name in HOSPITALS}

    def begin(self) -> None:
        """Start the server; enrol and start every hospital."""
        self.server.start("serve", "--port", "0", "--state", "state")
        found = wait_for(lambda: re.search(r"listening on \S+:\d+", self.server.log), 60, "the server's start")
        say(f"the server is {found[0]}")
        for name, site in self.sites.items():
            token = self.admin("token", "create", "--name", name).strip().splitlines()[-1]
            site.fedloom("join", token, "--identity", "identity")
            (site.folder / "identity" / "policy.toml").write_text(policy(site.folder / "data"), encoding="utf-8")
            site.start("client", "--identity", "identity")
        wait_for(lambda: self.admin("nodes").count("online") == len(self.sites), 60, "three hospitals online")
        say("three hospitals have joined, each with its own key, policy and data")

    def admin(self, *arguments: str) -> str:
        return self.server.fedloom(*arguments, "--identity", "state/admin")

    def submit(self, experiment: str) -> str:
        return self.admin("submit", str(HERE / experiment)).strip().splitlines()[-1]

    def summary(self, run: str) -> dict[str, object]:
        """Wait for a run's end; returns its summary."""
        found: dict[str, object] = json.loads(self.admin("watch", run, "--json").strip().splitlines()[-1])
        require(found["status"] == "done", f"run {run} is {found['status']}: {found['error']}")
        return found

    def rounds(self, run: str) -> list[dict[str, object]]:
        """Return the records of a run's rounds so far."""
        file = self.server.folder / "state" / "runs" / run / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []

    def close(self) -> None:
        for machine in (*self.sites.values(), self.server):
            machine.kill()


def policy(data: Path) -> str:
    """Return a hospital's policy: three workloads on its own data, and one file of code, with this very content."""
    digest = hashlib.sha256(PLUGIN.read_bytes()).hexdigest()
    columns = json.dumps([*COLUMNS, "diagnosis"])
    return f"""code = ["{PLUGIN}#sha256={digest}"]
[workloads."{PLUGIN}"]
data = "{data}"
columns = {columns}
[workloads.text_classification]
data = "{data}"
classes = ["heart", "lung", "skin"]
[workloads.spiking_classification]
data = "{data}"
"""


def make_data(folder: Path, name: str, start: float, share: float) -> None:
    """Write a hospital's own table, notes and images."""
    folder.mkdir()
    rng = np.random.default_rng(sum(map(ord, name)))
    x, y = load_breast_cancer(return_X_y=True)
    part = slice(int(start * len(x)), int((start + share) * len(x)))
    with (folder / "patients.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([*COLUMNS, "diagnosis"])
        table.writerows([*row[: len(COLUMNS)], 1 - label] for row, label in zip(x[part], y[part], strict=True))
    with (folder / "notes.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for label in [*WORDS] * int(60 * share):
            table.writerow([" ".join(rng.choice(WORDS[label], 6)), label])
    digits = load_digits()
    part = slice(int(start * 600), int((start + share) * 600))
    images, labels = (digits.images[part] * 15).astype(np.uint8), digits.target[part]
    cut = len(images) * 3 // 4
    np.savez(folder / "scans.npz", x_train=images[:cut], y_train=labels[:cut], x_test=images[cut:], y_test=labels[cut:])


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
    federation.sites["south"].kill()
    wait_for(lambda: missing(federation, run) == {1}, 60, "rounds without south")
    federation.sites["south"].start("client", "--identity", "identity")
    wait_for(lambda: not missing(federation, run), 60, "south's return as client 1")
    say("south crashed, was missing, and is client 1 again")
    federation.admin("node", "revoke", "west")
    wait_for(lambda: missing(federation, run) == {2}, 60, "rounds without west")
    wait_for(lambda: federation.sites["west"].program.poll() is not None, 30, "the end of west's client")
    say("west was revoked: its client has ended, and no round has its updates")
    return run


def missing(federation: Federation, run: str) -> set[int]:
    """Return the clients without an update in the newest round."""
    records = federation.rounds(run)
    return {failure["client"] for failure in records[-1]["failures"]}


def fetch_results(federation: Federation, run: str) -> None:
    """Fetch model and report to a folder of their owner, and check them."""
    summary = federation.summary(run)
    federation.admin("fetch", run, "--out", "results")
    results = federation.server.folder / "results"
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


def main() -> int:
    """Run every step; returns the exit status."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="hospitals-"))
    federation, start = Federation(folder), 0.0
    for name, share in HOSPITALS.items():
        make_data(federation.sites[name].folder / "data", name, start, share)
        start += share
    try:
        federation.begin()
        train_three_methods(federation)
        fetch_results(federation, lose_two_hospitals(federation))
    except Failed as exc:
        print(f"FAILED: {exc}\nSee the logs in {folder}", file=sys.stderr)
        return 1
    finally:
        federation.close()
    say("every step did what it should")
    return 0


if __name__ == "__main__":
    sys.exit(main())

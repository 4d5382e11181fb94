"""Joined sites that are wrong in some way: each is named with the reason, in the run's events, and the others go on."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joined_sites import AS_ADMIN, Federation
from site_fleet import OWN_ROWS, rows, train_rows

from fedloom.core.records import Array
from fedloom.testing.fleet import wait_until

pytestmark = pytest.mark.slow


def text(*sites: str, rounds: int = 1, more: str = "") -> str:
    """FedAvg on the own rows of these sites, or of all that are connected."""
    listed = ", ".join(f'"{site}"' for site in sites)
    clients = f"[{listed}]" if sites else '"nodes"'
    head = f'name = "rows"\nrounds = {rounds}\nclients = {clients}\nstrategy = "fedavg"\n{more}'
    return f'{head}[workload]\nname = "{OWN_ROWS}"\n'


class Rows(Federation):
    """Sites with tables of rows."""

    def add(self, name: str, table: tuple[Array, Array] | None = None, more: str = "", top: str = "") -> None:
        """Join and start a site; `more` of its policy is about the workload, `top` about all."""
        folder = self.enrol(name).folder
        x, y = table or rows(name)
        np.savez(folder / "data" / "rows.npz", x=x, y=y)
        digest = hashlib.sha256(Path(OWN_ROWS).read_bytes()).hexdigest()
        allowed = f'[workloads."{OWN_ROWS}"]\ndata = "{folder / "data"}"\n{more}'
        code = f'code = ["{OWN_ROWS}#sha256={digest}"]\n'
        self.policy(name).write_text(f"tracebacks = true\n{top}{code}{allowed}", encoding="utf-8")
        self.start([name])

    def states(self, name: str) -> Path:
        """Return the folder of the states that a site stores."""
        return self.policy(name).parent / "client-states"


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rows]:
    monkeypatch.setenv("COLUMNS", "250")
    with contextlib.closing(Rows(tmp_path)) as made:
        yield made


def examples(federation: Federation, run_id: str) -> list[int]:
    return [record["num_examples"] for record in federation.rounds(run_id)]


def test_wrong_data_is_named_before_round_1(federation: Rows) -> None:
    x, y = rows("north")
    federation.add("north")
    federation.add("twin", (x, y))
    same = federation.submit(text("north", "twin"))
    assert federation.result(same) and "sites north, twin have the same data (SHA-256 " in federation.said(same)

    federation.kill("twin")
    federation.add("empty", (np.zeros((0, 3)), np.zeros(0, int)))
    run_id = federation.submit(text())
    federation.result(run_id)
    assert examples(federation, run_id) == [len(train_rows("north"))]
    assert "site 'empty' is no client of this run" in federation.said(run_id)
    assert "the table has no rows" in federation.said(run_id)

    waiting = federation.submit(text("north", "empty"))
    missing = "not all sites of `clients` are connected (missing: empty; no clients of it: empty: "
    wait_until(lambda: missing in federation.said(waiting), 60, "the notice")
    federation.server.run("stop", waiting, *AS_ADMIN)
    assert federation.ended(waiting)["status"] == "interrupted"


def test_a_site_that_may_not_evaluate_or_whose_clock_is_wrong_trains(federation: Rows, tmp_path: Path) -> None:
    federation.add("north")
    federation.add("silent", more="evaluation = false\n")
    folder = tmp_path / "clock"  # one that is behind cannot be feigned: gRPC for Python counts its time limits by it
    folder.mkdir()
    shifted = "import time\n_now = time.time\ntime.time = lambda: _now() + 600\n"
    (folder / "sitecustomize.py").write_text(shifted, encoding="utf-8")
    federation.before["ahead"] = (f"PYTHONPATH={folder}",)
    federation.add("ahead")
    run_id = federation.submit(text(rounds=2, more="[round]\nmin_sites = 3\n"))
    federation.result(run_id)
    names = ("ahead", "north", "silent")
    assert examples(federation, run_id) == [sum(len(train_rows(name)) for name in names)] * 2
    section: Any = federation.rounds(run_id)[-1]["sections"]["sites"]
    assert [site["site"] for site in section["sites"]] == ["ahead", "north"]
    assert [*section["missing"]] == ["silent"] and "forbids evaluation" in section["missing"]["silent"]


def test_a_full_disk_or_the_state_of_another_run_fails_that_site_alone(federation: Rows) -> None:
    federation.add("north")
    federation.add("south")
    states = federation.states("south")
    first, second = (stopped(federation, federation.submit(text("north", "south", rounds=100_000))) for _ in range(2))
    own, foreign = (states / hashlib.sha256(run.encode()).hexdigest()[:32] / "1" for run in (second, first))
    newest = max(foreign.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    for path in own.glob("*.safetensors"):
        shutil.copy(newest, path)
    failure = resumed_to_a_failure(federation, second)
    assert failure["node"] == "south" and f"found one of {{'run': '{first}', 'client': 1}}" in failure["message"]

    shutil.rmtree(states)
    states.write_text("no folder can be made here, as on a full disk", encoding="utf-8")
    failure = resumed_to_a_failure(federation, first)
    assert failure["node"] == "south" and "Free disk space there" in failure["message"]

    states.unlink()
    done = len(federation.rounds(first))
    federation.server.run("resume", first, *AS_ADMIN)
    wait_until(lambda: len(federation.rounds(first)) > done + 3, 60, "rounds")
    assert not federation.rounds(first)[-1]["failures"], "there is space again"


def stopped(federation: Rows, run_id: str) -> str:
    """Stop a run after a few rounds; returns its id."""
    begun = len(federation.rounds(run_id))
    wait_until(lambda: len(federation.rounds(run_id)) >= begun + 2, 60, "two rounds")
    (federation.run_folder(run_id) / "summary.json").unlink(missing_ok=True)
    federation.server.run("stop", run_id, *AS_ADMIN)
    assert federation.ended(run_id)["status"] == "interrupted"
    return run_id


def resumed_to_a_failure(federation: Rows, run_id: str) -> Any:
    """Resume a run until a site fails, and stop it; returns the failure."""
    federation.server.run("resume", run_id, *AS_ADMIN)
    wait_until(lambda: federation.rounds(run_id)[-1]["failures"], 60, "a failure")
    failures = federation.rounds(run_id)[-1]["failures"]
    stopped(federation, run_id)
    assert len(failures) == 1
    return failures[0]


def test_a_second_machine_with_the_identity_of_a_site_waits_and_both_are_named(federation: Rows) -> None:
    federation.add("north")
    copy = federation.shell("copy")
    shutil.copytree(federation.policy("north").parent, copy.folder / "identity")
    copy.start("client", "--identity", "identity")
    server_log = next(federation.server.folder.glob("log-*"))
    what = "two machines with copies of one identity"
    wait_until(lambda: what in server_log.read_text(encoding="utf-8"), 60, "the warning")
    run_id = federation.submit(text("north", rounds=2))
    federation.result(run_id)
    assert examples(federation, run_id) == [len(train_rows("north"))] * 2, "the first one works on"

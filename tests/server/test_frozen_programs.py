"""Programs that stand still for a while: an agent of a site, and the server. Runs continue, agents come back."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from joined_sites import AS_ADMIN, Federation
from site_fleet import OWN_ROWS, rows

from fedloom.testing.fleet import wait_until

pytestmark = pytest.mark.slow
TEXT = f"""name = "rows"
rounds = 100000
clients = "nodes"
strategy = "fedavg"
[round]
quorum_fraction = 0.5
deadline_s = 5.0
[workload]
name = "{OWN_ROWS}"
"""


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    monkeypatch.setenv("COLUMNS", "250")
    with contextlib.closing(Federation(tmp_path)) as made:
        digest = hashlib.sha256(Path(OWN_ROWS).read_bytes()).hexdigest()
        for name in ("north", "south"):
            folder = made.enrol(name).folder
            x, y = rows(name)
            np.savez(folder / "data" / "rows.npz", x=x, y=y)
            made.policy(name).write_text(
                f'code = ["{OWN_ROWS}#sha256={digest}"]\n[workloads."{OWN_ROWS}"]\ndata = "{folder / "data"}"\n',
                encoding="utf-8",
            )
        made.start(["north", "south"])
        yield made


def both_train(federation: Federation, run_id: str) -> None:
    """Wait for two more rounds that both sites have trained in."""
    done = len(federation.rounds(run_id))

    def trained() -> bool:
        later = federation.rounds(run_id)[done:]
        return sum(len(record["cohort"]) == 2 and not record["failures"] for record in later) >= 2

    wait_until(trained, 90, "rounds of both sites")


def test_a_run_continues_without_an_agent_that_stands_still_and_with_it_afterwards(federation: Federation) -> None:
    run_id = federation.submit(TEXT)
    both_train(federation, run_id)
    agent, _ = federation.sites["south"]
    federation.server.freeze(agent)
    done = len(federation.rounds(run_id))
    wait_until(lambda: len(federation.rounds(run_id)) >= done + 5, 90, "rounds without the site")
    missed = [failure for record in federation.rounds(run_id)[done:] for failure in record["failures"]]
    assert {failure["node"] for failure in missed} <= {"south"}
    server_log = next(federation.server.folder.glob("log-*"))
    assert "south" in federation.said(run_id) + server_log.read_text(encoding="utf-8")
    federation.server.freeze(agent, frozen=False)
    both_train(federation, run_id)
    federation.server.run("stop", run_id, *AS_ADMIN)
    assert federation.ended(run_id)["status"] == "interrupted"


def test_agents_come_back_to_a_server_that_stood_still(federation: Federation) -> None:
    run_id = federation.submit(TEXT)
    both_train(federation, run_id)
    federation.server.freeze(federation.program)
    time.sleep(20)  # longer than agents wait for a heartbeat's answer, and than the server waits for a heartbeat
    federation.server.freeze(federation.program, frozen=False)
    both_train(federation, run_id)
    rosters = (federation.run_folder(run_id) / "rosters.jsonl").read_text(encoding="utf-8")
    assert rosters.count('"member"') == 2, "the same clients"
    federation.server.run("stop", run_id, *AS_ADMIN)
    assert federation.ended(run_id)["status"] == "interrupted"

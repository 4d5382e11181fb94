"""MEAT, MaNo and a Flower app on joined sites, each with images of its own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joined_sites import AS_ADMIN, Federation, pictures

from fedloom.testing.fleet import wait_until

pytestmark = pytest.mark.slow
SIZES = {"east": 90, "north": 60}
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
WORKLOADS = ("meat", "mano")
DATA = '[workload.data]\nsource = "npz"\nfile = "$DATA/x.npz"\n'
HEAD = 'rounds = 3\nclients = "nodes"\n[round]\nmin_sites = 2\n'
MEAT = f"""name = "meat"
{HEAD}[strategy]
name = "meat"
start = 2
[workload]
name = "meat"
attack = {{ epsilon = 0.15, step_size = 0.05, steps = 2 }}
model = {{ name = "strided", width = 0.5 }}
training = {{ learning_rate = 0.05, momentum = 0.9, batch_size = 32 }}
measure = {{ examples = 20, steps = 2, table_examples = 10, table = ["fgsm"] }}
{DATA}"""
MANO = f"""name = "mano"
{HEAD}[strategy]
name = "mano"
[workload]
name = "mano"
model = {{ name = "strided", width = 0.5 }}
training = {{ learning_rate = 0.05, momentum = 0.9, batch_size = 32 }}
suite = {{ banks = ["mild"], severities = [3], images = 20 }}
{DATA}"""


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    monkeypatch.setenv("COLUMNS", "250")
    with contextlib.closing(Federation(tmp_path)) as made:
        for number, (name, size) in enumerate(SIZES.items()):
            made.join(
                name, *pictures(size, number), *(f"--allow={each}={tmp_path / name / 'data'}" for each in WORKLOADS)
            )
            policy = made.policy(name)
            text = policy.read_text(encoding="utf-8")
            flower = f'tracebacks = true\ncode = ["{QUICKSTART}"]\n{text}\n[workloads.flower]\n'
            policy.write_text(flower, encoding="utf-8")
        made.start([*SIZES])
        yield made


@pytest.mark.parametrize("text", [MEAT, MANO], ids=["meat", "mano"])
def test_every_site_trains_and_is_measured_on_its_own_images(federation: Federation, text: str) -> None:
    run_id = federation.submit(text)
    federation.result(run_id)
    records = federation.rounds(run_id)
    assert [record["cohort"] for record in records] == [[0, 1]] * 3
    assert not any(record["failures"] for record in records)
    assert records[0]["num_examples"] == sum(SIZES.values())
    again = federation.submit(text)
    assert federation.result(again)["model_sha256"] == federation.result(run_id)["model_sha256"]


def test_a_flower_app_has_a_client_at_every_site(federation: Federation) -> None:
    settings = ("--set", "clients=nodes", "--set", "round.min_sites=2")
    said = federation.server.run("submit", str(QUICKSTART), *settings, *AS_ADMIN)
    run_id = said.strip().splitlines()[-1]
    summary: Any = federation.result(run_id)
    records = federation.rounds(run_id)
    assert len(records) == 3 and [sorted(record["cohort"]) for record in records] == [[0, 1]] * 3, said
    assert summary["metrics"]["eval_acc"] > 0.3
    roster = (federation.run_folder(run_id) / "rosters.jsonl").read_text(encoding="utf-8").splitlines()
    assert [site["name"] for line in roster for site in json.loads(line)["joined"]] == sorted(SIZES)


def test_deleting_a_run_removes_what_its_clients_remember(federation: Federation) -> None:
    """MEAT's clients keep their momentum on their site."""
    long = MEAT.replace("rounds = 3", "rounds = 500")
    run_id = federation.submit(long)
    wait_until(lambda: len(federation.rounds(run_id)) >= 2, 120, "two rounds")
    federation.server.run("stop", run_id, *AS_ADMIN)
    assert federation.ended(run_id)["status"] == "interrupted"
    states = {name: federation.policy(name).parent / "client-states" for name in SIZES}
    assert all([*folder.rglob("*.safetensors")] for folder in states.values())
    federation.kill("north")
    federation.server.run("delete", run_id, *AS_ADMIN)
    wait_until(lambda: not [*states["east"].rglob("*.safetensors")], 60, "the end of east's states")
    assert [*states["north"].rglob("*.safetensors")], "north is away"
    federation.start(["north"])
    wait_until(lambda: not [*states["north"].rglob("*.safetensors")], 60, "the end of north's states")

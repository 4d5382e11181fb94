"""MEAT on joined sites, each with images of its own, which its clients remember things about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from joined_sites import AS_ADMIN, Federation, pictures

from fedloom.testing.fleet import wait_until

pytestmark = pytest.mark.slow
SIZES = {"east": 90, "north": 60}
WORKLOADS = ("meat",)
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


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    monkeypatch.setenv("COLUMNS", "250")
    with contextlib.closing(Federation(tmp_path)) as made:
        for number, (name, size) in enumerate(SIZES.items()):
            made.join(
                name, *pictures(size, number), *(f"--allow={each}={tmp_path / name / 'data'}" for each in WORKLOADS)
            )
        made.start([*SIZES])
        yield made


def test_every_site_trains_and_is_measured_on_its_own_images(federation: Federation) -> None:
    run_id = federation.submit(MEAT)
    federation.result(run_id)
    records = federation.rounds(run_id)
    assert [sorted(record["cohort"]) for record in records] == [[0, 1]] * 3
    assert not any(record["failures"] for record in records)
    assert records[0]["num_examples"] == sum(size - size // 10 for size in SIZES.values()), "a tenth is for validation"
    again = federation.submit(MEAT)
    assert federation.result(again)["model_sha256"] == federation.result(run_id)["model_sha256"]


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

"""Sites that have really joined: mutual TLS, policies, processes and data folders of their own, kills and restarts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from joined_sites import Federation, pictures

from fedloom.testing.fleet import wait_until

pytestmark = pytest.mark.slow
SIZES = {"east": 90, "north": 60, "west": 120}
DATA = '[workload.data]\nsource = "npz"\nfile = "$DATA/x.npz"\n'
IMAGES = f'[workload]\nname = "image_classification"\nmodel = {{ name = "mlp", hidden = [16, 8] }}\n{DATA}'
SPIKES = (
    f'[workload]\nname = "spiking_classification"\ntime_steps = 4\nmodel = {{ name = "mlp", hidden = [16] }}\n{DATA}'
)
LOW_RANK = 'targets = ["1", "3"]\nrank_max = 4\nrank_min = 2\ninitiating_rounds = 1\n'
EXPERIMENTS = {"fedavg": ("", IMAGES), "sfedca": ("", SPIKES), "sa_fedlora": (LOW_RANK, IMAGES)}


def text(name: str, rounds: int = 3, cohort: int | None = None, more: str = "", fine_tune: int = 0) -> str:
    strategy, workload = EXPERIMENTS[name]
    sampled = "" if cohort is None else f"cohort = {cohort}\n"
    head = f'name = "{name}"\nrounds = {rounds}\nclients = "nodes"\n{sampled}[round]\nmin_sites = 3\n{more}'
    tuned = f"[evaluation]\nfine_tune = {fine_tune}\n" if fine_tune else ""
    return f'{head}{tuned}[strategy]\nname = "{name}"\n{strategy}{workload}'


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    monkeypatch.setenv("COLUMNS", "250")
    with contextlib.closing(Federation(tmp_path)) as made:
        for number, (name, size) in enumerate(SIZES.items()):
            made.join(name, *pictures(size, number))
        yield made


def test_every_strategy_trains_on_each_sites_own_data_with_the_same_bits(federation: Federation) -> None:
    federation.start(["west", "north", "east"])
    want = {}
    for name in EXPERIMENTS:
        run_id = federation.submit(text(name))
        want[name] = federation.result(run_id)["model_sha256"]
        info = json.loads((federation.run_folder(run_id) / "workload.json").read_text(encoding="utf-8"))
        assert [site["site"] for site in info["data"]["sites"]] == sorted(SIZES)
        assert info["client_sizes"] == [SIZES[name] for name in sorted(SIZES)]
        sampled = [record["cohort"] for record in federation.rounds(run_id)]
        assert all(record["num_examples"] == sum(info["client_sizes"][k] for k in cohort)
                   for record, cohort in zip(federation.rounds(run_id), sampled, strict=True))  # fmt: skip
    for name in SIZES:
        federation.kill(name)
    federation.start(["east", "west", "north"])
    runs = {name: federation.submit(text(name)) for name in EXPERIMENTS}
    assert {name: federation.result(run_id)["model_sha256"] for name, run_id in runs.items()} == want


def test_server_and_sites_may_be_killed(federation: Federation) -> None:
    federation.start(["west", "north", "east"])
    long = text("fedavg", rounds=12)
    want = federation.result(federation.submit(long))["model_sha256"]
    run_id = federation.submit(long)
    wait_until(lambda: len(federation.rounds(run_id)) >= 3, 60, "three rounds")
    federation.restart_server()
    assert federation.result(run_id)["model_sha256"] == want, "the sites have waited, and were waited for"
    assert not any(record["failures"] for record in federation.rounds(run_id))

    lossy = federation.submit(text("sfedca", rounds=60).replace("min_sites = 3", "min_sites = 1"))
    wait_until(lambda: len(federation.rounds(lossy)) >= 3, 60, "three rounds")
    federation.kill("north")
    wait_until(lambda: any(record["failures"] for record in federation.rounds(lossy)), 60, "a round without north")
    federation.start(["north"])
    federation.result(lossy)
    records = federation.rounds(lossy)
    assert {failure["client"] for record in records for failure in record["failures"]} == {1}
    assert not records[-1]["failures"] and 1 in records[-1]["cohort"], "the same client, when it is back"
    lines = (federation.run_folder(lossy) / "rosters.jsonl").read_text(encoding="utf-8").splitlines()
    joined = [site["name"] for line in lines for site in json.loads(line)["joined"]]
    assert joined == sorted(SIZES)


def test_models_of_sites_are_compared_where_their_policies_share_them(federation: Federation) -> None:
    federation.allow_sharing("east", "west")
    federation.start(["west", "north", "east"])
    runs = {name: federation.submit(text(name, rounds=2, fine_tune=1)) for name in EXPERIMENTS}
    for name, run_id in runs.items():
        matrix, sections = federation.result(run_id)["cross_sites"], federation.rounds(run_id)[-1]["sections"]
        assert matrix == sections["cross_sites"] and matrix["models"] == ["global", *sorted(SIZES)], name
        plain, tuned = ([one["metrics"] for one in sections[part]["sites"]] for part in ("sites", "sites_fine_tuned"))
        assert len(plain) == len(tuned) == 3, (name, sections)
        for metric, rows in matrix["metrics"].items():
            assert [row[0] for row in rows] == [one[metric] for one in plain]
            assert [row[2] for row in rows] == ["n/a"] * 3, "north does not share its model"
            own = [rows[0][1], rows[2][3]]  # the models of east and west at home: the global one, trained there
            assert own == [tuned[0][metric], tuned[2][metric]], (name, metric)
        assert "loss" in matrix["metrics"]

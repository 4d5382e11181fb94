"""A Flower app for devices, unchanged, on joined nodes: each trains on the data of its own node's folder."""

import contextlib
import json
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from joined_sites import AS_ADMIN, Federation
from safetensors.numpy import load_file

from fedloom.testing.fleet import wait_until

MANIFEST = """
[project]
name = "devices"
[tool.flwr.app.components]
serverapp = "devices_server:app"
clientapp = "devices_client:app"
[tool.flwr.app.config]
num-server-rounds = 3
"""
SERVER = """
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

@app.main()
def main(grid, context):
    print("IDS", len(set(grid.get_node_ids())))
    strategy = FedAvg(min_available_nodes=2, min_train_nodes=2, min_evaluate_nodes=2)
    strategy.start(
        grid=grid, initial_arrays=ArrayRecord([np.zeros(2)]), num_rounds=context.run_config["num-server-rounds"]
    )
"""
CLIENT = """
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

def rows(context):
    return np.load(Path(context.node_config["dataset-path"]) / "x.npy")

@app.train()
def train(message, context):
    x = rows(context)
    model = message.content["arrays"].to_numpy_ndarrays()[0]
    seen = context.state["seen"]["rounds"] + 1 if "seen" in context.state else 1
    context.state["seen"] = MetricRecord({"rounds": seen})
    numbers = MetricRecord({"num-examples": len(x), "rounds": seen, "node": context.node_id})
    numbers["partition"] = int("partition-id" in context.node_config)
    content = {"arrays": ArrayRecord([model + 0.5 * (x.mean(0) - model)]), "metrics": numbers}
    return Message(RecordDict(content), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    x = rows(context)
    model = message.content["arrays"].to_numpy_ndarrays()[0]
    numbers = MetricRecord({"num-examples": len(x), "distance": float(np.abs(x.mean(0) - model).sum())})
    return Message(RecordDict({"metrics": numbers}), reply_to=message)
"""
SIZES = {"east": 30, "west": 90}


def data(name: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.random.default_rng(SIZES[name]).normal(SIZES[name], 1.0, (SIZES[name], 2))


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    monkeypatch.setenv("COLUMNS", "400")
    app = tmp_path / "app" / "devices"
    app.mkdir(parents=True)
    (app / "pyproject.toml").write_text(MANIFEST, encoding="utf-8")
    (app / "devices_server.py").write_text(SERVER, encoding="utf-8")
    (app / "devices_client.py").write_text(textwrap.dedent(CLIENT), encoding="utf-8")
    with contextlib.closing(Federation(tmp_path)) as made:
        for name in SIZES:
            own = tmp_path / name / "sensor data"
            made.enrol(name, "--allow=flower", "--node-config", f"dataset-path='{own}'")
            own.mkdir()
            np.save(own / "x.npy", data(name))
            shutil.copytree(app, tmp_path / name / "devices")
            policy = made.policy(name)
            listed = json.dumps([str(tmp_path / name / "devices")])
            policy.write_text(f"code = {listed}\n{policy.read_text(encoding='utf-8')}", encoding="utf-8")
        yield made


def submitted(federation: Federation, *settings: str) -> str:
    options = [part for each in ('clients="nodes"', "round.min_sites=2", *settings) for part in ("--set", each)]
    where = str(federation.folder / "app" / "devices")
    return federation.server.run("submit", where, *options, *AS_ADMIN).strip().splitlines()[-1].split()[0]


@pytest.mark.slow
def test_a_devices_app_trains_on_each_nodes_own_data(federation: Federation) -> None:
    federation.start([*SIZES])
    shown = federation.server.run("nodes", *AS_ADMIN)
    assert "node_config dataset-path" in shown and "sensor data" not in shown, "names are shown, values stay"
    run_id = submitted(federation)
    federation.result(run_id)
    total, model, means = sum(SIZES.values()), np.zeros(2), {name: data(name).mean(0) for name in SIZES}
    for _ in range(3):
        model = sum(size * (model + 0.5 * (means[name] - model)) for name, size in SIZES.items()) / total
    (found,) = load_file(federation.run_folder(run_id) / "model" / "model.safetensors").values()
    np.testing.assert_allclose(found, model, rtol=1e-12)
    records = federation.rounds(run_id)
    wanted = sum(size * np.abs(means[name] - model).sum() for name, size in SIZES.items()) / total
    assert records[-1]["evaluation"]["distance"] == pytest.approx(wanted)
    for metrics in (records[-1]["info"], records[-1]["metrics"]):  # the app's own mean, and ours of the same replies
        assert metrics["rounds"] == 3 and metrics["partition"] == 0, "states stay; no partition is made up"
        assert metrics["node"] == pytest.approx((2 * 30 + 3 * 90) / total), "two ids, those of the sites' numbers"


@pytest.mark.slow
def test_a_run_goes_on_after_a_kill_of_the_server_and_without_a_site(federation: Federation) -> None:
    federation.start([*SIZES])
    want = federation.result(submitted(federation, "rounds=8"))["model_sha256"]
    again = submitted(federation, "rounds=8")
    wait_until(lambda: len(federation.rounds(again)) >= 2, 60, "two rounds")
    federation.restart_server()
    assert federation.result(again)["model_sha256"] == want
    lossy = submitted(federation, "rounds=60", "round.min_sites=1")
    wait_until(lambda: len(federation.rounds(lossy)) >= 2, 60, "two rounds")
    federation.kill("west")
    federation.result(lossy)
    assert federation.rounds(lossy)[-1]["info"]["errors"] > 0, "the app has error replies of the site that left"

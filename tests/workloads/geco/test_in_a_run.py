"""Whole runs: runtimes, resuming, nodes with data of their own, presets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from policies import Fleet
from support_geco import experiment, make_body

pytest.importorskip("captum")

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import DataMissing, Interrupted
from fedloom.core.events import RoundFinished
from fedloom.core.history import RoundRecord
from fedloom.workloads.geco.config import Generated
from fedloom.workloads.geco.generator import generate

MONITOR: dict[str, Any] = {
    "name": "geco",
    "data": "own",
    "clients": 3,
    "sentences": 4,
    "explainers": ["random", "input_x_gradient", "gradient_shap"],
    "explaining": {"shap_samples": 3},
    "only_correct": False,
}
FEDERATED: dict[str, Any] = {"regimes": ["CEf", "LoRA"], "balance": [0.9, 0.5, 0.1]}


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_body(tmp_path_factory.mktemp("body"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "runtime", [{"name": "process", "workers": 2}, {"name": "ray", "workers": 2}], ids=["process", "ray"]
)
def test_runtimes_have_equal_bits(body: str, runtime: dict[str, Any]) -> None:
    made = experiment(body, FEDERATED, clients=3, monitor=MONITOR)
    inline = api.run(made, keep=False)
    other = api.run(experiment(body, FEDERATED, clients=3, monitor=MONITOR, runtime=runtime), keep=False)
    assert inline.summary.model_sha256 == other.summary.model_sha256
    assert [each.evaluation for each in inline.history] == [each.evaluation for each in other.history]
    assert [each.monitor for each in inline.history] == [each.monitor for each in other.history]
    assert inline.history[-1].monitor["scored"] == 12


@pytest.mark.parametrize(
    "moment",
    [pytest.param("RoundFinished", marks=pytest.mark.slow), "ClientsDone"],
    ids=["between rounds", "inside a round"],
)
def test_a_resumed_run_has_the_same_bits(body: str, tmp_path: Path, moment: str) -> None:
    common: dict[str, Any] = {"clients": 3, "rounds": 3, "checkpoint": {"every": 1}, "round": {"group_size": 1}}
    made = experiment(body, FEDERATED, monitor=MONITOR, **common)
    whole = api.run(made, out=tmp_path / "whole")

    class Stop:
        seen = 0

        def write(self, event: Any) -> None:
            if type(event).__name__ != moment:
                return
            self.seen += 1
            if self.seen == (2 if moment == "RoundFinished" else 5):
                raise KeyboardInterrupt

        def close(self) -> None: ...

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        api.run(made, out=tmp_path / "cut", sinks=[Stop()])
    resumed = api.resume(tmp_path / "cut")
    assert resumed.summary.model_sha256 == whole.summary.model_sha256
    assert resumed.history[-1].monitor == whole.history[-1].monitor


def write_released(folder: Path, seed: int, female: int) -> Path:
    """Write generated sentences in the released form: training sentences of which some pairs come first."""
    folder.mkdir()
    corpus = generate(Generated(pairs=12 + female, test_pairs=4), seed)
    for name, sentences in (("train", corpus.train), ("test", corpus.test)):
        lines = [
            json.dumps(
                {
                    "sentence": each.words,
                    "ground_truth": [int(of) for of in each.mask],
                    "gender": corpus.versions[each.version],
                    "target": each.version,
                    "sentence_idx": each.pair,
                }
            )
            for each in sentences
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def nodes(tmp_path: Path, body: str, count: int = 3) -> dict[str, dict[str, Any]]:
    """Nodes with sentences of their own, and the same encoder in each one's folder."""
    found = {}
    for number in range(count):
        folder = write_released(tmp_path / f"data{number}", number, number)
        shutil.copytree(body, folder / "body")
        found[f"node{number}"] = {"workloads": {"geco": {"data": str(folder)}}, "tracebacks": True}
    return found


def on_nodes(preset: str, *changes: str) -> Experiment:
    """A preset for nodes that have joined, each with sentences and encoder in its own folder."""
    own = ['workload.data={source="released",folder="$DATA"}', 'workload.model.body="$DATA/body"', "clients=nodes"]
    return api.load(preset).override([*own, "rounds=2", *changes])


def test_nodes_that_have_joined_train_on_sentences_of_their_own(body: str, tmp_path: Path) -> None:
    made = on_nodes("geco-federated", "workload.balance=[]", "monitor.only_correct=false", "monitor.sentences=4")
    ended = Records()
    outcome = Fleet(tmp_path, **nodes(tmp_path, body)).run(made, ended)
    assert outcome.error is None, outcome.error
    assert outcome.summary.status == "done"
    last = ended.records[-1]
    assert last.monitor["scored"] == 12 and set(last.monitor["nets"]) == {"CEf", "LoRA"}
    assert {"mass_accuracy", "mass_accuracy_chance"} <= (last.evaluation or {}).keys()


class Records:
    """A sink that stores the rounds' records."""

    def __init__(self) -> None:
        self.records: list[RoundRecord] = []

    def write(self, event: object) -> None:
        if isinstance(event, RoundFinished):
            self.records.append(event.record)

    def close(self) -> None: ...


def test_a_nodes_broken_file_is_named(body: str, tmp_path: Path) -> None:
    given = nodes(tmp_path, body, 1)
    (tmp_path / "data0" / "test.jsonl").write_text("nothing\n", encoding="utf-8")
    outcome = Fleet(tmp_path, **given).run(on_nodes("geco-federated", "workload.balance=[]"))
    assert isinstance(outcome.error, DataMissing) and "line 1: not a JSON record" in str(outcome.error)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["geco", "geco-federated"])
def test_a_preset_in_small_ends_with_its_table(preset: str, tmp_path: Path, body: str) -> None:
    small = [
        f"workload.model.body={json.dumps(body)}",
        "workload.data.pairs=30",
        "workload.data.test_pairs=4",
        "rounds=2",
        "evaluation.every=2",
    ]
    result = api.run(api.load(preset).override(small), out=tmp_path / "run")
    found = result.history[-1].evaluation or {}
    assert {"accuracy", "mass_accuracy", "mass_accuracy_chance"} <= found.keys()
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Explanations" in page and ("Sentences, explained" in page) == (preset == "geco")

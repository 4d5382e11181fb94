"""Clients with few layers, adapters on the encoder, sites with recordings of their own, the monitor and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jiwer")
pytest.importorskip("espeakng_loader")
pytest.importorskip("soundfile")

from sent_records import sent_records  # after the packages of the extra
from site_fleet import Sites
from support_speech import CALIBRATED, build, experiment, librispeech

from fedloom import api
from fedloom.core.errors import DataMissing, FedloomError
from fedloom.core.protocols import LocalRule
from fedloom.core.records import MODEL, Arrays, Job, Record
from fedloom.core.seeds import generator
from fedloom.reporting.plugins import contributions
from fedloom.reporting.report import render_report
from fedloom.reporting.run_folder import RunFolder


def one(made: Any, client: int, model: Arrays, rule: LocalRule | None = None) -> Any:
    workload = build(made)
    given = {MODEL: Record({MODEL: model})}
    return workload.train(Job(round=1, client=client), given, workload.shard(client), rule, generator(1, "t", client))


def test_a_weak_client_sends_its_layers_and_no_other_layer_matters_to_it() -> None:
    made = experiment({"depths": [1, 3, 4]}, clients=3, strategy="partial")
    workload = build(made)
    model = {name: np.array(each) for name, each in workload.init(generator(1, "init")).groups[MODEL].items()}
    sent = [one(made, client, model).groups[MODEL] for client in range(3)]
    assert sent[2].keys() == model.keys()
    for arrays, depth in ((sent[0], 1), (sent[1], 3)):
        layers = {int(name.split(".")[3]) for name in arrays if ".layers." in name}
        exits = {int(name.split(".")[1]) for name in arrays if name.startswith("branches.")}
        assert layers == set(range(depth)) and exits == {each for each in (1, 3) if each <= depth}
        assert not any(name.startswith("final") for name in arrays)
        assert "hubert.feature_projection.projection.weight" in arrays
    # what lies above a client's layers changes nothing of what it computes
    moved = {name: each + 1.0 if ".layers.3." in name or ".layers.1." in name else each for name, each in model.items()}
    again = one(made, 0, moved).groups[MODEL]
    assert all(np.array_equal(again[name], each) for name, each in sent[0].items())
    assert any(not np.array_equal(sent[0][name], model[name]) for name in sent[0])


def test_a_client_without_layers_trains_nothing() -> None:
    made = experiment({"depths": [0, 4]}, clients=2, strategy="partial", rounds=1)
    workload = build(made)
    assert workload.shard(0).num_examples == 0 and list(workload.describe().client_sizes) == [0, 12]
    assert api.run(made, keep=False).history[-1].local_trainings == 1


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_norm_of_the_encoder_belongs_to_those_who_use_it(norm: str) -> None:
    made = experiment({"depths": [1, 4], "net": {**experiment().to_dict()["workload"]["net"], "norm": norm}}, clients=2)
    model = {name: np.array(each) for name, each in build(made).init(generator(1, "init")).groups[MODEL].items()}
    assert ("hubert.encoder.layer_norm.weight" in one(made, 0, model).groups[MODEL]) == (norm == "post")


def test_arrays_are_averaged_over_the_clients_that_have_them() -> None:
    settings: dict[str, Any] = {"clients": 2, "strategy": "partial", "rounds": 1, "round": {"weighting": "uniform"}}
    made = experiment({"depths": [1, 4]}, **settings)
    workload = build(made)
    model = {name: np.array(each) for name, each in workload.init(generator(1, "init", 0, 0, 0)).groups[MODEL].items()}
    given = {MODEL: Record({MODEL: model})}
    weak, strong = (
        {
            name: np.array(each)
            for name, each in workload.train(
                Job(round=1, client=client), given, workload.shard(client), None, generator(1, "train", 1, 0, client)
            )
            .groups[MODEL]
            .items()
        }
        for client in (0, 1)
    )
    found = api.run(made, keep=False).arrays
    assert found.keys() == strong.keys() > weak.keys()
    for name, each in found.items():
        expected = (weak[name] + strong[name]) / 2 if name in weak else strong[name]
        assert np.allclose(each, expected, atol=1e-6), name
    with pytest.raises(FedloomError, match="lacks "):
        api.run(made.override(['strategy="fedavg"']), keep=False)


def test_adapters_on_the_encoder_send_factors_branches_and_heads() -> None:
    made = experiment(strategy={"name": "fedlora", "rank": 2, "targets": ["q_proj", "v_proj"]}, clients=2)
    whole = api.run(experiment(clients=2), keep=False)
    result = api.run(made, keep=False)
    assert result.summary.status == "done"
    assert result.history[-1].traffic.params_up < whole.history[-1].traffic.params_up
    evaluation = result.history[-1].evaluation or {}
    assert {"wer", "wer_full_depth", "mean_exit_layer"} <= evaluation.keys()


def test_three_sites_calibrate_on_their_own_recordings_and_send_no_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {f"{side}_folder": f"$DATA/{side}" for side in ("train", "dev", "test")}
    made = experiment({**CALIBRATED, "speech": {"source": "librispeech", **folders}}, clients="nodes")
    sent, sites = sent_records(monkeypatch), Sites(tmp_path)
    try:
        for seed, name in enumerate(("a", "b", "c")):
            librispeech(tmp_path / f"own-{name}", seed)
            sites.start(name, workloads={"hubert_ee": {"data": str(tmp_path / f"own-{name}")}})
        outcome = sites.run(made)
    finally:
        sites.close()
    assert outcome.error is None and [record.local_trainings for record in outcome.history] == [3, 3]
    assert {"wer", "wer_full_depth"} <= (outcome.history[-1].evaluation or {}).keys()
    initial = build(experiment()).init(generator(1, "init")).groups[MODEL]
    assert sent and {name for record in sent for arrays in record.groups.values() for name in arrays} <= initial.keys()
    reported = {name for record in outcome.history for name in (record.evaluation or {})}
    assert not [name for name in reported if "threshold" in name]


def test_the_report_has_curves_transcripts_and_numbers(tmp_path: Path) -> None:
    made = experiment({**CALIBRATED, "measure_time": True}, monitor={"name": "hubert_ee", "points": 4, "examples": 3})
    result = api.run(made, out=tmp_path / "run")
    run = RunFolder.read(tmp_path / "run")
    html = render_report(run)
    for expected in ("Early exits", "Transcripts at each exit", "Word errors by exit", "learned", "CPU time"):
        assert expected in html, expected
    found = contributions(run)
    numbers = {name: value for each in found for name, value in each.numbers.items()}
    evaluation = result.history[-1].evaluation or {}
    assert numbers["wer"] == evaluation["wer"] and numbers["wer_final_head"] == evaluation["wer_full_depth"]
    assert numbers["wer_first_exit"] == evaluation["wer_exit_1"] and numbers["left_share_1"] == evaluation["left_at_1"]
    assert evaluation["cpu_seconds_full_depth"] > 0 and np.isfinite(numbers["saved_share"])
    (table,) = [table for each in found for table in each.tables]
    assert [row[0] for row in table.rows] == ["layer 1", "layer 3", "layer 4", "early exits"]
    info = result.history[-1].monitor
    assert len(info["examples"]) == 3 and set(info["curves"]) == {"entropy", "confidence", "patience", "learned"}
    assert info["wer"] == pytest.approx(evaluation["wer"]) and len(info["examples"][0]["texts"]) == 3


def test_the_monitor_refuses_a_workload_without_exits() -> None:
    made = experiment().to_dict()
    made["workload"] = "image_classification"
    with pytest.raises(FedloomError, match="monitor 'hubert_ee' needs a workload with exit_report"):
        api.run(type(experiment()).parse({**made, "monitor": "hubert_ee"}), keep=False)


@pytest.mark.parametrize("name", ["confidence", "patience", "learned"])
def test_every_criterion_is_evaluated(name: str) -> None:
    made = experiment({"criterion": {"name": name, "threshold": "calibrated"}}, rounds=1)
    evaluation = api.run(made, keep=False).history[-1].evaluation or {}
    assert 1.0 <= evaluation["mean_exit_layer"] <= 4.0
    assert sum(evaluation[f"left_at_{layer}"] for layer in (1, 3, 4)) == pytest.approx(1.0)


def test_a_pretrained_encoder_is_the_start_of_recognition(tmp_path: Path) -> None:
    first = experiment({"stage": "pretrain", "pretraining": {"clusters": 6}}, rounds=1)
    result = api.run(first, out=tmp_path / "first")
    assert set(result.history[-1].evaluation or {}) == {"loss", "accuracy"}
    assert not any(name.startswith(("branches", "final")) for name in result.arrays)
    start = {"start": str(tmp_path / "first")}
    workload = build(experiment(start))
    own = dict(workload.network.named_parameters())
    for name, array in result.arrays.items():
        if not name.startswith("clusters."):
            assert np.array_equal(own[name].detach().numpy(), array), name
    sha = result.summary.model_sha256
    build(experiment({**start, "start_sha256": sha}))
    with pytest.raises(DataMissing, match=r"weights with digest .*, expected 0123. Copy the run"):
        build(experiment({**start, "start_sha256": "0123"}))
    with pytest.raises(DataMissing, match=r"holds another network: 'final.weight' does not fit"):
        build(experiment({**start, "stage": "branches"}))  # a frozen final head must have been trained


@pytest.mark.parametrize("name", ["hubert-ee", "hubert-ee-pretrain"])
def test_the_presets_load(name: str) -> None:
    made = api.load(name)
    assert made.workload.name == "hubert_ee" and made.max_rounds

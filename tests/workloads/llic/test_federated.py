"""Federated compression: averages, personal parts that never leave, clients grouped by kind, joined nodes."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joined_sites import Federation
from PIL import Image
from support_llic import TINY, album, build, experiment, picture

from fedloom import api
from fedloom.core import frames
from fedloom.core.protocols import LocalRule
from fedloom.core.records import MODEL, Job, Record
from fedloom.core.run_files import read_choices
from fedloom.core.seeds import generator
from fedloom.testing.workload import Spy

BRIEF = {"optimizer": "adamw", "learning_rate": 1e-3, "max_steps": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return album(tmp_path_factory.mktemp("album") / "photographs", size=(128, 128))


def train(workload: Any, model: Record, client: int, round_number: int = 1, **more: Any) -> Any:
    rule: LocalRule | None = more.pop("rule", None)
    rng = generator(1, "train", round_number, client)
    job = Job(round=round_number, client=client)
    update = workload.train(job, {MODEL: model}, workload.shard(client), rule, rng, **more)
    copied = {name: np.array(array) for name, array in update.groups[MODEL].items()}
    return replace(update, groups={MODEL: copied})


def test_fedavg_on_everything_is_the_mean_of_the_clients_models(data: dict[str, Any]) -> None:
    made = experiment(data, {"training": BRIEF, "partition": {"scheme": "natural"}}, rounds=1, clients=2)
    result, workload = api.run(made, keep=False), build(made)
    sizes = [workload.shard(client).num_examples for client in range(2)]
    kinds = [{*workload.crops.kinds[workload.shard(client).rows].tolist()} for client in range(2)]
    assert sorted(map(sorted, kinds)) == [[0], [1]], "a client does not have one kind of image"
    model = Record({MODEL: workload.init(generator(made.seed, "init", 0, 0, 0)).groups[MODEL]})
    trained = []
    for client in range(2):
        rng = generator(made.seed, "train", 1, 0, client)
        update = workload.train(Job(round=1, client=client), {MODEL: model}, workload.shard(client), None, rng)
        trained.append({name: np.array(array, np.float64) for name, array in update.groups[MODEL].items()})
    for name, array in result.arrays.items():
        mean = (sizes[0] * trained[0][name] + sizes[1] * trained[1][name]) / sum(sizes)
        assert np.allclose(array, mean, atol=1e-6), name


def test_a_personal_entropy_model_is_state_and_never_part_of_what_is_sent(data: dict[str, Any]) -> None:
    made = experiment(data, {"personal": "entropy", "training": BRIEF}, clients=2)
    workload = build(made)
    model = workload.init(generator(1, "init"))
    assert model.groups[MODEL] and not any(name.startswith("entropy.") for name in model.groups[MODEL])
    spy = Spy()
    first = train(workload, model, 0, rule=spy)
    sent = first.groups[MODEL]
    assert sent.keys() == model.groups[MODEL].keys()
    assert {name for _, name in spy.trained} <= sent.keys(), "a rule sees personal arrays"
    own = first.state.groups["personal"]
    assert own and all(name.startswith("entropy.") for name in own)
    other = train(workload, model, 1)
    names = [name for name in own if not np.array_equal(own[name], other.state.groups["personal"][name])]
    assert names, "two clients have equal entropy models"
    again = train(workload, Record({MODEL: sent}), 0, 2, state=first.state)
    fresh = train(workload, Record({MODEL: sent}), 0, 2)
    assert any(not np.array_equal(again.groups[MODEL][name], fresh.groups[MODEL][name]) for name in sent), (
        "the client's own entropy model is not what it trains with"
    )


def test_clients_alone_send_the_model_back_as_it_came(data: dict[str, Any]) -> None:
    workload = build(experiment(data, {"personal": "everything", "training": BRIEF}, clients=2))
    model = workload.init(generator(1, "init"))
    first = train(workload, model, 0)
    assert all(np.array_equal(first.groups[MODEL][name], array) for name, array in model.groups[MODEL].items())
    assert any(not np.array_equal(first.state.groups["personal"][n], a) for n, a in model.groups[MODEL].items())
    other = Record({MODEL: {name: array + 1 for name, array in model.groups[MODEL].items()}})
    again, same = (train(workload, each, 0, 2, state=first.state) for each in (other, model))
    mine, theirs = again.state.groups["personal"], same.state.groups["personal"]
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine), "the global model reached a client alone"


@pytest.mark.parametrize("personal", ["nothing", "entropy", "everything"])
def test_clients_measure_themselves_on_crops_that_they_hold_back(
    tmp_path: Path, data: dict[str, Any], personal: str
) -> None:
    settings = {"personal": personal, "own_share": 0.25, "training": BRIEF}
    made = experiment(data, settings, clients=2, rounds=2)
    result, workload = api.run(made, out=tmp_path / "run"), build(made)
    evaluation = result.history[-1].evaluation or {}
    assert ("bits_per_pixel" in evaluation, "psnr" in evaluation) == {
        "nothing": (True, True), "entropy": (False, True), "everything": (False, False),
    }[personal]  # fmt: skip
    kept, held = workload.held_back(workload.shard(0).rows, 0)
    assert len(held) == 2 and not {*kept.tolist()} & {*held.tolist()}
    for choice in read_choices(tmp_path / "run"):
        for line in choice.trained:
            total, weight = line.metrics["own_bits_per_pixel"]
            assert weight == 2 and 0 < total / weight < 40 and np.isfinite(line.metrics["own_psnr"][0])


def test_nothing_of_a_personal_model_is_in_the_runs_folder_of_a_server(tmp_path: Path, data: dict[str, Any]) -> None:
    made = experiment(
        data, {"personal": "entropy", "training": BRIEF}, clients=2, round={"state_home": "node"},
        checkpoint={"every": 1}, evaluation={"every": 0}, runtime={"name": "inline"},
    )  # fmt: skip
    result = api.run(made, out=tmp_path / "run")
    assert not any(name.startswith("entropy.") for name in result.arrays)
    for path in (tmp_path / "run").rglob("*.safetensors"):
        record = frames.decode(path.read_bytes())
        assert not any("entropy." in name for _, name, _ in record.items()), path


@pytest.mark.slow
@pytest.mark.parametrize("personal", ["nothing", "entropy"])
def test_three_joined_nodes_train_on_photographs_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, personal: str
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    with contextlib.closing(Federation(tmp_path)) as federation:
        for number, name in enumerate(("east", "north", "west")):
            folder = federation.enrol(name, f"--allow=llic={tmp_path / name / 'data'}").folder / "data"
            for part, count in (("train", 2), ("test", 1)):
                (folder / part).mkdir()
                for each in range(count):
                    pixels = picture(128, 170, seed=10 * number + each + (5 if part == "test" else 0))
                    Image.fromarray(pixels).save(folder / part / f"{each}.png")
        federation.start(["east", "north", "west"])
        run_id = federation.submit(_sites(personal))
        federation.result(run_id)
        records = federation.rounds(run_id)
        assert [sorted(record["cohort"]) for record in records] == [[0, 1, 2]] * 2
        assert not any(record["failures"] for record in records)
        evaluation = records[-1]["evaluation"]
        assert evaluation["psnr"] > 0 and ("bits_per_pixel" in evaluation) == (personal == "nothing")
        stored = [*federation.run_folder(run_id).rglob("*.safetensors")]
        held = [path for path in stored if b"entropy.prior.quantiles" in path.read_bytes()]
        assert bool(held) == (personal == "nothing"), "entropy models have left their nodes"


def _sites(personal: str) -> str:
    lines = "\n".join(f"{key} = {_toml(value)}" for key, value in TINY.items())
    return (
        'name = "llic"\nrounds = 2\nclients = "nodes"\n[round]\nmin_sites = 3\n[strategy]\nname = "fedavg"\n'
        f'[workload]\nname = "llic"\npersonal = "{personal}"\n{lines}\n'
        f"training = {_toml(BRIEF)}\n"
        '[workload.data]\nsource = "folders"\ntrain_folder = "$DATA/train"\ntest_folder = "$DATA/test"\n'
    )


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)

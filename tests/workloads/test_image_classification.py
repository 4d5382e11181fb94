import hashlib
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_rounds import build, run_rounds, train

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.records import MODEL, Record, add_metrics, arrays_sha256, metric_values
from fedloom.core.seeds import generator

MODELS: list[dict[str, Any]] = [
    {"name": "mlp", "hidden": [12, 7]},
    {"name": "cnn"},
    {"name": "resnet8", "norm": "group"},
    {"name": "resnet8", "norm": "batch"},
]

HERE = Path(__file__).parent


def experiment(**workload: Any) -> Experiment:
    workload = {"partition": {"scheme": "iid"}, "training": {"max_steps": 3}, **workload}
    base = {"rounds": 2, "clients": 20, "cohort": 4, "strategy": "fedavg"}
    return Experiment.parse({**base, "workload": {"name": "image_classification", **workload}})


def initial(workload: Any) -> Record:
    return workload.init(generator(1, "init"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_client_alone_has_the_bits_it_has_after_others(model: dict[str, Any]) -> None:
    first, second = build(experiment(model=model)), build(experiment(model=model))
    record = initial(first)
    train(first, record, 3)
    first.evaluate({MODEL: record}, first.held_out(0, 1))
    after_others, alone = train(first, record, 5), train(second, record, 5)
    assert arrays_sha256(after_others.groups[MODEL]) == arrays_sha256(alone.groups[MODEL])
    assert after_others.metrics == alone.metrics
    assert arrays_sha256(alone.groups[MODEL]) != arrays_sha256(record.groups[MODEL])


def test_another_process_computes_the_same_bits() -> None:
    code = (
        f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent / 'support')]}\n"
        "import torch; torch.rand(5); torch.set_num_threads(2)\n"
        "from test_image_classification import experiment, initial, build, train, arrays_sha256\n"
        "w = build(experiment(model={'name': 'cnn'})); print(arrays_sha256(train(w, initial(w), 7).groups['model']))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    ).stdout.strip()
    workload = build(experiment(model={"name": "cnn"}))
    assert there == arrays_sha256(train(workload, initial(workload), 7).groups[MODEL])


def test_init_follows_its_generator_alone() -> None:
    workload = build(experiment(model={"name": "mlp"}))
    record = initial(workload)
    digest = arrays_sha256(record.groups[MODEL])
    train(workload, record, 0)
    assert arrays_sha256(initial(workload).groups[MODEL]) == digest == arrays_sha256(record.groups[MODEL])
    assert arrays_sha256(workload.init(generator(2, "init")).groups[MODEL]) != digest


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ({"name": "mlp", "hidden": [64]}, 64 * 64 + 64 + 640 + 10),
        ({"name": "mlp", "hidden": []}, 640 + 10),
        ({"name": "cnn"}, (25 * 16 + 16) + (25 * 16 * 32 + 32) + (128 * 256 + 256) + 2570),
        # ResNet: first 3x3, stages of 3x3 convolutions, two norm arrays per width, dense layer
        ({"name": "resnet8"}, 144 + 2 * 2304 + 4608 + 9216 + 18432 + 36864 + 2 * (16 * 3 + 32 * 2 + 64 * 2) + 650),
        (
            {"name": "resnet8", "norm": "batch"},  # running mean and variance travel beside scale and shift
            144 + 2 * 2304 + 4608 + 9216 + 18432 + 36864 + 4 * (16 * 3 + 32 * 2 + 64 * 2) + 650,
        ),
    ],
    ids=str,
)
def test_models_have_the_size_their_description_gives(model: dict[str, Any], count: int) -> None:
    record = initial(build(experiment(model=model)))
    assert record.num_elements == count
    assert {array.dtype.name for array in record.groups[MODEL].values()} == {"float32"}


def test_the_cnn_on_fashion_mnists_shape_is_the_described_one() -> None:
    from fedloom.workloads._vision.models import build_model
    from fedloom.workloads._vision.settings import ModelSettings

    cnn = build_model(ModelSettings(name="cnn"), (1, 28, 28), 10)
    assert sum(p.numel() for p in cnn.parameters()) == 147_146
    resnet = build_model(ModelSettings(name="resnet20", norm="batch"), (3, 32, 32), 10)
    assert sum(p.numel() for p in resnet.parameters()) == 269_722  # He et al. 2016, table 6: 0.27 M
    transformer = build_model(ModelSettings(name="vit"), (1, 28, 28), 10)
    block = 4 * 128 + 4 * (128 * 128 + 128) + 2 * 128 * 512 + 512 + 128  # two norms, attention, perceptron
    # 7 x 7 patches, 16 positions, two blocks, norm and head: the count that pages name
    want = 50 * 128 + 16 * 128 + 2 * block + 256 + 129 * 10
    assert sum(p.numel() for p in transformer.parameters()) == want == 406_538
    plain = build_model(ModelSettings(name="resnet18"), (3, 32, 32), 10)
    widths = (64, 64, 128, 256, 512)
    stages = sum(9 * w * b + 27 * b * b + 8 * b + (w * b + 2 * b if w != b else 0) for w, b in pairwise(widths))
    assert sum(p.numel() for p in plain.parameters()) == 27 * 64 + 128 + stages + 513 * 10 == 11_173_962
    wide = build_model(ModelSettings(name="wrn34_10"), (3, 32, 32), 10)
    assert sum(p.numel() for p in wide.parameters()) == 46_160_474  # the published WRN-34-10's count


@pytest.mark.parametrize("name", ["strided", "resnet18", "preact_resnet8", "preact_resnet18", "wrn16_2"])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_every_network_takes_any_normalisation_width_and_image_size(name: Any, norm: Any) -> None:
    import torch

    from fedloom.workloads._vision.models import build_model
    from fedloom.workloads._vision.settings import ModelSettings

    for shape in ((1, 8, 8), (3, 28, 28)):
        model = build_model(ModelSettings(name=name, norm=norm, width=0.125), shape, 7)
        assert model(torch.zeros(3, *shape)).shape == (3, 7)
        assert any("running_var" in key for key in model.state_dict()) == (norm == "batch")


def test_evaluation_is_the_mean_over_all_test_images_however_it_is_cut() -> None:
    workload = build(experiment(model={"name": "mlp"}))
    record = initial(workload)
    whole = workload.evaluate({MODEL: record}, workload.held_out(0, 1))
    merged: dict[str, Any] = {}
    for part in range(4):
        merged = dict(add_metrics(merged, workload.evaluate({MODEL: record}, workload.held_out(part, 4))))
    assert merged["accuracy"] == whole["accuracy"] and merged["loss"].weight == 359
    assert merged["loss"].sum == pytest.approx(whole["loss"].sum, rel=1e-6)
    arrays = record.groups[MODEL]
    x = workload._images.x_test.reshape(359, -1)
    hidden = np.maximum(x @ arrays["1.weight"].T + arrays["1.bias"], 0)
    logits = hidden @ arrays["3.weight"].T + arrays["3.bias"]
    logits -= logits.max(1, keepdims=True)
    chosen = logits[np.arange(359), workload._images.y_test]
    assert whole["loss"].value == pytest.approx(float((np.log(np.exp(logits).sum(1)) - chosen).mean()), rel=1e-5)
    assert whole["accuracy"].sum == (logits.argmax(1) == workload._images.y_test).sum()


def test_more_parts_than_test_images_leaves_empty_parts() -> None:
    workload = build(experiment(model={"name": "mlp"}))
    empty = workload.evaluate({MODEL: initial(workload)}, workload.held_out(0, 1000))
    assert empty == {}


def test_class_errors_are_what_is_held_minus_what_is_answered() -> None:
    workload = build(experiment(model={"name": "mlp", "hidden": []}))
    model, shard = initial(workload), workload.shard(2)
    weight, bias = sorted(model.groups[MODEL].values(), key=np.ndim, reverse=True)  # softmax regression
    images, labels = workload._images.x_train[shard.rows], workload._images.y_train[shard.rows]
    scores = np.exp(images.reshape(len(images), -1) @ weight.T.astype(np.float64) + bias)
    want = (np.eye(10)[labels] - scores / scores.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(workload.class_errors(model.groups[MODEL], shard, generator(1)), want, atol=1e-6)


def test_a_clients_own_data_can_be_evaluated() -> None:
    workload = build(experiment(model={"name": "mlp"}))
    shard = workload.shard(2)
    assert workload.evaluate({MODEL: initial(workload)}, shard)["loss"].weight == shard.num_examples > 0


def test_the_description_adds_up_and_is_json() -> None:
    info = build(experiment(partition={"scheme": "dirichlet", "alpha": 0.5})).describe()
    assert sum(info.client_sizes) == 1438 == info.data["num_train"]
    assert [sum(row) for row in info.label_counts] == list(info.client_sizes)
    json.dumps([info.data, info.client_sizes, info.label_counts, info.label_names])


def test_what_is_written_wrongly_is_named() -> None:
    with pytest.raises(ConfigError, match=r"workload\.training\.learning_rate"):
        experiment(training={"learning_rate": -1})
    with pytest.raises(ConfigError, match=r"workload\.model\.nme"):
        experiment(model={"nme": "cnn"})
    with pytest.raises(ConfigError, match=r"digits"):
        experiment(data={"source": "digit"})


def test_settings_need_no_torch() -> None:
    code = (
        "import sys, fedloom.workloads.image_classification.config, fedloom.workloads.text_classification.config\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'flwr_datasets', 'sklearn'} & sys.modules.keys()))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout == "[]\n"
    )


def test_a_federation_learns_the_digits() -> None:
    training = {"learning_rate": 0.05, "momentum": 0.9, "batch_size": 16, "epochs": 5}
    metrics = run_rounds(experiment(model={"name": "mlp"}, training=training))
    assert metrics["accuracy"] > 0.5  # two rounds of four clients; a guess is right once in ten


def test_a_preset_of_shapes_is_hashed_by_its_bytes() -> None:
    workload = build(experiment(model={"name": "mlp", "hidden": []}))
    record = initial(workload)
    digest = hashlib.sha256()
    for name in ("1.bias", "1.weight"):
        array = record.groups[MODEL][name]
        digest.update(f"{name}\0float32\0{','.join(map(str, array.shape))}\0".encode() + array.tobytes())
    assert arrays_sha256(record.groups[MODEL]) == digest.hexdigest()
    assert set(metric_values(workload.evaluate({MODEL: record}, workload.held_out(0, 1)))) == {"loss", "accuracy"}


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ({"data": {"source": "idx", "foldr": "x"}}, r"workload\.data\.foldr.*did you mean 'workload\.data\.folder'"),
        ({"data": {"source": "images"}}, r"workload\.data\.folder: required"),
        ({"data": {"source": "zip"}}, r"workload\.data\.source: expected one of 'digits', .*got 'zip'"),
        ({"data": {}}, r"workload\.data\.source: required"),
        (
            {"partition": {"scheme": "shards", "shards": 2}},
            r"workload\.partition\.shards.*'workload\.partition\.shards_",
        ),
    ],
)
def test_settings_that_depend_on_a_kind_are_named_as_they_were_written(workload: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        experiment(**workload)

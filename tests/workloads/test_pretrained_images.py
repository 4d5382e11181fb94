"""The vision transformer, pretrained weights, and images of another size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_rounds import build

from fedloom import api
from fedloom.core import frames
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.records import MODEL, Record, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.reporting.run_folder import RunFolder
from fedloom.workloads._data.images import load_images
from fedloom.workloads._data.resizing import resized, with_channels
from fedloom.workloads._data.settings import Digits
from fedloom.workloads._vision.vit import Attention

VIT = {"name": "vit", "vit": {"patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp": 32}}


def experiment(strategy: Any = "fedavg", *, model: dict[str, Any] | None = None, **workload: Any) -> Experiment:
    workload = {"training": {"max_steps": 3}, "model": model or VIT, **workload}
    base = {"rounds": 2, "clients": 20, "cohort": 4, "strategy": strategy, "runtime": {"name": "inline"}}
    return Experiment.parse({**base, "workload": {"name": "image_classification", **workload}})


def initial(made: Experiment, seed: int = 1) -> Record:
    return build(made).init(generator(seed, "init"))  # type: ignore[no-any-return]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a finished run of the small transformer on digits."""
    api.run(experiment(), out=tmp_path / "first")
    return tmp_path / "first"


def test_attention_is_softmax_of_scaled_products() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2)
    x = torch.randn(1, 4, 8)
    layers = {
        name: (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for name, layer in attention.named_children()
        if isinstance(layer, torch.nn.Linear)
    }
    q, k, v = (x[0].numpy() @ layers[n][0].T + layers[n][1] for n in ("query", "key", "value"))
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = np.exp(q[:, part] @ k[:, part].T / 2.0)
        heads.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
    expected = np.concatenate(heads, 1) @ layers["out"][0].T + layers["out"][1]
    assert np.allclose(attention(x)[0].detach().numpy(), expected, atol=1e-5)


def test_its_query_and_value_can_be_adapted_and_its_head_travels_whole() -> None:
    info = initial(experiment()).info
    assert info["head"] == ["head.weight", "head.bias"]
    assert {name for name in info["adaptable"] if name.endswith(("query", "value"))} == {
        f"blocks.{block}.attention.{name}" for block in (0, 1) for name in ("query", "value")
    }
    patches = info["adaptable"]["patches"]
    assert (patches["weight"], patches["out"], patches["in"]) == ("patches.weight", 16, 16)


def test_low_rank_training_runs_on_it(tmp_path: Path) -> None:
    strategy = {"name": "sa_fedlora", "initiating_rounds": 1, "rank_max": 4, "rank_min": 2}
    api.run(experiment(strategy), out=tmp_path / "run")
    assert [record.info["stage"] for record in RunFolder.read(tmp_path / "run").rounds] == ["initiating", "annealing"]


def test_patches_must_fit() -> None:
    with pytest.raises(ConfigError, match=r"patch: images of 8 x 8 pixels cannot be cut into patches of 3"):
        build(experiment(model={"name": "vit", "vit": {"patch": 3}}))
    with pytest.raises(ConfigError, match="5 heads do not divide a width of 128"):
        experiment(model={"name": "vit", "vit": {"heads": 5}})


def test_a_run_is_another_runs_beginning(trained: Path) -> None:
    final = frames.decode((trained / "model" / "model.safetensors").read_bytes()).groups[MODEL]
    model = {**VIT, "pretrained": str(trained)}
    assert arrays_sha256(initial(experiment(model=model)).groups[MODEL]) == arrays_sha256(final)
    file = {**VIT, "pretrained": str(trained / "model" / "model.safetensors")}
    assert arrays_sha256(initial(experiment(model=file)).groups[MODEL]) == arrays_sha256(final)
    reported = build(experiment(model=model)).describe().data["pretrained"]
    assert reported["name"] == str(trained) and len(reported["weights_sha256"]["model.safetensors"]) == 64


def test_a_fresh_head_is_drawn_by_seed_and_all_else_is_kept(trained: Path) -> None:
    model = {**VIT, "pretrained": str(trained), "fresh_head": True}
    first, second = (initial(experiment(model=model), seed).groups[MODEL] for seed in (1, 2))
    random = initial(experiment(), 1).groups[MODEL]
    final = frames.decode((trained / "model" / "model.safetensors").read_bytes()).groups[MODEL]
    assert np.array_equal(first["head.weight"], random["head.weight"])
    assert not np.array_equal(first["head.weight"], second["head.weight"])
    assert all(np.array_equal(first[name], final[name]) for name in final if not name.startswith("head."))


def test_a_head_for_other_classes_is_made_anew(trained: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x_train=rng.random((60, 8, 8), np.float32), y_train=np.arange(60) % 3)
    data = {"source": "npz", "file": str(tmp_path / "d.npz")}
    made = experiment(model={**VIT, "pretrained": str(trained)}, data=data, partition={"scheme": "iid"})
    found = initial(made).groups[MODEL]
    final = frames.decode((trained / "model" / "model.safetensors").read_bytes()).groups[MODEL]
    assert found["head.weight"].shape == (3, 16) and np.array_equal(found["position"], final["position"])


def test_weights_of_another_network_are_named(trained: Path) -> None:
    other = {**VIT, "vit": {**VIT["vit"], "depth": 3}, "pretrained": str(trained)}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"missing: blocks\.2\.attention\.key\.bias, .* and 12 more"):
        initial(experiment(model=other))
    shallow = {**VIT, "vit": {**VIT["vit"], "depth": 1}, "pretrained": str(trained)}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"left over: blocks\.1\.attention"):
        initial(experiment(model=shallow))
    with pytest.raises(ConfigError, match=r"of another shape: .*position is \(1, 4, 16\), not \(1, 16, 16\)"):
        initial(experiment(model={**VIT, "pretrained": str(trained)}, resize=16))


def test_missing_weights_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="fedloom run fashion-vit-pretrain"):
        build(experiment(model={**VIT, "pretrained": str(tmp_path)}))
    (tmp_path / "model.safetensors").write_bytes(b"no frame")
    with pytest.raises(DataMissing, match=r"is not a \.safetensors file"):
        initial(experiment(model={**VIT, "pretrained": str(tmp_path)}))
    with pytest.raises(ConfigError, match=r"fresh_head: needs workload\.model\.pretrained"):
        experiment(model={**VIT, "fresh_head": True})


def test_resizing_is_linear_between_pixel_centres() -> None:
    ramp = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4).repeat(4, 2)
    assert np.allclose(resized(ramp, 8)[0, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    # Halving: each new pixel lies between two old ones and covers their neighbours: weights 1, 3, 3, 1 of 8.
    assert np.allclose(resized(ramp, 2)[0, 0, 0], [(0 * 3 + 1 * 3 + 2 * 1) / 7, (1 * 1 + 2 * 3 + 3 * 3) / 7])
    flat = np.full((2, 3, 5, 7), 0.3, np.float32)
    assert np.allclose(resized(flat, 6), 0.3) and resized(flat, 6).shape == (2, 3, 6, 6)


def test_grey_and_colour() -> None:
    colour = np.stack([np.full((2, 2), value, np.float32) for value in (1.0, 0.5, 0.0)])[None]
    assert np.allclose(with_channels(colour, 1), 0.299 + 0.2935)
    assert with_channels(colour[:, :1], 3).shape == (1, 3, 2, 2)
    with pytest.raises(DataMissing, match="2 channels"):
        with_channels(colour[:, :2], 1)


def test_data_is_prepared_at_the_size_asked_for() -> None:
    data, small = load_images(Digits(), 28, 3), load_images(Digits())
    assert data.shape == (3, 28, 28) and small.shape == (1, 8, 8) and data.sha256 != small.sha256
    assert abs(float(data.x_train.mean())) < 1e-3 and abs(float(data.x_train.std()) - 1) < 1e-3
    assert np.array_equal(data.y_train, small.y_train)


def test_a_transformers_model_is_adapted(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_channels=3, num_labels=4,
    )  # fmt: skip
    saved = ViTForImageClassification(config)
    saved.save_pretrained(tmp_path / "vit")
    model = {"pretrained": str(tmp_path / "vit"), "transformers": True}
    record = initial(experiment(model=model, channels=3))
    head = record.info["head"]
    assert head == ["network.classifier.weight", "network.classifier.bias"]
    assert record.groups[MODEL][head[0]].shape == (10, 16)
    kept = {f"network.{name}": tensor.numpy() for name, tensor in saved.state_dict().items()}
    assert all(np.array_equal(array, kept[name]) for name, array in record.groups[MODEL].items() if name not in head)
    strategy = {"name": "fedlora", "rank": 2, "targets": ["q_proj", "v_proj"]}
    api.run(experiment(strategy, model=model, channels=3), out=tmp_path / "run")
    assert RunFolder.read(tmp_path / "run").rounds[-1].info["params_up"] == 170 + 2 * 2 * (16 + 16)
    with pytest.raises(ConfigError, match=r"takes 3 channels, the images have 1; set workload\.channels = 3"):
        build(experiment(model=model))
    with pytest.raises(ConfigError, match=r"set workload\.resize = 8"):
        build(experiment(model=model, channels=3, resize=16))
    with pytest.raises(DataMissing, match=r"has no readable config\.json"):
        build(experiment(model={**model, "pretrained": str(tmp_path)}))

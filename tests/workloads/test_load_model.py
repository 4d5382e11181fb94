"""The final model of a run in plain PyTorch gives the metrics that the run reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support_rounds import build
from torch import Tensor, nn

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, DataMissing
from fedloom.torch import load_model

EXAMPLES = Path(__file__).parents[2] / "examples"
MLP = {"name": "mlp", "hidden": [8]}
CASES: dict[str, dict[str, Any]] = {
    "image_classification": {"model": {"name": "resnet8", "norm": "batch"}, "training": {"max_steps": 2}},
    "spiking_classification": {"model": MLP, "time_steps": 4},
    "mano": {"data": {"source": "digits"}, "model": MLP, "second": False, "train_examples": 400},
    "meat": {
        "data": {"source": "digits"},
        "model": MLP,
        "attack": {"steps": 1},
        "measure": {"examples": 2, "steps": 1},
    },
    str(EXAMPLES / "tumours.py"): {"training": {"learning_rate": 0.1}},
}


def experiment(name: str, **workload: Any) -> Experiment:
    values = {"rounds": 1, "clients": 4, "strategy": "fedavg", "workload": {"name": name, **workload}}
    return Experiment.parse({**values, "runtime": {"name": "inline"}})


@pytest.mark.parametrize("name", CASES, ids=lambda name: Path(name).stem)
def test_its_accuracy_is_the_runs(name: str, tmp_path: Path) -> None:
    made = experiment(name, **CASES[name])
    result = api.run(made, out=tmp_path / "run")
    model = load_model(tmp_path / "run")
    assert not model.training
    inputs, targets = inputs_and_targets(made)
    with torch.no_grad():
        outputs = model(*inputs)
    if name == "spiking_classification":
        outputs = outputs.sum(0)  # spikes over time
    accuracy = float((outputs.argmax(1) == targets).double().mean())
    assert accuracy == pytest.approx(result.summary.metrics["accuracy"], abs=1e-9)


def inputs_and_targets(made: Experiment) -> tuple[tuple[Tensor, ...], Tensor]:
    """The held-out examples, as the network takes them."""
    workload = build(made)
    inputs, targets = workload.data.test.batch(torch.arange(len(workload.data.test)))
    if made.workload.name == "spiking_classification":
        inputs = (workload._encoder(inputs[0], None),)
    return inputs, targets


def test_a_model_of_ones_own_needs_no_fedloom(tmp_path: Path) -> None:
    result = api.run(experiment(str(EXAMPLES / "tumours.py")), out=tmp_path / "run")
    net = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))
    net.load_state_dict(load_file(tmp_path / "run" / "model" / "model.safetensors"))
    (x,), y = inputs_and_targets(experiment(str(EXAMPLES / "tumours.py")))
    loss = nn.functional.cross_entropy(net(x), y)
    assert loss.item() == pytest.approx(result.summary.metrics["loss"], rel=1e-5)


def test_what_is_no_finished_run_or_no_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"expected the folder of a finished run, found no model/model"):
        load_model(tmp_path)
    api.run(experiment("fedloom.testing.linear"), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"expected one whose model is a PyTorch module \(a TorchWorkload\), found"):
        load_model(tmp_path / "run")

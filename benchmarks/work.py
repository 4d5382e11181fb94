"""The benchmarks' workloads, and what every runner of one shares: data, shards, cohorts, batches, model.

A runner that follows this file does the same arithmetic as fedloom, number for number: same initial weights, same
cohorts, same minibatches in the same order. Only the order of sums differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data import data_folder
from fedloom.core import frames
from fedloom.core.config import Experiment
from fedloom.core.protocols import Roster
from fedloom.core.records import MODEL, Arrays, Record
from fedloom.core.seeds import generator
from fedloom.selection.uniform.selection import Uniform
from fedloom.workloads._data.images import load_images
from fedloom.workloads._data.partition import partition
from fedloom.workloads._vision.models import build_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One workload, as settings of an experiment."""

    name: str
    title: str
    clients: int
    cohort: int
    rounds: int
    """Rounds of a full benchmark; the first is warm-up."""
    quick_rounds: int
    model: Mapping[str, Any]
    partition: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)

    def experiment(self, rounds: int, **settings: Any) -> Experiment:
        """The experiment: no evaluation, one checkpoint at the end, so that only training is timed."""
        return Experiment.parse(
            {
                "name": f"bench-{self.name}",
                "rounds": rounds,
                "clients": self.clients,
                "cohort": self.cohort,
                "strategy": "fedavg",
                "workload": {
                    "name": "image_classification",
                    "data": {"source": "idx", "folder": str(data_folder())},
                    "partition": dict(self.partition),
                    "model": dict(self.model),
                    "training": {"device": "cpu", "batch_size": 32, **self.training},
                },
                "evaluation": {"every": 0},
                "checkpoint": {"every": rounds},
                **settings,
            }
        )


WORKS: Mapping[str, Work] = {
    "A": Work(
        name="A",
        title="100 clients, Dirichlet(0.5), 10 per round, CNN 147 k, one epoch",
        clients=100,
        cohort=10,
        rounds=6,
        quick_rounds=3,
        model={"name": "cnn"},
        partition={"scheme": "dirichlet", "alpha": 0.5},
        training={"learning_rate": 0.05},
    ),
    "B": Work(
        name="B",
        title="1000 clients of 60, 50 per round, MLP 51 k, two steps",
        clients=1000,
        cohort=50,
        rounds=40,
        quick_rounds=20,
        model={"name": "mlp", "hidden": [64]},
        partition={"scheme": "iid"},
        training={"learning_rate": 0.05},
    ),
    "C": Work(
        name="C",
        title="20 clients, 4 per round, MLP 22 M (88 MB), two steps",
        clients=20,
        cohort=4,
        rounds=7,
        quick_rounds=4,
        model={"name": "mlp", "hidden": [4096, 4096, 512]},
        partition={"scheme": "iid"},
        training={"learning_rate": 0.02, "max_steps": 2},
    ),
}


class Task:
    """A workload made concrete: tensors, shards, and the randomness of every place in the experiment."""

    def __init__(self, work: Work) -> None:
        experiment = work.experiment(1)
        config: Any = experiment.workload
        self.work, self._seed, self._training = work, experiment.seed, config.training
        self._data = load_images(config.data)
        self.x, self.y = (torch.from_numpy(np.asarray(a)) for a in (self._data.x_train, self._data.y_train))
        self._model = config.model
        self._shards = partition(
            config.partition,
            np.asarray(self._data.y_train),
            self._data.groups,
            clients=work.clients,
            seed=experiment.seed,
            data_sha256=self._data.sha256,
        )

    def initial_model(self) -> nn.Module:
        """The network with the weights every run of the experiment starts from."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator(self._seed, "init", 0, 0, 0).integers(2**63)))
            return build_model(self._model, self._data.shape, self._data.num_labels)

    def cohort(self, round: int) -> tuple[int, ...]:
        """The clients of a round (from 1), in order."""
        roster, uniform = Roster(self.work.clients), Uniform()
        return uniform.choose(uniform.init(roster), roster, self.work.cohort, generator(self._seed, "selection", round))

    def size(self, client: int) -> int:
        """Training examples of a client."""
        return len(self._shards.client(client))

    def batches(self, round: int, client: int) -> Sequence[Tensor]:
        """Row numbers of each minibatch of a client's local training."""
        rng = generator(self._seed, "train", round, 0, client)
        rng.integers(2**63)  # the seed for torch's own generator, which these networks do not use
        rows = self._shards.client(client)
        batches: list[Tensor] = []
        for _ in range(self._training.epochs):
            batches.extend(torch.from_numpy(rows[rng.permutation(len(rows))]).split(self._training.batch_size))
        return batches[: self._training.max_steps]

    def train(self, model: nn.Module, round: int, client: int) -> int:
        """Plain PyTorch: what anybody would write. `model` holds the global weights; returns the number of examples."""
        optimizer = torch.optim.SGD(model.parameters(), lr=self._training.learning_rate)
        model.train()
        for rows in self.batches(round, client):
            optimizer.zero_grad()
            F.cross_entropy(model(self.x[rows]), self.y[rows]).backward()
            optimizer.step()
        return self.size(client)

    def accuracy(self, model: nn.Module) -> float:
        """Share of the test set that the model gets right."""
        x, y = (torch.from_numpy(np.asarray(array)) for array in (self._data.x_test, self._data.y_test))
        model.eval()
        with torch.inference_mode():
            logits = torch.cat([model(x[start : start + 1000]) for start in range(0, len(x), 1000)])
        return float((logits.argmax(1) == y).float().mean())


def save_result(out: Path, result: Mapping[str, Any], arrays: Arrays) -> None:
    """Write what a runner measured, and the model it ended with."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.safetensors").write_bytes(frames.encode(Record({MODEL: arrays})))
    (out / "result.json").write_text(json.dumps(result), encoding="utf-8")


def state_arrays(model: nn.Module) -> Arrays:
    """A model's arrays by name."""
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}

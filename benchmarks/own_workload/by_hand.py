"""The task written by hand, with no more than the interface of a workload asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.own_workload.task import BATCH, RATE, SIZE, Network, examples, network
from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.protocols import Inputs, LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, Job, Mean, Metrics, Record, Update


class Config(PluginSettings):
    """Which network."""

    network: Network = "mlp"


@dataclass(frozen=True)
class Rows:
    """The rows of a client."""

    client: int
    num_examples: int = SIZE


class ByHand:
    """A loop around one network."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(1)
        self._network = network(config.network)
        self._x, self._y = examples()

    def describe(self) -> WorkloadInfo:
        """Return that the data is noise."""
        return WorkloadInfo(data={"name": "noise", "kind": "synthetic", "licence": None, "sha256": None})

    def init(self, rng: np.random.Generator) -> Record:
        """Return the network's arrays, drawn as the base class draws them."""
        with torch.random.fork_rng():
            torch.manual_seed(int(rng.integers(2**63)))
            for layer in self._network.modules():
                if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                    layer.reset_parameters()
        return Record({MODEL: {name: each.numpy().copy() for name, each in self._network.state_dict().items()}})

    def shard(self, client: int) -> Rows:
        """Return a client's rows."""
        return Rows(client)

    def held_out(self, part: int, parts: int) -> Rows | None:
        """Return none: only training is timed."""
        return None

    def train(self, job: Job, inputs: Inputs, shard: Rows, rule: LocalRule | None, rng: np.random.Generator) -> Update:
        """Train one epoch by plain stochastic gradient descent."""
        rng.integers(2**63)  # the base class draws a seed for dropout first
        self._network.load_state_dict(
            {name: torch.from_numpy(np.array(array)) for name, array in inputs[MODEL].groups[MODEL].items()}
        )
        optimizer = torch.optim.SGD(self._network.parameters(), lr=RATE)
        order = torch.from_numpy(shard.client * SIZE + rng.permutation(SIZE))
        total = 0.0
        self._network.train()
        for rows in torch.split(order, BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(self._network(self._x[rows]), self._y[rows])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        arrays = {name: each.detach().numpy() for name, each in self._network.state_dict().items()}
        return Update(num_examples=SIZE, groups={MODEL: arrays}, metrics={"loss": Mean(total, float(SIZE))})

    def evaluate(self, inputs: Inputs, shard: Rows) -> Metrics:
        """Return nothing: there is no held-out data."""
        return {}


def build_workload(config: Config, experiment: Experiment) -> ByHand:
    """Return the workload."""
    return ByHand(config)

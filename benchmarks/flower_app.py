"""The same work as apps of Flower's message API: the client's number travels in the message, so any node plays it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import nn

from benchmarks.meter import Clock
from benchmarks.work import WORKS, Task

client_app = ClientApp()


@functools.lru_cache(maxsize=1)
def loaded(work: str) -> tuple[Task, nn.Module]:
    """Data and model, once per actor."""
    torch.set_num_threads(1)
    task = Task(WORKS[work])
    return task, task.initial_model()


@client_app.train()  # type: ignore[untyped-decorator]  # flwr is read without its types
def train(message: Message, context: Context) -> Message:
    """One client's local training."""
    config: Any = message.content["config"]
    task, model = loaded(config["work"])
    arrays: Any = message.content["arrays"]
    model.load_state_dict(arrays.to_torch_state_dict())
    examples = task.train(model, config["round"], config["client"])
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": examples})}
    )
    return Message(content=content, reply_to=message)


class SameCohorts(FedAvg):  # type: ignore[misc]  # flwr is read without its types
    """Flower's FedAvg, asking the clients that every other runner asks."""

    def __init__(self, task: Task, clock: Clock) -> None:
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0)
        self._task, self._clock = task, clock

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each client of the round's cohort."""
        if server_round == 1:
            self._clock.begin()
        nodes = sorted(grid.get_node_ids())
        settings = {"work": self._task.work.name, "round": server_round}
        return [
            Message(
                content=RecordDict({"arrays": arrays, "config": ConfigRecord({**settings, "client": client})}),
                message_type="train",
                dst_node_id=nodes[client],
            )
            for client in self._task.cohort(server_round)
        ]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No evaluation; Flower asks for one at the end of each round, so here a round is over."""
        self._clock.lap()
        return []

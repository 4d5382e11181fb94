"""The rounds of `benchmarks.adapters` as apps of Flower's message API, with PEFT's adapters."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import peft
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from benchmarks.adapters import CLIENTS, COHORT, RANK, SCALE, experiment
from benchmarks.meter import Clock
from fedloom.core.seeds import generator
from fedloom.workloads.text_classification.body import find_body, load_body
from fedloom.workloads.text_classification.tokens import load_tokens
from fedloom.workloads.text_classification.workload import TextClassifier

client_app = ClientApp()


@functools.lru_cache(maxsize=1)
def loaded() -> tuple[Any, Any]:
    """Texts and the model with PEFT's adapters, once per actor."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    settings: Any = experiment(2, 1).workload
    body = find_body(settings.model.body)
    data = load_tokens(settings.data, body, settings.model.max_length)
    model = TextClassifier(body.hidden_size, int(data.info["num_labels"]), load_body(body))
    config = peft.LoraConfig(
        r=RANK, lora_alpha=SCALE * RANK, target_modules=["query", "value"], modules_to_save=["head"]
    )
    return data, peft.get_peft_model(model, config)


@client_app.train()  # type: ignore[untyped-decorator]  # flwr is read without its types
def train(message: Message, context: Context) -> Message:
    """One client's local training: the same steps on as many texts."""
    data, model = loaded()
    settings: Any = experiment(2, 1).workload
    config: Any = message.content["config"]
    arrays: Any = message.content["arrays"]
    peft.set_peft_model_state_dict(model, arrays.to_torch_state_dict())
    client, number = int(config["client"]), int(config["round"])
    mine = np.arange(client, len(data.train.labels), CLIENTS)
    order = generator(1, "flower", number, client).permutation(mine)[: 16 * settings.training.max_steps]
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], settings.training.learning_rate, weight_decay=0.0
    )
    model.train()
    for rows in np.split(order, settings.training.max_steps):
        ids, mask = data.train.batch(rows)
        logits = model.of_tokens(torch.from_numpy(ids), torch.from_numpy(mask))
        loss = F.cross_entropy(logits, torch.from_numpy(data.train.labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    content = {
        "arrays": ArrayRecord(peft.get_peft_model_state_dict(model)),
        "metrics": MetricRecord({"num-examples": len(mine)}),
    }
    return Message(content=RecordDict(content), reply_to=message)


class SameCohorts(FedAvg):  # type: ignore[misc]  # flwr is read without its types
    """Flower's FedAvg with a cohort of four."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0)
        self._clock = clock

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each client of the round's cohort."""
        if server_round == 1:
            self._clock.begin()
        nodes = sorted(grid.get_node_ids())
        cohort = generator(1, "cohort", server_round).choice(CLIENTS, COHORT, replace=False).tolist()
        return [
            Message(
                content=RecordDict(
                    {"arrays": arrays, "config": ConfigRecord({"round": server_round, "client": client})}
                ),
                message_type="train",
                dst_node_id=nodes[client],
            )
            for client in cohort
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's mean; a client that failed ends the benchmark, where Flower would go on without it."""
        replies = list(replies)
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        if failed or not replies:
            raise RuntimeError(f"round {server_round}: {len(failed)} clients failed: {failed[:1]}")
        found: tuple[ArrayRecord | None, MetricRecord | None] = super().aggregate_train(server_round, replies)
        return found

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No evaluation; Flower asks for one at the end of each round, so here a round is over."""
        self._clock.lap()
        return []

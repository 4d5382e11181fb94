"""The rounds of `benchmarks.adapters` under Flower's engine, with PEFT's adapters."""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

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


@client_app.train()
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


class SameCohorts(FedAvg):
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

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No evaluation; Flower asks for one at the end of each round, so here a round is over."""
        self._clock.lap()
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        clock = Clock(options.rounds)
        _, model = loaded()
        initial = ArrayRecord(peft.get_peft_model_state_dict(model))
        while len(list(grid.get_node_ids())) < CLIENTS:
            time.sleep(0.05)
        SameCohorts(clock).start(grid=grid, initial_arrays=initial, num_rounds=options.rounds, timeout=600)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "result.json").write_text(json.dumps(clock.result()))

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "include_dashboard": False},
        },
    )


if __name__ == "__main__":
    main()

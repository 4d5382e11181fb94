"""Our strategies inside Flower's own loop."""

from typing import Any

import numpy as np
import pytest

from fedloom.core.accumulators import RunningMean
from fedloom.core.errors import BadUpdate, ConfigError, UnknownName
from fedloom.core.records import MODEL, Record, RoundContext, Update
from fedloom.strategies.fedavg.strategy import FedAvg
from fedloom.strategies.flower import as_strategy
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower.records import from_array_record, to_array_record


class InMemory(flwr.Grid):  # type: ignore[misc]
    """Five nodes with arbitrary ids; replies come back in reverse."""

    nodes = (77, 3, 1001, 15, 8)
    set_run = run = create_message = push_messages = pull_messages = None

    def __init__(self, examples_key: str = "num-examples") -> None:
        self.configs: list[dict[str, Any]] = []
        self.key = examples_key

    def get_node_ids(self) -> Any:
        return iter(self.nodes)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Any]:
        replies = []
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            self.configs.append(dict(message.content["config"]))
            content = flwr.RecordDict()
            if kind == "train":
                content["arrays"] = to_array_record(trained(from_array_record(message.content["arrays"]), node))
            content["metrics"] = flwr.MetricRecord({self.key: node, "loss": node / 2})
            replies.append(flwr.reply(content, message))
        return replies[::-1]


def trained(model: Any, node: int) -> dict[str, np.ndarray]:
    return {name: (0.5 * array + node % 7).astype(np.float32) for name, array in model.items()}


def test_fedavg_equals_our_own_loop() -> None:
    start = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
    grid = InMemory()
    result = as_strategy("fedavg").start(
        grid, to_array_record(start), num_rounds=3, train_config=flwr.ConfigRecord({"lr": 0.1})
    )
    ours, nodes = FedAvg(), sorted(InMemory.nodes)
    state = ours.init(Record({MODEL: start}))
    for number in (1, 2, 3):
        total = RunningMean()
        for place, node in enumerate(nodes):
            update = Update(num_examples=node, groups={MODEL: trained(state.model, node)})
            total.add(update, float(node), place)
        state = ours.finish(
            state, total, RoundContext(round=number, cohort=(0, 1, 2, 3, 4), population=5, rounds=3, seed=1)
        )
    assert np.array_equal(result.arrays["w"].numpy(), state.model["w"])
    expected = sum(node * node / 2 for node in nodes) / sum(nodes)
    assert result.train_metrics_clientapp[3]["loss"] == pytest.approx(expected)
    assert result.evaluate_metrics_clientapp[3]["loss"] == pytest.approx(expected)
    assert grid.configs[0] == {"lr": 0.1, "server-round": 1} and len(grid.configs) == 3 * 2 * 5


def test_fedprox_sends_what_flowers_clients_look_for() -> None:
    grid = InMemory()
    as_strategy("fedprox", mu=0.5, fraction_evaluate=0.0).start(grid, to_array_record({"w": np.zeros(2)}), num_rounds=1)
    assert all(config["proximal-mu"] == 0.5 for config in grid.configs) and len(grid.configs) == 5


def test_a_server_optimiser_and_a_sample_of_the_nodes() -> None:
    grid = InMemory()
    strategy = as_strategy("server_opt", optimizer="adam", learning_rate=0.1, fraction_train=0.6, fraction_evaluate=0.0)
    result = strategy.start(grid, to_array_record({"w": np.zeros(2, np.float32)}), num_rounds=2)
    assert len(grid.configs) == 2 * 3 and result.arrays["w"].numpy().dtype == np.float32
    assert np.all(result.arrays["w"].numpy() != 0)


def test_bad_input_is_named() -> None:
    with pytest.raises(UnknownName, match="fedavg"):
        as_strategy("fedavgg")
    with pytest.raises(ConfigError, match=r"strategy\.mew"):
        as_strategy("fedprox", mew=1)
    with pytest.raises(BadUpdate, match="num-examples"):
        as_strategy("fedavg").start(InMemory("count"), to_array_record({"w": np.zeros(2)}), num_rounds=1)

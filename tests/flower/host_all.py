"""Run by the version matrix in each venv: every strategy hosted, and called by hand, on the same updates.

Needs flwr, numpy, pydantic and ml_dtypes, and nothing else of fedloom's. Prints one JSON object.
"""

import json
from importlib.metadata import version
from typing import Any

import numpy as np

from fedloom.core.accumulators import UpdateList
from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.records import MODEL, Mean, Record, RoundContext, Update
from fedloom.core.state import dump_state, load_state
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower.grid import ClientsGrid
from fedloom.strategies.flower.records import from_array_record, to_array_record
from fedloom.strategies.flower.seeding import seeded
from fedloom.strategies.flower.strategy import build_strategy

CLIENTS, ROUNDS = 7, 2
NOISE = {"noise_multiplier": 0.5}
HOSTED: list[tuple[str, dict[str, Any], str | None, dict[str, Any]]] = [
    ("FedAvg", {}, None, {}),
    ("FedAvgM", {"server_momentum": 0.9}, None, {}),
    ("FedProx", {"proximal_mu": 0.1}, None, {}),
    ("FedMedian", {}, None, {}),
    ("FedTrimmedAvg", {"beta": 0.2}, None, {}),
    ("Krum", {"num_malicious_nodes": 1}, None, {}),
    ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 3}, None, {}),
    ("Bulyan", {"num_malicious_nodes": 1}, None, {}),
    ("QFedAvg", {"client_learning_rate": 0.1}, None, {}),
    ("FedAdam", {}, None, {}),
    ("FedYogi", {}, None, {}),
    ("FedAdagrad", {}, None, {}),
    ("FedAvg", {}, "DifferentialPrivacyServerSideFixedClipping", NOISE | {"clipping_norm": 0.3}),
    ("FedAvg", {}, "DifferentialPrivacyServerSideAdaptiveClipping", NOISE | {"clipped_count_stddev": 1.0}),
]


def local(model: dict[str, np.ndarray], number: int, client: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([number, client])
    return {name: (0.9 * each + rng.normal(size=each.shape)).astype(np.float32) for name, each in model.items()}


def contexts() -> list[RoundContext]:
    cohort = tuple(range(CLIENTS))
    return [
        RoundContext(round=number, cohort=cohort, population=CLIENTS, rounds=ROUNDS, seed=3)
        for number in range(1, ROUNDS + 1)
    ]


def hosted(name: str, options: dict[str, Any], wrapper: str | None, extra: dict[str, Any], start: Any) -> Any:
    table: dict[str, Any] = {"name": "flower", "class": name, "options": options}
    if wrapper:
        table["wrapper"] = {"name": wrapper, "options": extra}
    experiment = Experiment.parse(
        {
            "rounds": ROUNDS,
            "clients": CLIENTS,
            "strategy": table,
            "workload": PluginSettings(name="image_classification"),
        }
    )
    state = build_strategy(experiment.strategy, experiment).init(Record({MODEL: start}))  # type: ignore[arg-type]
    for context in contexts():
        strategy = build_strategy(experiment.strategy, experiment)  # type: ignore[arg-type]
        state = load_state(strategy.State, dump_state(state))
        exchange = strategy.plan(state, context)
        assert exchange is not None
        total = UpdateList()
        for job in exchange.jobs:
            model = local(dict(exchange.inputs[MODEL].groups[MODEL]), context.round, job.client)
            update = Update(num_examples=job.client + 1, groups={MODEL: model}, metrics={"loss": Mean(1.0, 2.0)})
            total.add(update, 1.0, job.client)
        state = strategy.finish(state, total, context)  # type: ignore[assignment]
    return state.model


def by_hand(name: str, options: dict[str, Any], wrapper: str | None, extra: dict[str, Any], start: Any) -> Any:
    strategy = getattr(flwr.strategies, name)(**options)
    if wrapper:
        strategy = getattr(flwr.strategies, wrapper)(strategy, num_sampled_clients=CLIENTS, **extra)
    arrays, config = to_array_record(start), flwr.ConfigRecord()
    for context in contexts():
        with seeded(context.rng("configure_train")), flwr.quiet():
            messages = strategy.configure_train(context.round, arrays, config, ClientsGrid(range(CLIENTS)))
        replies = []
        for message in sorted(messages, key=lambda each: each.metadata.dst_node_id):
            client = flwr.client_of(message.metadata.dst_node_id)
            sent = {key: each.astype(np.float32) for key, each in from_array_record(message.content["arrays"]).items()}
            metrics = flwr.MetricRecord({"num-examples": client + 1, "train_loss": 0.5})
            model = to_array_record(local(sent, context.round, client))
            replies.append(flwr.reply(flwr.RecordDict({"arrays": model, "metrics": metrics}), message))
        with seeded(context.rng("aggregate_train")), flwr.quiet():
            arrays, _ = strategy.aggregate_train(context.round, replies)
    return from_array_record(arrays)


def main() -> None:
    start = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
    same = []
    for case in HOSTED:
        ours, theirs = hosted(*case, start), by_hand(*case, start)
        np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-6, atol=1e-6, err_msg=str(case))
        same.append(case[2] or case[0])
    print(json.dumps({"flwr": version("flwr"), "hosted": same}))


if __name__ == "__main__":
    main()

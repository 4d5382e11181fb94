"""Ours against Flower's FedAvgM, FedAdam, FedYogi and FedAdagrad on the same updates, known differences removed.

Flower starts v at zero where the paper asks for at least tau² (ours: tau²), and its FedAdam scales eta by Kingma and
Ba's bias correction with the round counted one ahead.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi

from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment
from fedloom.core.records import MODEL, Record, RoundContext, Update
from fedloom.core.seeds import generator
from fedloom.strategies.server_opt.config import Config
from fedloom.strategies.server_opt.strategy import Moments, build_strategy

ROUNDS = 5
EXAMPLES = (10, 30, 5)
Arrays = dict[str, np.ndarray[Any, Any]]


def start() -> Arrays:
    rng = generator(1, "start")
    return {"w": rng.normal(size=(3, 2)).astype(np.float32), "b": rng.normal(size=2).astype(np.float32)}


def clients(round: int, at: Arrays) -> list[Arrays]:
    rng = generator(1, "clients", round)
    return [{n: (a + 0.3 * rng.normal(size=a.shape)).astype(np.float32) for n, a in at.items()} for _ in EXAMPLES]


@dataclass
class Reply:
    """What a strategy reads of a `Message`, which can only be made inside a run of Flower's."""

    content: RecordDict

    def has_error(self) -> bool:
        return False


def flowers(strategy: Any, round: int, at: Arrays) -> Arrays:
    """One round of Flower's aggregation."""
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = strategy.current_arrays or record(at)
    else:
        strategy.current_arrays = at  # what `configure_train` keeps
    replies = [
        Reply(RecordDict({"arrays": record(arrays), "metrics": MetricRecord({"num-examples": examples})}))
        for arrays, examples in zip(clients(round, at), EXAMPLES, strict=True)
    ]
    result, _ = strategy.aggregate_train(round, replies)
    return {name: array.numpy().astype(np.float32) for name, array in result.items()}


def record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def ours(config: Config, state: Moments, round: int, at: Arrays) -> Moments:
    fold = RunningMean()
    for client, (arrays, examples) in enumerate(zip(clients(round, at), EXAMPLES, strict=True)):
        fold.add(Update(num_examples=examples, groups={MODEL: arrays}), examples, client)
    strategy = build_strategy(config, Experiment.model_construct(rounds=ROUNDS))
    context = RoundContext(round=round, cohort=(0, 1, 2), population=3, rounds=ROUNDS, seed=1)
    return strategy.finish(state, fold, context)


def no_correction(round: int) -> float:
    return 1.0


def bias_correction(round: int) -> float:
    """Flower's FedAdam: eta times sqrt(1 - beta2^(t+1)) / (1 - beta1^(t+1)), t counting from 1."""
    return float(np.sqrt(1 - 0.99 ** (round + 1.0)) / (1 - 0.9 ** (round + 1.0)))


@pytest.mark.parametrize(
    ("theirs", "mine", "scale"),
    [
        (
            lambda: FedAvgM(server_learning_rate=0.7, server_momentum=0.6),
            {"optimizer": "momentum", "learning_rate": 0.7, "momentum": 0.6},
            no_correction,
        ),
        (
            lambda: FedAdam(eta=0.2, beta_1=0.9, beta_2=0.99, tau=0.01),
            {"optimizer": "adam", "learning_rate": 0.2, "beta1": 0.9, "beta2": 0.99, "tau": 0.01},
            bias_correction,
        ),
        (
            lambda: FedYogi(eta=0.2, beta_1=0.9, beta_2=0.99, tau=0.01),
            {"optimizer": "yogi", "learning_rate": 0.2, "beta1": 0.9, "beta2": 0.99, "tau": 0.01},
            no_correction,
        ),
        (
            lambda: FedAdagrad(eta=0.2, tau=0.01),
            {"optimizer": "adagrad", "learning_rate": 0.2, "beta1": 0.0, "tau": 0.01},
            no_correction,
        ),
    ],
    ids=["momentum", "adam", "yogi", "adagrad"],
)
def test_the_same_updates_give_the_same_models(theirs: Any, mine: dict[str, Any], scale: Any) -> None:
    strategy, at = theirs(), start()
    first = build_strategy(Config(**mine), Experiment.model_construct(rounds=ROUNDS)).init(Record({MODEL: start()}))
    state = replace(first, v={name: np.zeros_like(array) for name, array in first.v.items()})
    for round in range(1, ROUNDS + 1):
        config = Config(**{**mine, "learning_rate": mine["learning_rate"] * scale(round)})
        state = ours(config, state, round, at)
        at = flowers(strategy, round, at)
        for name, array in at.items():
            np.testing.assert_allclose(state.model[name], array, rtol=2e-5, atol=2e-6)

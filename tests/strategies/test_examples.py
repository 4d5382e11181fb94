"""The examples of the how-to guides: they load as files, run, and do what they say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedloom.core import registry
from fedloom.core.accumulators import BUILTIN
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.records import MODEL, Job, Mean, Record, RoundContext, Update, arrays_sha256
from fedloom.core.seeds import generator

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(*overrides: str) -> Experiment:
    return Experiment.load(EXAMPLES / "linear-regression.toml", overrides)


def parts(experiment: Experiment) -> tuple[Any, Any]:
    strategy = registry.part("strategies", experiment.strategy.name, "strategy")
    workload = registry.part("workloads", experiment.workload.name, "workload")
    return (
        strategy.build_strategy(experiment.strategy, experiment),
        workload.build_workload(experiment.workload, experiment),
    )


def run(experiment: Experiment) -> tuple[dict[str, Any], list[float]]:
    """Federated learning in ten lines: the final model, and the test loss after each round."""
    assert isinstance(experiment.rounds, int)
    strategy, workload = parts(experiment)
    state = strategy.init(workload.init(generator(1, "init")))
    test = workload.held_out(0, 1)
    losses = [workload.evaluate({MODEL: Record({MODEL: strategy.arrays(state)})}, test)["loss"].value]
    for round in range(1, experiment.rounds + 1):
        cohort = tuple(int(c) for c in generator(1, "cohort", round).permutation(experiment.num_clients)[:6])
        context = RoundContext(round=round, cohort=cohort, population=experiment.num_clients, rounds=20, seed=1)
        exchange = strategy.plan(state, context)
        rule = registry.part("strategies", exchange.rules[0], "rule").build_rule() if exchange.rules else None
        total: Any = BUILTIN[exchange.accumulator]()
        for job in exchange.jobs:
            rng = generator(1, "train", round, job.client)
            job = Job(round=round, client=job.client, knobs={**exchange.knobs, **job.knobs})
            update = workload.train(job, exchange.inputs, workload.shard(job.client), rule, rng)
            total.add(update, update.num_examples, job.client)
        state = strategy.finish(state, total, context)
        losses.append(workload.evaluate({MODEL: Record({MODEL: strategy.arrays(state)})}, test)["loss"].value)
    return dict(strategy.arrays(state)), losses


@pytest.mark.parametrize(
    "strategy",
    [
        "./coordinate_median.py",
        "./clipped_steps.py",
        "fedavg",
        "fedprox",
    ],
)
def test_the_examples_learn_the_law(strategy: str) -> None:
    name = str(EXAMPLES / strategy) if strategy.endswith(".py") else strategy
    model, losses = run(load(f'strategy="{name}"', "rounds=40"))
    assert losses[0] > 1.0
    assert losses[-1] < 0.02  # the noise alone is 0.1² = 0.01
    assert {name: (array.dtype.name, array.shape) for name, array in model.items()} == {
        "w": ("float32", (5,)),
        "b": ("float32", ()),
    }
    assert arrays_sha256(run(load(f'strategy="{name}"', "rounds=40"))[0]) == arrays_sha256(model)


def test_the_median_does_not_follow_a_liar() -> None:
    strategy, _ = parts(load())
    state = strategy.init(Record({MODEL: {"w": np.zeros(2, np.float32)}}))
    context = RoundContext(round=1, cohort=(0, 1, 2), population=3, rounds=1, seed=1)
    total = BUILTIN["separate"]()
    for client, w in enumerate(([1.0, 5.0], [2.0, -1e9], [3.0, 4.0])):
        total.add(Update(num_examples=1, groups={MODEL: {"w": np.array(w, np.float32)}}), 1.0, client)
    np.testing.assert_array_equal(strategy.arrays(strategy.finish(state, total, context))["w"], [2.0, 4.0])


def test_the_clip_scales_all_gradients_together_and_leaves_small_ones() -> None:
    clip = registry.part("strategies", str(EXAMPLES / "clipped_steps.py"), "rule").build_rule()
    gradients = [np.array([3.0, 0.0]), np.array(4.0)]  # norm 5
    clip.adjust_gradients(gradients, gradients, gradients, {"limit": 2.5})
    np.testing.assert_allclose(gradients[0], [1.5, 0.0])
    np.testing.assert_allclose(gradients[1], 2.0)
    clip.adjust_gradients(gradients, gradients, gradients, {"limit": 2.6})
    np.testing.assert_allclose(gradients[1], 2.0)


def test_a_client_of_the_example_trains_the_same_whoever_came_before() -> None:
    _, workload = parts(load())
    inputs = {MODEL: workload.init(generator(1, "init"))}

    def train(client: int) -> str:
        job = Job(round=1, client=client)
        update = workload.train(job, inputs, workload.shard(client), None, generator(1, client))
        assert isinstance(update.metrics["loss"], Mean)
        return arrays_sha256(update.groups[MODEL])

    assert [train(0), train(1)] == [train(1), train(0)][::-1]


def test_wrong_settings_of_an_example_are_named() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'workload.features'"):
        load("workload.feature=3")


def test_the_file_runs_through_the_platform() -> None:
    from fedloom.api import run as run_experiment

    result = run_experiment(load("runtime.name=inline", "rounds=3"), keep=False)
    assert [record.round for record in result.history] == [1, 2, 3]
    assert result.metrics["loss"] < (result.history[0].evaluation or {})["loss"]

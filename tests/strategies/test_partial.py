"""Averaging of partial models: each array over the clients that sent it."""

from __future__ import annotations

import numpy as np
import pytest

from fedloom.core.accumulators import MeanOfSenders
from fedloom.core.errors import BadUpdate
from fedloom.core.records import MODEL, Arrays, Record, RoundContext, Update
from fedloom.strategies.partial.strategy import PartialAveraging

MODEL_ARRAYS = {name: np.full(2, 9.0, np.float32) for name in ("first", "second", "third")}


def finished(updates: dict[int, tuple[Arrays, int]]) -> tuple[Arrays, object]:
    strategy, total = PartialAveraging(), MeanOfSenders()
    state = strategy.init(Record({MODEL: MODEL_ARRAYS}))
    context = RoundContext(round=1, cohort=tuple(updates), population=5, rounds=1, seed=1)
    assert strategy.plan(state, context).updates == "subset"
    for client, (arrays, examples) in updates.items():
        total.add(Update(num_examples=examples, groups={MODEL: arrays}), float(examples), client)
    after = strategy.finish(state, total, context)
    return strategy.arrays(after), strategy.report(after)


def test_each_array_is_the_mean_over_its_senders_and_an_unsent_one_stays() -> None:
    one, two = np.array([1.0, 2.0], np.float32), np.array([4.0, 8.0], np.float32)
    model, reported = finished({0: ({"first": one, "second": one}, 10), 3: ({"second": two}, 20)})
    assert model["first"].tolist() == [1.0, 2.0]
    assert model["second"] == pytest.approx((10 * one + 20 * two) / 30)
    assert model["third"].tolist() == [9.0, 9.0]
    assert reported == {"partial": {"arrays": 2, "unsent": 1}}


def test_an_array_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(BadUpdate, match="'fourth'"):
        finished({0: ({"fourth": np.zeros(2, np.float32)}, 1)})

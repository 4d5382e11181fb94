"""The methods' arithmetic, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from fedloom.core.accumulators import UpdateList
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.protocols import Pending
from fedloom.core.records import INITIAL, MODEL, Arrays, Record, RoundContext, Update
from fedloom.strategies.forgetting.config import Config
from fedloom.strategies.forgetting.strategy import Calibrate, Forgetting, GradientAscent, NoisyLabels

EXPERIMENT = Experiment.parse({"rounds": 3, "clients": 4, "strategy": "fedavg", "workload": "fedloom.testing.linear"})


def _context(*cohort: int, round: int = 1) -> RoundContext:
    return RoundContext(round=round, cohort=cohort, population=4, rounds=3, seed=1)


def _total(*updates: tuple[int, int, Arrays]) -> UpdateList:
    total = UpdateList()
    for client, count, arrays in updates:
        total.add(Update(num_examples=count, groups={MODEL: arrays}), 1.0, client)
    return total


def _w(*values: float) -> Arrays:
    return {"w": np.array(values, np.float32)}


def test_noisy_labels_is_the_mean_by_examples_of_leaver_and_others() -> None:
    strategy = NoisyLabels(Config(method="noisy_labels", client=2, share=0.25))
    state = strategy.init(Record({MODEL: _w(1.0, 1.0)}))
    jobs = {job.client: (job.kind, dict(job.knobs)) for job in strategy.plan(state, _context(0, 3)).jobs}
    assert jobs == {
        2: ("forget", {"labels": "random"}),
        0: ("forget", {"share": 0.25}),
        3: ("forget", {"share": 0.25}),
    }
    after = strategy.finish(state, _total((2, 30, _w(5.0, 0.0)), (0, 10, _w(1.0, 4.0)), (3, 0, {})), _context(0, 3))
    np.testing.assert_allclose(after.model["w"], [(30 * 5 + 10 * 1) / 40, (10 * 4) / 40])
    assert after.model["w"].dtype == np.float32


def test_gradient_ascent_climbs_around_the_model_without_the_leaver() -> None:
    strategy = GradientAscent(Config(method="gradient_ascent", client=2, part=0.2, radius_fraction=0.5))
    model, initial, leavers = _w(2.0, 1.0), _w(0.0, 0.0), _w(4.0, -1.0)
    state = strategy.init(Record({MODEL: model, INITIAL: initial}))
    [first] = strategy.plan(state, _context(0)).jobs
    assert (first.client, first.kind) == (2, "train")
    step = strategy.finish(state, _total((2, 9, leavers)), _context(0))
    assert isinstance(step, Pending)
    centre = (model["w"] - 0.2 * leavers["w"]) / 0.8
    np.testing.assert_allclose(step.state.model["w"], centre, rtol=1e-6)
    [second] = step.exchange.jobs
    assert (second.client, second.kind, second.inputs) == (2, "forget", (MODEL, "anchor"))
    np.testing.assert_allclose(second.knobs["radius"], 0.5 * np.linalg.norm(centre), rtol=1e-6)
    np.testing.assert_array_equal(step.exchange.inputs["anchor"].groups[MODEL]["w"], step.state.model["w"])
    ended = strategy.finish(step.state, _total((2, 9, _w(7.0, 7.0))), _context(0))
    assert isinstance(ended, Forgetting) and ended.model["w"].tolist() == [7.0, 7.0]
    again = strategy.plan(ended, _context(0, round=2))
    assert again.inputs["anchor"].groups[MODEL] is step.state.model, "a further round climbs within the same ball"


def test_calibrate_moves_in_new_directions_by_stored_lengths() -> None:
    strategy = Calibrate(Config(method="calibrate", client=2))
    norms = {"1": {"0": 2.0, "3": 1.0}}
    state = strategy.init(Record({MODEL: _w(9.0, 9.0), INITIAL: _w(0.0, 0.0)}, {"norms": norms}))
    assert state.model["w"].tolist() == [0.0, 0.0], "it begins with the initial model"
    exchange = strategy.plan(state, _context(0, 1, 3))
    assert exchange is not None and [job.client for job in exchange.jobs] == [0, 3], "those of the stored round"
    after = strategy.finish(state, _total((0, 10, _w(3.0, 4.0)), (3, 30, _w(0.0, -5.0))), _context(0, 1, 3))
    expected = 0.25 * 2.0 * np.array([0.6, 0.8]) + 0.75 * 1.0 * np.array([0.0, -1.0])
    np.testing.assert_allclose(after.model["w"], expected, rtol=1e-6)
    still = strategy.finish(state, _total((0, 10, _w(0.0, 0.0)), (3, 30, _w(0.0, 0.0))), _context(0, 3))
    assert still.model["w"].tolist() == [0.0, 0.0], "no direction, no step"
    assert strategy.plan(after, _context(0, round=2)) is None, "no further stored round"


@pytest.mark.parametrize(("method", "kind"), [("gradient_ascent", GradientAscent), ("calibrate", Calibrate)])
def test_what_a_method_begins_with_is_demanded(method: str, kind: type[GradientAscent | Calibrate]) -> None:
    with pytest.raises(ConfigError, match=f"'{method}' begins with"):
        kind(Config.model_validate({"method": method, "client": 2})).init(Record({MODEL: _w(1.0)}))

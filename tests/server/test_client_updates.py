"""What each client changes in a round, stored for those who may have to undo it; and runs that begin with a model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedloom import api
from fedloom.core import frames
from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment
from fedloom.core.errors import BadUpdate, ConfigError
from fedloom.core.plugins import build_workload
from fedloom.core.records import INITIAL, MODEL, Record, Update
from fedloom.core.seeds import generator
from fedloom.server.rounds.client_updates import changes
from fedloom.server.rounds.initial import begun_with

Make = Callable[..., Experiment]
KEEPING = {"round": {"group_size": 1}, "checkpoint": {"client_updates": True}}


def test_a_change_is_the_update_minus_the_model_sent() -> None:
    sent = {"w": np.array([1.0, 2.0], np.float32), "n": np.array(3), "on": np.array([True, False])}
    trained = {"w": np.array([1.5, 1.0], np.float32), "n": np.array(7), "on": np.array([True, True])}
    total = RunningMean()
    total.add(Update(num_examples=5, groups={MODEL: trained}), 5.0, 0)
    found = changes(total.record(), Record({MODEL: sent}), 5)
    assert found is not None and found.info == {"num_examples": 5}
    assert {name: array.tolist() for name, array in found.groups[MODEL].items()} == {
        "w": [0.5, -1.0],
        "n": 4,
        "on": [False, True],
    }
    assert changes(total.record(), Record({MODEL: {"w": sent["w"]}}), 5) is None, "another model than was sent"


def test_the_mean_of_the_stored_changes_is_the_rounds_step(linear: Make, tmp_path: Path) -> None:
    experiment = linear(rounds=1, clients=4, cohort=3, **KEEPING)
    after = api.run(experiment, out=tmp_path / "run")
    before = api.run(experiment.override(["rounds=1", "cohort=3"]), keep=False).arrays
    assert all(np.array_equal(before[name], after.arrays[name]) for name in before), "keeping changes nothing"
    records = [frames.decode(path.read_bytes()) for path in sorted((tmp_path / "run/updates/000001").iterdir())]
    counts = [record.info["num_examples"] for record in records]
    assert len(records) == 3
    workload = build_workload(experiment.workload, experiment)
    initial = workload.init(generator(experiment.seed, "init", 0, 0, 0)).groups[MODEL]
    for name in after.arrays:
        step = sum(n * record.groups[MODEL][name] for n, record in zip(counts, records, strict=True)) / sum(counts)
        np.testing.assert_allclose(after.arrays[name], initial[name] + step, rtol=1e-5, atol=1e-6)


def test_clients_that_are_aggregated_where_they_train_have_no_update_of_their_own(linear: Make) -> None:
    with pytest.raises(ConfigError, match=r"client_updates: needs each client's own update.*round.group_size = 1"):
        linear(checkpoint={"client_updates": True})


def test_a_run_begins_with_the_model_it_is_given() -> None:
    fresh = Record({MODEL: {"w": np.zeros(2, np.float32)}, "other": {"x": np.ones(1)}}, {"layers": ["w"]})
    given = {"w": np.array([3.0, 4.0], np.float32)}
    assert begun_with(fresh, None) is fresh
    begun = begun_with(fresh, Record({MODEL: given}))
    assert begun.groups[MODEL] is given and begun.info == fresh.info and set(begun.groups) == {MODEL, "other"}
    with_initial = begun_with(fresh, Record({MODEL: given}, {INITIAL: True, "norms": {"1": 2.0}}))
    assert with_initial.groups[INITIAL]["w"].tolist() == [0.0, 0.0] and with_initial.info["norms"] == {"1": 2.0}


@pytest.mark.parametrize(
    "given", [{}, {"w": np.zeros(3, np.float32)}, {"w": np.zeros(2)}, {"v": np.zeros(2, np.float32)}]
)
def test_a_model_of_another_workload_is_refused_by_array(given: dict[str, np.ndarray]) -> None:
    fresh = Record({MODEL: {"w": np.zeros(2, np.float32)}})
    with pytest.raises(BadUpdate, match=r"does not fit its workload in array '[vw]'"):
        begun_with(fresh, Record({MODEL: given}))

"""The node's own filters on what leaves it, and whose runs it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from members import members
from policies import Fleet, guard

from fedloom.client.control import ControlClient
from fedloom.client.filters import Filters
from fedloom.core.config import Experiment
from fedloom.core.errors import PolicyRefused
from fedloom.core.messages import RunSpec
from fedloom.core.records import MODEL, Record, Update
from fedloom.proto.v1 import codec
from fedloom.server.fleet.planned import RunFacts
from fedloom.server.run_views import Owner

Make = Callable[..., Experiment]
BEFORE = {"w": np.array([1.0, 2.0], np.float32), "b": np.array([0.5], np.float32), "n": np.array([7])}
AFTER = {"w": np.array([4.0, 6.0], np.float32), "b": np.array([12.5], np.float32), "n": np.array([9])}


def leaves(filters: Filters, groups: Any = None, seed: int = 1, **fields: Any) -> dict[str, np.ndarray]:
    update = Update(num_examples=1, groups={MODEL: AFTER} if groups is None else groups, **fields)
    return dict(filters.apply(update, BEFORE, np.random.default_rng(seed)).groups[MODEL])


def test_the_change_of_all_arrays_together_is_clipped() -> None:
    # the change is (3, 4) and 12: its norm is 13
    sent = leaves(Filters(max_norm=6.5))
    np.testing.assert_allclose(sent["w"], [2.5, 4.0])
    np.testing.assert_allclose(sent["b"], [6.5])
    assert sent["w"].dtype == np.float32


def test_a_smaller_change_stays_as_it_is() -> None:
    sent = leaves(Filters(max_norm=13.001))
    np.testing.assert_array_equal(sent["w"], AFTER["w"])


def test_excluded_arrays_leave_as_they_came_and_count_for_no_norm() -> None:
    sent = leaves(Filters(exclude=("b*",), max_norm=2.5))
    np.testing.assert_array_equal(sent["b"], BEFORE["b"])
    np.testing.assert_allclose(sent["w"], [2.5, 4.0])  # (3, 4) has norm 5


def test_noise_has_its_standard_deviation_and_is_drawn_anew() -> None:
    model = {"w": np.zeros(40_000, np.float32)}
    update = Update(num_examples=1, groups={MODEL: {"w": np.ones(40_000, np.float32)}})
    one, two = (Filters(noise=0.1).apply(update, model, np.random.default_rng()).groups[MODEL]["w"] for _ in range(2))
    assert abs(float(np.std(one)) - 0.1) < 0.005 and abs(float(np.mean(one)) - 1.0) < 0.005
    assert not np.array_equal(one, two)


@pytest.mark.parametrize(
    ("groups", "fields"),
    [
        ({"other": {"w": AFTER["w"]}}, {}),
        ({MODEL: {"unknown": AFTER["w"]}}, {}),
        ({MODEL: AFTER, "more": {}}, {}),
        ({MODEL: AFTER}, {"state": Record()}),
    ],
)
def test_what_cannot_be_filtered_does_not_leave(groups: Any, fields: Any) -> None:
    with pytest.raises(PolicyRefused, match="cannot be filtered"):
        leaves(Filters(noise=0.1), groups, **fields)
    with pytest.raises(PolicyRefused, match="cannot be filtered"):
        Filters(noise=0.1).apply(Update(num_examples=1, groups={MODEL: AFTER}), None, np.random.default_rng(1))


def test_a_run_on_a_node_with_filters_sends_the_clipped_change(tmp_path: Path, linear: Make) -> None:
    """One client, whose update is the next model: it is at most the bound away from the one before."""
    own = {"workloads": {linear().workload.name: {}}, "code": [linear().workload.name]}
    experiment = linear(rounds=1, clients=1, cohort=1)
    plain = Fleet(tmp_path, n={**own}).run(experiment)
    kept = Fleet(tmp_path, n={**own, "filters": {"exclude": ["*"]}}).run(experiment)
    clipped = Fleet(tmp_path, n={**own, "filters": {"max_norm": 1e-3}}).run(experiment)
    assert plain.error is None and kept.error is None and clipped.error is None
    change = {
        name: np.concatenate(
            [np.ravel(run.arrays[array].astype(np.float64) - kept.arrays[array]) for array in sorted(kept.arrays)]
        )
        for name, run in (("plain", plain), ("clipped", clipped))
    }
    assert np.linalg.norm(change["plain"]) > 1e-2
    assert np.linalg.norm(change["clipped"]) == pytest.approx(1e-3, rel=1e-3)


class TestWhoSubmitted:
    def test_a_policy_names_members_and_roles(self, tmp_path: Path) -> None:
        guard(tmp_path).admit_submitter("anybody", "user")
        guard(tmp_path, submitters=["ann"]).admit_submitter("ann", "user")
        guard(tmp_path, roles=["admin"]).admit_submitter("bob", "admin")
        for own, name, role in (
            (guard(tmp_path, submitters=["ann"]), "bob", "user"),
            (guard(tmp_path, submitters=[]), "ann", "admin"),
            (guard(tmp_path, roles=["admin"]), "ann", "user"),
            (guard(tmp_path, roles=["user"]), "", ""),
        ):
            with pytest.raises(PolicyRefused, match="are not accepted here") as caught:
                own.admit_submitter(name, role)
            assert caught.value.kind == "submitter"

    def test_the_server_says_who_it_was(self, tmp_path: Path, linear: Make) -> None:
        with members(tmp_path) as fleet:
            with ControlClient(fleet.address, identity=fleet.joined("ann", "user")) as control:
                run_id = control.submit(linear(rounds=1, workload={"name": "image_classification"}))
            owner = fleet.runs.owner(run_id)
            assert (owner.name, owner.role) == ("ann", "user") and owner.id
        spec = RunFacts.of(run_id, linear(), (owner.name, owner.role)).spec
        assert (spec.submitter_name, spec.submitter_role) == ("ann", "user")
        assert codec.read_to_agent(codec.to_agent_message(spec)) == spec
        assert RunSpec(run_id="r", experiment={}).submitter_name == Owner().name == ""

"""What sites agree on before round 1, and what does not fit together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from site_fleet import Sites, experiment

from fedloom.core.config import Experiment
from fedloom.core.errors import DataDiffers
from fedloom.core.events import Notice
from fedloom.core.protocols import WorkloadInfo
from fedloom.server.rounds.agreement import agreed_settings, moments_of, warnings_of
from fedloom.server.rounds.descriptions import Described
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.testing.fleet import EventLog


def site(name: str, data: Any, size: int | None = 10, names: Any = ()) -> Described:
    sizes = [] if size is None else [size]
    shown = {"label_names": list(names)} if names else {}
    info = WorkloadInfo(data={**data, **shown}, client_sizes=sizes, label_names=names)
    return Described(name=name, member=name, info=info)


def images(**data: Any) -> Experiment:
    workload = {"name": "image_classification", "data": {"source": "npz", "file": "$DATA/x.npz", **data}}
    return Experiment.parse({"rounds": 1, "clients": "nodes", "strategy": "fedavg", "workload": workload})


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"columns": {"age": "int64"}}, {"columns": {"age": "float64"}}, "site 'a': age is float64, not int64"),
        ({"columns": {"age": "int", "bmi": "int"}}, {"columns": {"age": "int"}}, "it lacks the columns bmi"),
        ({"columns": {"age": "int"}}, {"columns": {"age": "int", "bmi": "int"}}, "it has the further columns bmi"),
        ({"shape": [1, 8, 8]}, {"shape": [3, 8, 8]}, "the shape [3, 8, 8] (channels, height, width), not [1, 8, 8]"),
        ({"label_names": ["x", "y"]}, {"label_names": ["y", "x"]}, "its classes have another order"),
    ],
)  # fmt: skip
def test_a_mismatch_names_the_site_and_the_difference(one: Any, other: Any, said: str) -> None:
    with pytest.raises(DataDiffers) as caught:
        agreed_settings(images(), [site("a", one), site("b", other)], "run")
    assert said in str(caught.value) and "'b'" in str(caught.value)


def test_other_classes_are_named() -> None:
    sites = [site("a", {}, names=("x", "y")), site("b", {}, names=("y", "z"))]
    with pytest.raises(DataDiffers, match=r"site 'b' .*further classes z; it lacks the classes x\. Set work"):
        agreed_settings(images(), sites, "run")


def test_the_union_of_classes_is_sorted_and_needs_their_names() -> None:
    sites = [site("a", {}, names=("10", "2")), site("b", {}, names=("9",))]
    assert agreed_settings(images(classes="union"), sites, "run") == ['workload.data.classes=["2", "9", "10"]']
    sites = [site("a", {}, names=("ü", "b")), site("b", {}, names=("a b",))]
    found = agreed_settings(images(classes="union"), sites, "run")
    settings: Any = images(classes="union").override(found).workload
    assert settings.data.classes == ("a b", "b", "ü")
    with pytest.raises(DataDiffers, match="site 'b' withholds the names of 1 of its 2 classes"):
        agreed_settings(images(classes="union"), [sites[0], site("b", {}, names=("a", "sha256:00"))], "run")
    with pytest.raises(DataDiffers, match="expected at least two"):
        agreed_settings(images(classes="union"), [site("a", {}, names=("a",))], "run")


def test_moments_are_those_of_all_rows_together() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(shift, 3.0, (size, 4)) for shift, size in ((0, 10), (100, 7), (-5, 90))]
    sums = [{"n": len(x), "sum": x.sum(0).tolist(), "squares": (x**2).sum(0).tolist()} for x in parts]
    mean, std = moments_of(sums)
    whole = np.concatenate(parts)
    np.testing.assert_allclose(mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, whole.std(0), rtol=1e-9)
    assert moments_of([{"n": 3, "sum": [6.0], "squares": [12.0]}]) == ([2.0], [1.0]), "a flat column"


def test_sums_that_one_site_withholds_are_asked_for_as_settings() -> None:
    told = {"sums": {"n": 2, "sum": [1.0], "squares": [1.0]}}
    with pytest.raises(DataDiffers, match=r"site 'b' reports no sums .* Set workload\.data\.mean and"):
        agreed_settings(images(), [site("a", told), site("b", {})], "run")


def test_data_without_settings_for_a_mean_need_equal_sums() -> None:
    workload = {"name": "image_classification", "data": {"source": "digits"}}
    digits = Experiment.parse({"rounds": 1, "clients": "nodes", "strategy": "fedavg", "workload": workload})
    one, other = ({"sums": {"n": n, "sum": [3.0], "squares": [4.0]}} for n in (4, 5))
    assert agreed_settings(digits, [site("a", one), site("b", one)], "run") == []
    with pytest.raises(DataDiffers, match=r"site 'b' has other data than site 'a'.*workload\.data\.mean"):
        agreed_settings(digits, [site("a", one), site("b", other)], "run")


def test_withheld_sizes_make_all_updates_weigh_the_same() -> None:
    withholding = site("b", {"withholds_sizes": True}, size=None)
    assert agreed_settings(images(), [site("a", {}), withholding], "run") == ['round.weighting="uniform"']


def test_sizes_that_a_workload_does_not_know_beforehand_change_no_weight() -> None:
    """A hosted app counts its examples when it trains: what it reports then is its weight."""
    assert agreed_settings(images(), [site("a", {}), site("b", {}, size=None)], "run") == []
    assert agreed_settings(images(), [site("a", {}), site("b", {})], "run") == []


def test_equal_digests_are_pointed_out() -> None:
    sites = [site("a", {"sha256": "ab" * 32}), site("b", {"sha256": "cd" * 32}), site("c", {"sha256": "ab" * 32})]
    assert warnings_of(sites) == [
        "sites a, c have the same data (SHA-256 abababababab…): is it a copy, or one site twice?"
    ]


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    fleet = Sites(tmp_path)
    try:
        yield fleet
    finally:
        fleet.close()


@pytest.mark.slow
def test_sites_with_one_class_each_train_on_the_union(sites: Sites, tmp_path: Path) -> None:
    """Each has one class, and its own brightness: together they have two classes, and one normalisation."""
    pixels: dict[str, Any] = {}
    for name, label, level in (("a", 7, 40), ("b", 3, 200)):
        folder = tmp_path / f"data-{name}"
        folder.mkdir()
        x = np.random.default_rng(label).integers(0, 50, (30, 8, 8)) + level
        pixels[name] = x
        np.savez(folder / "x.npz", x_train=x.astype(np.uint8), y_train=np.full(30, label),
                 x_test=x[:10].astype(np.uint8), y_test=np.full(10, label))  # fmt: skip
        allowed = {"image_classification": {"data": str(folder), "classes": ["3", "7"]}}
        sites.start(name, workloads=allowed)
    one = images(classes="union").override(["workload.model.name=mlp", "rounds=2"])
    store, log = MemoryRunStore("run"), EventLog()
    outcome = sites.run(one, store=store, sinks=[log])
    assert outcome.error is None
    info = store.workload()
    assert info is not None and [list(counts) for counts in info.label_counts] == [[0, 30], [30, 0]], "3 is 0, 7 is 1"
    agreed: Any = one.override([setting for line in store.rosters() for setting in line.settings])
    whole = np.concatenate([pixels["a"], pixels["b"]]) / 255
    assert agreed.workload.data.mean == (pytest.approx(whole.mean(), rel=1e-6),)
    assert agreed.workload.data.std == (pytest.approx(whole.std(), rel=1e-5),)
    assert any(event.message.startswith("the sites have agreed on") for event in log.of(Notice))


def test_a_later_site_that_does_not_fit_is_left_out(sites: Sites) -> None:
    sites.start("a", "b")
    log = EventLog()
    x = np.zeros((20, 5))
    sites.write("c", x, np.arange(20) % 2)
    sites.write("d", np.zeros((0, 3)), np.zeros(0, int))
    outcome = sites.run(experiment(rounds=3), after={1: lambda: sites.start("c", "d")}, sinks=[log])
    assert outcome.error is None
    assert [sorted(record.cohort) for record in outcome.history] == [[0, 1]] * 3
    said = [event.message for event in log.of(Notice) if "is no client of this run" in event.message]
    assert any("site 'c'" in message and "it has the further columns x3, x4" in message for message in said), said
    assert any("site 'd'" in message and "no rows" in message for message in said), said

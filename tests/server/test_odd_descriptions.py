"""Descriptions of data that no site has: numbers that count nothing, and sums that are none, are that site's fault."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fedloom.core import run_files
from fedloom.core.accumulators import UpdateList
from fedloom.core.config import Experiment
from fedloom.core.errors import DataDiffers
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import Update
from fedloom.server.rounds.agreement import agreed_settings
from fedloom.server.rounds.counts import Collected, RoundCounts
from fedloom.server.rounds.descriptions import Candidate, Described, described_sites

SOUND: dict[str, Any] = {
    "data": {"name": "own"},
    "client_sizes": [30],
    "label_counts": [[10, 20]],
    "label_names": ["a", "b"],
}
ODD: dict[str, dict[str, Any]] = {
    "negative": {"client_sizes": [-5]},
    "endless": {"client_sizes": [2**60]},
    "beyond any float": {"label_counts": [[10**400, 1]]},
    "negative classes": {"label_counts": [[-1, 31]]},
    "unequal rows": {"label_counts": [[1, 2], [1]]},
    "no number": {"client_sizes": ["many"]},
    "no list": {"label_counts": 5},
    "more than is known": {"extra": 1},
    "nothing": {"data": None},
}


def described(**changes: Any) -> tuple[list[Described], Any]:
    """What becomes of a sound site's description and an odd one's."""
    total = UpdateList()
    for number, values in enumerate((SOUND, {**SOUND, **changes})):
        total.add(Update(num_examples=0, groups={}, info={"workload": values}), 0.0, number)
    candidates = [Candidate(name="good", member="1"), Candidate(name="odd", member="2")]
    collected = Collected(total=total, reports=(), counts=RoundCounts(), sampled=(0, 1), superseded=())
    return described_sites(candidates, collected)


@pytest.mark.parametrize("what", ODD)
def test_numbers_that_are_none_are_that_sites_fault(what: str) -> None:
    found, trouble = described(**ODD[what])
    assert [site.name for site in found] == ["good"]
    assert trouble.keys() == {"odd"} and "no valid description" in trouble["odd"] and len(trouble["odd"]) < 500


def test_the_control_is_taken() -> None:
    found, trouble = described()
    assert [site.name for site in found] == ["good", "odd"] and not trouble
    assert dataclasses.asdict(run_files.workload_of(SOUND)) == dataclasses.asdict(WorkloadInfo(**SOUND))


def sites(*data: dict[str, Any], names: tuple[str, ...] = ("a", "b")) -> list[Described]:
    return [
        Described(name=f"s{n}", member=str(n), info=WorkloadInfo(data=each, client_sizes=[5], label_names=names))
        for n, each in enumerate(data)
    ]


GOOD = {"n": 10, "sum": [1.0], "squares": [2.0]}


@pytest.mark.parametrize(
    "sums",
    [
        {"n": True}, {"n": 0}, {"n": -3}, {"n": 10**400}, {"n": 1.5}, {"sum": ["x"]}, {"sum": [None]},
        {"sum": [float("nan")]}, {"squares": [float("inf")]}, {"squares": [1e308]}, {"sum": [[1.0]]}, {"sum": [True]},
        {"sum": {}}, {"squares": []},
    ],
    ids=str,
)  # fmt: skip
def test_sums_that_are_none_name_their_site(sums: dict[str, Any]) -> None:
    experiment = Experiment.parse(
        {"rounds": 1, "clients": "nodes", "strategy": "fedavg", "workload": "image_classification"}
    )
    with pytest.raises(DataDiffers, match="'s1'"):
        agreed_settings(experiment, sites({"sums": GOOD}, {"sums": {**GOOD, **sums}}), "run")


@pytest.mark.parametrize(
    "name", ["--5", "²", "9" * 5000, "-", "1e5", "\ud800"[:0] + "٣", 'x"]\nstrategy.name="evil', "\x7f"]
)
def test_a_class_of_any_name_is_a_class(name: str) -> None:
    """In the union of all sites' classes, as text, whatever it looks like; and a setting of nothing else."""
    data = {"source": "images", "folder": "$DATA", "classes": "union"}
    workload = {"name": "image_classification", "data": data}
    experiment = Experiment.parse({"rounds": 1, "clients": "nodes", "strategy": "fedavg", "workload": workload})
    (setting, *_) = agreed_settings(experiment, sites({}, {}, names=("7", name)), "run")
    if name == "\x7f":
        return  # no text of a setting; it is refused where the setting is read
    after = experiment.override([setting])
    assert sorted(after.workload.model_dump()["data"]["classes"]) == sorted(["7", name])
    assert after.override([]).model_dump(exclude={"workload"}) == experiment.model_dump(exclude={"workload"})

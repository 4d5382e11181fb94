"""Every method with sites as clients: agents in one process, each with images of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from joined_sites import pictures
from site_fleet import Sites

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.server.rounds.session import Outcome
from fedloom.strategies.mano.evaluation import read

WORKLOADS = ("image_classification", "mano", "meat", "spiking_classification")
SIZES = {"a": 60, "b": 48, "c": 36}
DATA = {"source": "npz", "file": "$DATA/x.npz"}
TRAINING = {"learning_rate": 0.05, "batch_size": 16}
IMAGES = {
    "name": "image_classification",
    "model": {"name": "mlp", "hidden": [20, 18]},
    "training": TRAINING,
    "data": DATA,
}
SPIKES = {"name": "spiking_classification", "time_steps": 3, "model": {"name": "mlp", "hidden": [8]},
          "training": TRAINING, "data": DATA}  # fmt: skip
MANO = {"name": "mano", "model": {"name": "strided", "width": 0.25}, "training": TRAINING, "data": DATA,
        "suite": {"banks": ["mild"], "severities": [3], "images": 10}}  # fmt: skip
MEAT = {"name": "meat", "attack": {"epsilon": 0.15, "step_size": 0.05, "steps": 1},
        "model": {"name": "strided", "width": 0.25}, "training": TRAINING, "data": DATA,
        "measure": {"examples": 10, "steps": 1, "table_examples": 5, "table": ["fgsm"]}}  # fmt: skip
LOW_RANK = {"targets": ["1", "3"]}


class PictureSites(Sites):
    """Sites with images of their own."""

    def add(self, *names: str) -> None:
        for name in names:
            folder = self.folder / f"data-{name}"
            folder.mkdir()
            x, y = pictures(SIZES[name], ord(name))
            np.savez(folder / "x.npz", x_train=x, y_train=y, x_test=x[: SIZES[name] // 3], y_test=y[: SIZES[name] // 3])
            self.start(name, workloads={each: {"data": str(folder)} for each in WORKLOADS}, code=[])


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PictureSites]:
    fleet = PictureSites(tmp_path_factory.mktemp("sites"))
    try:
        fleet.add("a", "b", "c")
        yield fleet
    finally:
        fleet.close()


def outcome(sites: Sites, **values: Any) -> Outcome:
    """Return a run that has to end well, every round with its evaluation."""
    base: dict[str, Any] = {"name": "x", "rounds": 3, "clients": "nodes", "strategy": "fedavg", "workload": IMAGES}
    found = sites.run(Experiment.parse({**base, "round": {"min_sites": 3}, **values}))
    assert found.error is None, found.error
    assert not [failure for record in found.history for failure in record.failures]
    return found


SELECTIONS = ("uniform", "afl", "data_size", "divfl", "fed_cbs", "fedcor", "hics", "label_oracle", "local_loss", "oort",
              "optimal_sampling", "power_of_choice", "update_norm")  # fmt: skip
OF_SPIKES = ("firing_credit", "predicted_credit", "spike_activity")
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedprox": {"mu": 0.1},
    "partial": {},
    "server_opt": {},
    **dict.fromkeys(
        ("fedlora", "ffa_lora", "flasc", "flexlora", "flora", "hetlora", "fed_adalora", "spd_cfl"), LOW_RANK
    ),
    "sa_fedlora": {**LOW_RANK, "rank_max": 4, "rank_min": 2, "initiating_rounds": 1},
}


@pytest.mark.parametrize("name", SELECTIONS + OF_SPIKES)
def test_selections(sites: PictureSites, name: str) -> None:
    workload = SPIKES if name in OF_SPIKES else IMAGES
    found = outcome(sites, selection=name, cohort=2, workload=workload)
    assert all(1 <= len(record.cohort) <= 2 and set(record.cohort) <= {0, 1, 2} for record in found.history)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies(sites: PictureSites, name: str) -> None:
    found = outcome(sites, strategy={"name": name, **STRATEGIES[name]})
    assert [record.num_examples for record in found.history] == [sum(SIZES.values())] * 3


def test_two_exchanges_of_spiking_credits(sites: PictureSites) -> None:
    found = outcome(sites, strategy="sfedca", workload=SPIKES, cohort=2)
    assert [len(record.cohort) for record in found.history] == [2, 2, 2]


def test_every_site_scores_all_sets_of_its_own_images(sites: PictureSites) -> None:
    found = outcome(sites, strategy={"name": "mano", "parts": 8}, workload=MANO)
    lines = found.history[-1].info["mano"]["sets"]
    assert sorted({(line["site"], line["samples"]) for line in lines}) == [(0, 10), (1, 10), (2, 10)]
    assert len(lines) == 3 * 21, "20 corruptions and the clean images at each site"
    assert len(read(found.history[-1].info["mano"], 3).tables["mild"].names) == 3 * 20


def test_every_site_measures_all_compared_models(sites: PictureSites) -> None:
    """Every model's rates are of the same images: 10 of each site, so multiples of 1/30."""
    found = outcome(sites, strategy={"name": "meat", "start": 2, "compare": ["last"]}, workload=MEAT)
    rates = found.history[-1].info["meat"]["rates"]
    assert len(rates) >= 2
    for rate in rates.values():
        assert rate["robust"] * 30 == pytest.approx(round(rate["robust"] * 30)), rates


@pytest.mark.parametrize("data", ["held_out", "own"])
def test_a_monitor_observes_every_site(sites: PictureSites, data: str) -> None:
    found = outcome(sites, monitor={"name": "mano", "data": data, "clients": 8, "anchors": 1})
    read = found.history[-1].monitor
    assert [line["client"] for line in (*read["anchors"], *read["clients"])] == [0, 1, 2]
    sizes = [size // 3 if data == "held_out" else size for size in SIZES.values()]
    assert [line["samples"] for line in (*read["anchors"], *read["clients"])] == sizes


def test_data_of_installed_packages_need_no_agreement_on_a_mean(sites: PictureSites) -> None:
    """Every site has all digits: 1,438 to train on, and 359 to evaluate on."""
    preset = api.load("digits-fedavg").override(["rounds=1", "clients=nodes"])
    found = sites.run(preset)
    assert found.error is None
    assert found.history[0].num_examples == 3 * 1438

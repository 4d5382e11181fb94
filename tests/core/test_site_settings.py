"""Settings of experiments whose clients are sites."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError

TEXT = """
rounds = 2
clients = %s
strategy = "fedavg"
[workload]
name = "image_classification"
%s
"""


def write(folder: Path, clients: str, rest: str = "") -> Path:
    path = folder / "x.toml"
    path.write_text(TEXT % (clients, rest), encoding="utf-8")
    return path


@pytest.mark.parametrize("clients", ['"nodes"', '["a", "b"]'])
@pytest.mark.parametrize(
    ("rest", "key"),
    [
        ('partition = { scheme = "iid" }', "workload.partition"),
        ('partition = { scheme = "dirichlet", alpha = 0.5 }', "workload.partition"),
        ("[evaluation]\nparts = 4", "evaluation.parts"),
        ("[round]\ngroup_size = 3", "round.group_size"),
        ("[fleet]\nmin_nodes = 1", "fleet.min_nodes"),
    ],
)
def test_settings_without_meaning_are_refused_by_name(tmp_path: Path, clients: str, rest: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Experiment.load(write(tmp_path, clients, rest))
    assert str(caught.value).startswith(f"{key}: got ") and f"Remove {key}, or set clients to a number" in str(
        caught.value
    )


def test_they_are_left_out_where_the_command_line_makes_sites(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "5", 'partition = { scheme = "iid" }\n[evaluation]\nparts = 2\nevery = 3')
    with caplog.at_level(logging.WARNING):
        found = Experiment.load(path, ["clients=nodes", "rounds=7"])
    assert caplog.messages == ["workload.partition, evaluation.parts: ignored, because clients are sites"]
    assert (found.clients, found.rounds, found.evaluation.every) == ("nodes", 7, 3)
    assert "partition" not in found.to_dict()["workload"] and "parts" not in found.to_dict()["evaluation"]
    assert Experiment.parse(found.to_dict()) == found
    caplog.clear()
    with pytest.raises(ConfigError, match=r"workload\.partition: got"):
        Experiment.load(path, ["clients=nodes", "workload.partition.scheme=iid"])
    assert Experiment.load(path, ['clients=["a"]']).site_names == ("a",)


@pytest.mark.parametrize("preset", ["digits-fedavg", "digits-sfedca", "text-sa-fedlora", "digits-fedadam"])
def test_every_preset_can_be_run_on_sites(preset: str, caplog: pytest.LogCaptureFixture) -> None:
    if preset in api.presets():
        assert api.load(preset, ["clients=nodes"]).of_sites


@pytest.mark.parametrize(
    ("clients", "least", "said"),
    [
        ('["a", "b", "a"]', None, "clients: 'a' is named twice"),
        ("3", 2, "round.min_sites: got 2, but clients = 3 are virtual clients"),
        ('["a", "b"]', 3, "round.min_sites: got 3, but clients names 2"),
        ('"sites"', None, "clients: "),
        ("0", None, "clients: "),
        ("[]", None, "clients: "),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, clients: str, least: int | None, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Experiment.load(write(tmp_path, clients, f"[round]\nmin_sites = {least}" if least else ""))
    assert str(caught.value).startswith(said)


def test_who_takes_part_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    virtual = Experiment.load(write(tmp_path, "4"))
    sites = Experiment.load(write(tmp_path, '"nodes"'))
    assert virtual.override(["fleet.labels.site=x"]).fingerprint() == virtual.fingerprint()
    different = [sites, *(sites.override([change]) for change in ("fleet.labels.site=x", "round.min_sites=2"))]
    different.append(Experiment.load(write(tmp_path, '["a"]')))
    assert len({one.fingerprint() for one in (virtual, *different)}) == 5


def test_a_simulation_of_sites_is_refused_with_what_a_number_would_do(tmp_path: Path) -> None:
    one = Experiment.load(write(tmp_path, '"nodes"', 'data = { source = "npz", file = "$DATA/x.npz" }'))
    with pytest.raises(ConfigError) as caught:
        api.run(one, keep=False)
    message = str(caught.value)
    assert "each enrolled node is one client, with all data below its own $DATA, so the run needs a server" in message
    assert "`--set clients=N`: N virtual clients" in message and "workload.partition" in message


def test_a_quorum_of_sites_is_as_many_as_the_run_needs(tmp_path: Path) -> None:
    sites = Experiment.load(write(tmp_path, '"nodes"', "[round]\nmin_sites = 2"))
    assert [round(sites.quorum_of(quota) * quota) for quota in (1, 2, 5)] == [1, 2, 2]
    assert sites.override(["round.quorum_fraction=0.8"]).quorum_of(5) == 0.8
    assert Experiment.load(write(tmp_path, "4")).quorum_of(4) == 1.0


def test_a_cohort_is_of_those_that_there_are(tmp_path: Path) -> None:
    sites: Any = Experiment.load(write(tmp_path, '"nodes"')).override(["cohort=3"])
    assert [sites.cohort_of(population) for population in (1, 3, 9)] == [1, 3, 3]
    with pytest.raises(ConfigError, match=r"clients: expected a number, which a part of this experiment needs"):
        sites.num_clients  # noqa: B018

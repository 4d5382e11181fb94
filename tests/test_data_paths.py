"""Relative paths of data start at the experiment's file, for every source and plug-in, and moved projects resume."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from patients import write_table
from support_paths import SUPPORT

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import Interrupted
from fedloom.core.events import Event, RoundFinished

TOML = f"""
name = "paths"
rounds = 2
clients = 2
strategy = "fedavg"
runtime = {{ name = "inline" }}
workload = {{ name = "{SUPPORT / "patients.py"}", table = "data/patients.csv" }}
"""


def project(folder: Path, toml: str = TOML) -> Path:
    (folder / "data").mkdir(parents=True)
    write_table(folder / "data")
    (folder / "x.toml").write_text(toml, encoding="utf-8")
    return folder


def table(experiment: Experiment) -> str:
    return str(experiment.workload.model_dump()["table"])


def test_paths_of_a_file_start_at_its_folder_and_those_of_the_command_line_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = project(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    assert table(api.load("there/x.toml")) == str(there / "data/patients.csv")
    here = project(tmp_path / "here")
    monkeypatch.chdir(here)
    with caplog.at_level(logging.WARNING):
        assert table(api.load("../there/x.toml")) == str(there / "data/patients.csv")
    assert f"{there / 'data/patients.csv'} is used" in caplog.text and str(here / "data/patients.csv") in caplog.text
    for given in ("workload.table=data/patients.csv", "workload.table=./data/../data/patients.csv"):
        assert api.run(api.load("../there/x.toml", [given]), keep=False).experiment.workload == (
            Experiment.load("x.toml").workload
        ), "the command line's"
    assert table(api.load("../there/x.toml", data_elsewhere=True)) == "data/patients.csv", "for other machines"


@pytest.mark.parametrize(
    "written", ["$DATA/patients.csv", "$DATA", "~/patients.csv", "/nowhere/patients.csv", "nowhere.csv"]
)
def test_paths_that_start_elsewhere_or_are_nowhere_stay_as_written(tmp_path: Path, written: str) -> None:
    there = project(tmp_path / "there", TOML.replace("data/patients.csv", written))
    experiment = api.load(there / "x.toml")
    assert table(experiment) == written
    if written.startswith(("/", "nowhere")):
        with pytest.raises(Exception, match="nowhere"):
            api.run(experiment, keep=False)


SOURCES = {
    **{name: {"source": name, "folder": "data"} for name in ("idx", "cifar10", "stl10", "svhn", "images")},
    "npz": {"source": "npz", "file": "data/patients.csv"},
    "huggingface": {"source": "huggingface", "dataset": "data"},
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_of_images_has_this_rule(tmp_path: Path, source: str) -> None:
    project(tmp_path)
    lines = "\n".join(f'{key} = "{value}"' for key, value in SOURCES[source].items())
    (tmp_path / "x.toml").write_text(
        f'name = "x"\nrounds = 1\nclients = 2\nstrategy = "fedavg"\nworkload.name = "image_classification"\n'
        f"[workload.data]\n{lines}\n",
        encoding="utf-8",
    )
    data = api.load(tmp_path / "x.toml").to_dict()["workload"]["data"]
    key, value = list(SOURCES[source].items())[1]
    assert data[key] == str(tmp_path / value)


def test_names_at_a_hub_and_packaged_models_stay_names(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(
        'name = "x"\nrounds = 1\nclients = 2\nstrategy = "fedavg"\nworkload.name = "image_classification"\n'
        'workload.data = { source = "huggingface", dataset = "some/where" }\n',
        encoding="utf-8",
    )
    assert api.load(tmp_path / "x.toml").to_dict()["workload"]["data"]["dataset"] == "some/where"


class _Stop:
    """Ends a run after its first round."""

    def write(self, event: Event) -> None:
        if isinstance(event, RoundFinished):
            raise KeyboardInterrupt

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("how", ["from its file", "by path", "from Python"])
def test_a_moved_project_resumes_with_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    there = project(tmp_path / "there")
    monkeypatch.chdir(there if how == "from Python" else tmp_path)
    experiment = {
        "from its file": lambda: api.load("there/x.toml"),
        "by path": lambda: api.load("there/x.toml", ["workload.table=there/data/patients.csv"]),
        "from Python": lambda: Experiment.parse(Experiment.load("x.toml", data_elsewhere=True).to_dict()),
    }[how]()
    want = api.run(experiment, out=there / "runs/whole").summary.model_sha256
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        api.run(experiment, out=there / "runs/one", sinks=[_Stop()])
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "elsewhere" / "again"
    moved.parent.mkdir()
    there.rename(moved)
    done = api.resume(moved / "runs/one")
    assert done.summary.model_sha256 == want and table(done.experiment) == str(moved / "data/patients.csv")


def test_a_run_folder_that_is_moved_alone_finds_the_data_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = project(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        api.run(api.load("there/x.toml"), out=there / "runs/one", sinks=[_Stop()])
    (tmp_path / "far/away").mkdir(parents=True)
    (there / "runs/one").rename(tmp_path / "far/away/one")
    done = api.resume(tmp_path / "far/away/one")
    assert done.summary.status == "done" and table(done.experiment) == str(there / "data/patients.csv")
    shutil.rmtree(there / "data")
    with pytest.raises(Exception, match=r"patients\.csv"):
        api.resume(tmp_path / "far/away/one", overrides=["rounds=3"])

"""A run has copies of the code its experiment names by path: moved projects and moved runs resume."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedloom import api
from fedloom.core.code_files import code_digest
from fedloom.core.config import Experiment
from fedloom.core.errors import UnknownName
from fedloom.server.run_queue import RunQueue
from fedloom.server.store import plugin_copies
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.testing.linear import __file__ as LINEAR

EVERY = """
from fedloom.selection.uniform.selection import build_selection
from fedloom.strategies.fedavg.strategy import FedAvg
from fedloom.testing.linear import Config as Linear, build_workload


class Config(Linear):
    pass


def build_strategy(config, experiment):
    return FedAvg()
"""
TOML = """
name = "moved"
rounds = 2
clients = 3
strategy = "./mine.py"
workload = "./mine.py"
selection = "./choice"
[runtime]
name = "inline"
"""


def project(folder: Path) -> Path:
    """A project with a plug-in of several kinds in a file, and one that is a folder."""
    (folder / "choice").mkdir(parents=True)
    (folder / "mine.py").write_text(EVERY, encoding="utf-8")
    (folder / "choice" / "__init__.py").write_text('"""Choose evenly."""\n', encoding="utf-8")
    (folder / "choice" / "config.py").write_text(
        "from fedloom.selection.uniform.config import Config as Config\n", encoding="utf-8"
    )
    (folder / "choice" / "names.py").write_text(
        "from fedloom.selection.uniform.selection import build_selection\n", encoding="utf-8"
    )
    (folder / "choice" / "selection.py").write_text(
        "from .names import build_selection as build_selection\n", encoding="utf-8"
    )
    (folder / "x.toml").write_text(TOML, encoding="utf-8")
    return folder


def notices(run: Path) -> list[str]:
    return [str(event["message"]) for event in DiskRunStore.open(run).events() if event["event"] == "Notice"]


@pytest.mark.parametrize("moved", ["project", "run", "both", "neither", "project deleted"])
def test_a_moved_project_or_run_resumes(tmp_path: Path, moved: str) -> None:
    home = project(tmp_path / "home")
    api.run(api.load(home / "x.toml"), out=home / "runs" / "a")
    want = api.run(api.load(home / "x.toml", ["rounds=4"]), keep=False)
    run = home / "runs" / "a"
    if moved in ("run", "project deleted"):
        run = Path(shutil.move(run, tmp_path / "elsewhere"))
    if moved in ("project", "both"):
        shutil.move(home, tmp_path / "new home")
        run = tmp_path / "new home" / "runs" / "a"
    if moved == "both":
        run = Path(shutil.move(run, tmp_path / "elsewhere"))
    if moved == "project deleted":
        shutil.rmtree(home)
    resumed = api.resume(run, overrides=["rounds=4"])
    assert resumed.summary.model_sha256 == want.summary.model_sha256
    assert notices(run) == []
    moved_again = Path(shutil.move(run, tmp_path / "again"))
    assert len(api.resume(moved_again, overrides=["rounds=5"]).history) == 5


def test_a_changed_plugin_is_named_and_the_copy_is_resumed(tmp_path: Path) -> None:
    home = project(tmp_path / "home")
    api.run(api.load(home / "x.toml"), out=home / "run")
    want = api.run(api.load(home / "x.toml", ["rounds=4"]), keep=False)
    before = hashlib.sha256((home / "mine.py").read_bytes()).hexdigest()
    (home / "mine.py").write_text("raise SystemExit('edited')\n", encoding="utf-8")
    (home / "choice" / "names.py").write_text("", encoding="utf-8")
    after = hashlib.sha256((home / "mine.py").read_bytes()).hexdigest()
    home = Path(shutil.move(home, tmp_path / "moved"))
    resumed = api.resume(home / "run", overrides=["rounds=4"])
    assert resumed.summary.model_sha256 == want.summary.model_sha256
    said = {message.partition(":")[0]: message for message in notices(home / "run")}
    assert sorted(said) == ["selection.name", "strategy.name", "workload.name"]
    assert (
        f"SHA-256 {before} then, {after} now" in said["strategy.name"]
        and str(home / "mine.py") in said["strategy.name"]
    )
    assert "from plugins/strategy/mine.py" in said["workload.name"], "one file, one copy"
    assert "choice has changed" in said["selection.name"]


def test_a_changed_copy_is_named(tmp_path: Path) -> None:
    home = project(tmp_path / "home")
    api.run(api.load(home / "x.toml"), out=home / "run")
    copy = home / "run/plugins/strategy/mine.py"
    copy.write_text(EVERY + "# more\n", encoding="utf-8")
    api.resume(home / "run", overrides=["rounds=3"])
    assert any("strategy.name: the run's copy" in message and "SHA-256" in message for message in notices(home / "run"))


def test_code_that_a_setting_names_is_found_beside_the_experiment_and_copied(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    home = tmp_path / "home"
    home.mkdir()
    (home / "net.py").write_text("def build(shape, labels): ...\n", encoding="utf-8")
    (home / "x.toml").write_text(
        'rounds = 1\nclients = 2\nstrategy = "mano"\n[workload]\nname = "mano"\nclassifier = "./net.py:build"\n',
        encoding="utf-8",
    )
    experiment = Experiment.load(home / "x.toml")
    assert [each.path for each in experiment.code_files()] == [str(home / "net.py")]
    store = DiskRunStore.create(tmp_path / "run", "run")
    store.begin(experiment)
    (home / "net.py").unlink()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    (again,) = DiskRunStore.open(tmp_path / "moved").experiment().code_files()
    assert again.path == str(tmp_path / "moved/plugins/workload.classifier/net.py") and again.rest == ":build"


def test_a_path_on_the_command_line_starts_at_the_working_directory(
    linear: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(LINEAR, "here.py")
    api.run(linear(rounds=1).override(["workload.name=here.py"]), out="run")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert len(api.resume("../run", overrides=["rounds=2"]).history) == 2


def test_a_folder_that_is_no_package_is_named(linear: Callable[..., Experiment], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnknownName, match=r"'empty' has no __init__\.py"):
        linear(strategy="./empty")
    with pytest.raises(UnknownName, match="file 'none/there' not found"):
        linear(strategy="./none/there")


def test_on_a_server_a_run_has_its_copy_of_code_too(linear: Callable[..., Experiment], tmp_path: Path) -> None:
    shutil.copy(LINEAR, "allowed.py")
    (tmp_path / "state").mkdir(mode=0o700)
    queue = RunQueue(tmp_path / "state", lambda store, emit, stop: pytest.fail("not started"))
    run_id = queue.submit({**linear(rounds=1).to_dict(), "workload": {"name": "allowed.py"}})
    queue.close()
    run = tmp_path / "state/runs" / run_id
    store, digest = DiskRunStore.open(run), hashlib.sha256(Path(LINEAR).read_bytes()).hexdigest()
    Path("allowed.py").write_text("", encoding="utf-8")
    assert store.experiment().workload.name == str(run / "plugins/workload/allowed.py")
    sent = store.experiment().for_nodes(code_names=True)
    assert sent["workload"]["name"] == f"allowed.py#sha256={digest}", "nodes get the name and the digest"
    assert str(tmp_path) not in json.dumps(sent)
    (said,) = store.changed_code()
    assert said.startswith("workload.name: ") and "is resumed as it was, from plugins/workload/allowed.py" in said


APP = """
from fedloom.testing.linear import Linear
from pathlib import Path

SCALE = float((Path(__file__).parent / "scale.txt").read_text())
"""
MANIFEST = """
[project]
name = "app"

[tool.flwr.app]
publisher = "nobody"

[tool.flwr.app.components]
serverapp = "code.server:app"
clientapp = "code.client:app"
"""


@pytest.mark.parametrize("run_in_the_app", [False, True])
def test_a_flower_apps_folder_is_found_beside_the_experiment_and_copied(tmp_path: Path, run_in_the_app: bool) -> None:
    home = tmp_path / "home"
    (home / "app" / "code").mkdir(parents=True)
    (home / "app" / "pyproject.toml").write_text(MANIFEST, encoding="utf-8")
    (home / "app" / "code" / "client.py").write_text(APP, encoding="utf-8")
    (home / "app" / "code" / "scale.txt").write_text("2.0", encoding="utf-8")
    (home / "x.toml").write_text(
        "rounds = 1\nclients = 2\n"
        '[strategy]\nname = "flower_app"\napp = "./app"\nserverapp = "code.server:app"\n'
        '[workload]\nname = "flower"\napp = "app"\nclientapp = "code.client:app"\n',
        encoding="utf-8",
    )
    experiment = Experiment.load(home / "x.toml")
    assert {each.path for each in experiment.code_files(apps=True)} == {str(home / "app")}, "found beside the file"
    earlier = home / "app" / "runs" / "earlier"
    DiskRunStore.create(earlier, "earlier").begin(experiment)
    run = home / "app" / "runs" / "new" if run_in_the_app else tmp_path / "run"
    store = DiskRunStore.create(run, "new")
    store.begin(experiment)
    names = sorted(path.relative_to(run).as_posix() for path in (run / "plugins").rglob("*") if path.is_file())
    assert names == [
        f"plugins/strategy.app/app/{name}" for name in ("code/client.py", "code/scale.txt", "pyproject.toml")
    ], "one copy for both halves, without runs"
    assert list(store.changed_code()) == []
    run = Path(shutil.move(run, tmp_path / "moved"))
    shutil.rmtree(home)
    again = DiskRunStore.open(run).experiment()
    copy = str(run / "plugins/strategy.app/app")
    assert [(each.dotted, each.path) for each in again.code_files(apps=True)] == [
        ("strategy.app", copy),
        ("workload.app", copy),
    ]
    (run / "plugins/strategy.app/app/code/scale.txt").write_text("3.0", encoding="utf-8")
    assert any("strategy.app: the run's copy" in said for said in DiskRunStore.open(run).changed_code())


def test_a_run_that_moved_out_of_an_apps_folder_does_not_read_the_folder_it_moved_to(tmp_path: Path) -> None:
    """From the new place `../..`, the app's folder seen from the run, is a folder with files of any names."""
    app, far = tmp_path / "app", tmp_path / "far"
    (app / "code").mkdir(parents=True)
    (app / "pyproject.toml").write_text(MANIFEST, encoding="utf-8")
    far.mkdir()
    (far / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"")
    workload = {"name": "flower", "app": str(app), "clientapp": "code.client:app"}
    experiment = Experiment.parse({"rounds": 1, "clients": 2, "strategy": "fedavg", "workload": workload})
    DiskRunStore.create(app / "runs" / "one", "one").begin(experiment)
    shutil.move(app / "runs" / "one", far / "deep" / "one")
    store = DiskRunStore.open(far / "deep" / "one")
    assert list(store.changed_code()) == []
    (app / "pyproject.toml").write_text(MANIFEST + "# more\n", encoding="utf-8")
    (said,) = store.changed_code()
    assert f"workload.app: {app} has changed since the run began" in said


def test_files_whose_names_are_not_utf8_count_in_a_folders_digest(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.py")
    odd.write_bytes(b"x = 1\n")
    line = b"caf\xe9.py\0" + hashlib.sha256(b"x = 1\n").hexdigest().encode() + b"\n"
    assert code_digest(tmp_path) == hashlib.sha256(line).hexdigest()


def test_an_app_with_data_in_its_folder_is_not_copied_and_the_log_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugin_copies, "MAX_APP_BYTES", 100)
    (tmp_path / "app" / "data").mkdir(parents=True)
    (tmp_path / "app" / "pyproject.toml").write_text(MANIFEST, encoding="utf-8")
    (tmp_path / "app" / "data" / "all.bin").write_bytes(bytes(200))
    workload = {"name": "flower", "app": str(tmp_path / "app"), "clientapp": "code.client:app"}
    experiment = Experiment.parse({"rounds": 1, "clients": 2, "strategy": "fedavg", "workload": workload})
    store = DiskRunStore.create(tmp_path / "run", "run")
    store.begin(experiment)
    assert not (tmp_path / "run" / "plugins").exists() and store.experiment() == experiment
    (record,) = [record for record in caplog.records if "up to which a run copies an app" in record.getMessage()]
    assert f"workload.app: {tmp_path / 'app'} has 0 MB" in record.getMessage()

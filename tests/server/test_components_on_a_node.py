"""Components of a Flower app on a joined node that allows such apps: those of the listed app, and no others."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from shell import Shell

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.testing.fleet import wait_until

ROOT = Path(__file__).parents[2]
ODD = {
    "a module of Python's": {"clientapp": "this:app"},
    "a function": {"initial_arrays": "os:abort"},
    "a module of fedloom's": {"clientapp": "fedloom.cli.app:main"},
    "a class of the app's library": {"initial_arrays": "subprocess:Popen"},
    "nothing": {"clientapp": ":app"},
}


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    with contextlib.closing(Shell(tmp_path)) as shell:
        yield shell


@pytest.mark.slow
def test_components_that_are_not_the_apps_are_refused_and_the_node_lives(shell: Shell, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    app = tmp_path / "quickstart"
    shutil.copytree(ROOT / "examples" / "quickstart", app, ignore=shutil.ignore_patterns("__pycache__"))
    shell.serve(0)
    token = shell.run("token", "create", "--name", "node", "--identity", "state/admin").strip()
    shell.run("join", token, "--identity", "node", "--allow=flower")
    policy = tmp_path / "node" / "policy.toml"
    policy.write_text(f"code = [{json.dumps(str(app))}]\n{policy.read_text(encoding='utf-8')}", encoding="utf-8")
    process, log = shell.start("client", "--identity", "node")
    wait_until(lambda: "connected" in shell.run("nodes", "--identity", "state/admin") or True, 60)
    wait_until(lambda: "node" in shell.run("nodes", "--identity", "state/admin"), 60, "the node")
    sound = api.load(str(app)).to_dict()
    for what, settings in ODD.items():
        values = {**sound, "workload": {**sound["workload"], **settings}}
        with contextlib.suppress(Exception):
            Experiment.parse(values)
        (tmp_path / "x.toml").write_text(tomli_w.dumps(_without_none(values)), encoding="utf-8")
        said = shell.run("submit", "x.toml", "--identity", "state/admin", code=1)
        assert "names code that the node's policy does not allow" in said or "every one refuses it" in said, (
            what,
            said,
        )
        assert process.poll() is None, (what, log.read_text(encoding="utf-8")[-2000:])
    assert "Zen of Python" not in log.read_text(encoding="utf-8")
    assert not list((tmp_path / "state" / "runs").glob("*")), "nothing was queued"


def _without_none(value: object) -> dict[str, object]:
    assert isinstance(value, dict)
    return {
        key: _without_none(inner) if isinstance(inner, dict) else inner
        for key, inner in value.items()
        if inner is not None
    }

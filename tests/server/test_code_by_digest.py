"""A plug-in's file and a Flower app on a running server with a joined node: found on each by name and SHA-256."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Shell

from fedloom import api
from fedloom.core.code_names import CodeName
from fedloom.core.config import Experiment
from fedloom.testing.fleet import wait_until

ROOT = Path(__file__).parents[2]
APP = ROOT / "examples/quickstart"
TOML = """
name = "clipped"
rounds = 2
clients = 4
strategy = { name = "./clipped_steps.py", limit = 0.5 }
[workload]
name = "image_classification"
model = { name = "mlp", hidden = [8] }
data = { source = "digits" }
"""
PLACES = ("hers", "of-server", "of-node")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    with contextlib.closing(Shell(tmp_path)) as shell:
        yield shell


def ended(folder: Path, what: str) -> dict[str, str | None]:
    wait_until((folder / "summary.json").exists, 90, f"the end of {what}")
    summary: dict[str, str | None] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


@pytest.mark.slow
def test_each_machine_loads_its_own_copy_and_no_other_content(shell: Shell, tmp_path: Path) -> None:
    for place in PLACES:
        (tmp_path / place).mkdir()
        shutil.copy(ROOT / "examples/clipped_steps.py", tmp_path / place)
        shutil.copytree(APP, tmp_path / place / "quickstart", ignore=shutil.ignore_patterns("__pycache__"))
    hers, of_server, of_node = (tmp_path / place for place in PLACES)
    (hers / "x.toml").write_text(TOML, encoding="utf-8")
    shell.serve(0, *(f"--allow={of_server / name}" for name in ("clipped_steps.py", "quickstart")))
    for name, role in (("ann", "user"), ("node", "node")):
        token = shell.run("token", "create", "--name", name, "--role", role, "--identity", "state/admin").strip()
        shell.run("join", token, "--identity", name, "--allow=image_classification", "--allow=flower")
    policy = tmp_path / "node" / "policy.toml"
    listed = json.dumps([str(of_node / "clipped_steps.py"), str(of_node / "quickstart")])
    policy.write_text(f"code = {listed}\n{policy.read_text(encoding='utf-8')}", encoding="utf-8")
    _, log = shell.start("client", "--identity", "node")

    def submit(target: Path, code: int = 0) -> str:
        return shell.run("submit", str(target), "--identity", "ann", code=code).strip()

    for target in (hers / "x.toml", hers / "quickstart"):
        folder = tmp_path / "state" / "runs" / submit(target)
        found = ended(folder, f"{target.name}; the node said {log.read_text(encoding='utf-8')[-2000:]}")
        want = api.run(api.load(str(target), ["runtime.name=inline"]), keep=False)
        assert (found["status"], found["error"]) == ("done", None)
        assert found["model_sha256"] == want.summary.model_sha256
    copies = (tmp_path / "state" / "runs").glob("*clipped*/plugins/strategy/clipped_steps.py")
    assert next(copies).read_bytes() == (hers / "clipped_steps.py").read_bytes(), "the run has its copy"
    sent = Experiment.load(hers / "x.toml").for_nodes(code_names=True)
    assert str(tmp_path) not in json.dumps(sent)

    code = CodeName.of(hers / "clipped_steps.py")
    (of_node / "clipped_steps.py").write_text("raise SystemExit('another content')\n", encoding="utf-8")
    folder = tmp_path / "state" / "runs" / submit(hers / "x.toml")
    assert ended(folder, "a run whose content the node has had")["status"] == "done"
    for lab in (hers, of_server):
        with (lab / "clipped_steps.py").open("a", encoding="utf-8") as file:
            file.write("# another version\n")
    folder = tmp_path / "state" / "runs" / submit(hers / "x.toml")
    wait_until(lambda: "is not listed here" in log.read_text(encoding="utf-8"), 60, "the refusal")
    assert CodeName.of(hers / "clipped_steps.py").sha256 in log.read_text(encoding="utf-8")
    with (hers / "clipped_steps.py").open("a", encoding="utf-8") as file:
        file.write("# hers alone\n")
    said = submit(hers / "x.toml", code=1)
    assert "is code that users' runs may not use" in said and code.sha256 not in said
    assert CodeName.of(of_server / "clipped_steps.py").sha256 in said, "what the server has is said"

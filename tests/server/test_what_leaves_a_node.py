"""A really joined node: a user's run reads and is told what the node's policy gives, and nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Shell

from fedloom.testing.fleet import wait_until

RUN = """
name = "{name}"
rounds = 1
clients = 1
strategy = "fedavg"
[evaluation]
every = 0
[workload]
name = "{workload}"
partition = {{ scheme = "iid" }}
data = {data}
"""
KEY_READERS = {
    "a reader of texts": ("text_classification", '{source="huggingface",dataset="text",label_column="text"}'),
    "a reader of images": ("image_classification", '{source="huggingface",dataset="imagefolder"}'),
    "an empty folder": ("image_classification", '{source="images",folder=""}'),
    "an empty pattern's folder": ("causal_lm", '{path="",pattern="*.pem"}'),
    "the folder it works in": ("image_classification", '{source="images",folder="."}'),
    "its identity": ("causal_lm", '{path="$DATA/../node",pattern="*.pem"}'),
    "any column": (
        "text_classification",
        '{source="csv",file="$DATA/notes.csv",text_column="label",label_column="notes"}',
    ),
}


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    with contextlib.closing(Shell(tmp_path)) as shell:
        yield shell


def member(shell: Shell, name: str, role: str, *options: str) -> None:
    token = shell.run("token", "create", "--name", name, "--role", role, "--identity", "state/admin").strip()
    shell.run("join", token, "--identity", name, *options)


@pytest.mark.slow
def test_a_users_runs_get_neither_the_key_nor_a_column_that_was_not_given(shell: Shell, tmp_path: Path) -> None:
    """The layout of a device: its identity lies in a folder below the one it is started in."""
    shell.serve(0)
    (tmp_path / "data").mkdir()
    rows = [f"words {i},{'ab'[i % 2]},Patient {i} of 12 Mill Lane is ill" for i in range(30)]
    (tmp_path / "data" / "notes.csv").write_text("text,label,notes\n" + "\n".join(rows), encoding="utf-8")
    member(shell, "ann", "user")
    allowed = [f"--allow={name}={tmp_path / 'data'}" for name in ("text_classification", "causal_lm")]
    member(shell, "node", "node", *allowed, "--allow=image_classification")
    assert 'columns = ["label", "text"]' in (tmp_path / "node" / "policy.toml").read_text(encoding="utf-8")
    shell.start("client", "--identity", "node")
    for number, (what, (workload, data)) in enumerate(KEY_READERS.items()):
        (tmp_path / "x.toml").write_text(RUN.format(name=f"n{number}", workload=workload, data=data), encoding="utf-8")
        said = shell.run("submit", "x.toml", "--identity", "ann", code=1)
        reason = "is an empty path" if '""' in data else "every one refuses it:\n  node: "
        assert reason in said, (what, said)
    assert not list((tmp_path / "state" / "runs").glob("*n[0-9]*")), "nothing was queued"
    kept = [line for line in (tmp_path / "node" / "key.pem").read_text(encoding="utf-8").splitlines() if line]
    reported = "".join(
        path.read_text(encoding="utf-8", errors="replace") for path in (tmp_path / "state/runs").rglob("*.*")
    )
    assert not any(line in reported for line in kept) and "Mill Lane" not in reported
    (tmp_path / "x.toml").write_text(
        RUN.format(name="good", workload="text_classification", data='{source="csv",file="$DATA/notes.csv"}'),
        encoding="utf-8",
    )
    folder = tmp_path / "state" / "runs" / shell.run("submit", "x.toml", "--identity", "ann").split()[0]
    wait_until((folder / "summary.json").exists, 90, "the end of a run of what the policy gives")
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["status"] == "done"
    names = json.loads((folder / "workload.json").read_text(encoding="utf-8"))["label_names"]
    assert len(names) == 2 and all(name.startswith("sha256:") for name in names)
    assert list((tmp_path / "node" / "work").iterdir()) == [], "the agent works in an empty folder"

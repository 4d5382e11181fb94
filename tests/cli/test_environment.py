"""Commands work, and write the same, whatever the user's locale, terminal, time zone and umask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedloom.reporting.run_folder import RunFolder

NAME = "Größe λ…"
TOML = f"""
name = "{NAME}"
rounds = 2
clients = 4
strategy = "fedavg"
workload = "fedloom.testing.linear"
[runtime]
name = "inline"
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0"}
"""Files and terminals are ASCII by default, as no real system is any more."""
LATIN = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}
FAR = {
    "TZ": "Pacific/Kiritimati",
    "LANG": "tr_TR.UTF-8",
    "LC_ALL": "",
    "NO_COLOR": "1",
    "COLUMNS": "20",
    "TERM": "dumb",
}


def fedloom(*arguments: str, umask: int, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "fedloom", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, umask=umask, capture_output=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("environment", "umask"), [(ASCII, 0o077), (LATIN, 0o000), (FAR, 0o027)], ids=["ascii", "latin", "far"]
)
def test_a_run_and_its_report(environment: dict[str, str], umask: int, tmp_path: Path) -> None:
    Path("it.toml").write_text(TOML, encoding="utf-8")
    ran = fedloom("run", "it.toml", "--out", "out", "--json", umask=umask, **environment)
    assert ran.returncode == 0, ran.stderr
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    assert json.loads(ran.stdout.decode(encoding).splitlines()[-1])["name"] == NAME
    assert RunFolder.read("out").name == NAME
    assert f"<title>{NAME}" in Path("out/report.html").read_text(encoding="utf-8")
    for command in (["report", "out"], ["compare", "out", "out"], ["resume", "out"], ["list"], ["show", "mano"]):
        again = fedloom(*command, umask=umask, **environment)
        assert b"Error" not in again.stderr and b"internal" not in again.stderr, (command, again.stderr)

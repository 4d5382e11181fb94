"""Runs in a process of their own that are killed inside a round, and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import tomli_w

from fedloom import api
from fedloom.core.config import Experiment

RUN = "import sys; from fedloom import api; api.run(api.load(sys.argv[1]), out=sys.argv[2])"


def killed_and_resumed(made: Experiment, folder: Path, after: int) -> str | None:
    """Run an experiment, kill -9 once this many rounds are recorded, resume it here; its model's digest."""
    (folder / "it.toml").write_text(tomli_w.dumps(made.to_dict()), encoding="utf-8")
    run = subprocess.Popen([sys.executable, "-c", RUN, "it.toml", "cut"], cwd=folder)
    rounds, deadline = folder / "cut" / "rounds.jsonl", time.monotonic() + 120
    while not (rounds.exists() and rounds.read_text(encoding="utf-8").count("\n") >= after):
        assert run.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.002)
    os.kill(run.pid, signal.SIGKILL)
    run.wait(60)
    recorded = rounds.read_text(encoding="utf-8").count("\n")
    assert after <= recorded < (made.max_rounds or 0), f"killed after round {recorded} of {made.max_rounds}"
    return api.resume(folder / "cut").summary.model_sha256

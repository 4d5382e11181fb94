"""A model defined in a program that Python reads from its standard input reaches worker processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """\
import numpy as np, fedloom
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
    def forward(self, x):
        return self.layer(x)

rng = np.random.default_rng(0)
x = rng.standard_normal((80, 4)).astype(np.float32)
y = (x[:, 0] > 0).astype(np.int64)
result = fedloom.run(model=Net, data=(x, y), clients=4, rounds=1, out="run", runtime="process", workers=1)
print("SHA", result.summary.model_sha256, "predicted", result.predict(x).shape)
"""


def printed(folder: Path, *words: str, stdin: str = "") -> str:
    """Return what a program prints after the run."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, *words],
        input=stdin,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"SHA ([0-9a-f]{64}) predicted (\(.*\))$", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout + done.stderr
    return found[0]


@pytest.mark.slow
def test_a_script_on_standard_input_and_an_interactive_session_run_as_a_file_does(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM, encoding="utf-8")
    want = printed(tmp_path / "file", str(file))
    assert printed(tmp_path / "script", "-", stdin=PROGRAM) == want
    assert printed(tmp_path / "session", "-i", stdin=PROGRAM) == want

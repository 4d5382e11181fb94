"""The example of three hospitals, as `make hospitals` runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "hospitals" / "hospitals.py"


@pytest.mark.slow
def test_every_step_does_what_it_should(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path / "hospitals")], capture_output=True, encoding="utf-8", timeout=560
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every step did what it should" in done.stdout and "is client 1 again" in done.stdout

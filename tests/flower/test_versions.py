"""Flower moves its modules from version to version; the adapter must not mind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedloom

VERSIONS = ["1.22.0", "1.26.1", "1.29.0", "1.32.1", "1.34.0", "1.38.0", "1.41.0"]
_HERE = Path(__file__).parent


def test_strategies_are_hosted_by_the_installed_version() -> None:
    _check(sys.executable)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", VERSIONS)
def test_strategies_are_hosted_by(version: str, tmp_path: Path) -> None:
    """Twelve strategies and two wrappers in a venv of their own, against the same objects called by hand."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    needs = [f"flwr=={version}", "numpy", "pydantic", "ml_dtypes"]
    installed = subprocess.run(
        [python, "-m", "pip", "install", "-q", *needs], capture_output=True, encoding="utf-8", check=False
    )
    if installed.returncode:
        pytest.skip(f"cannot install flwr {version}: {installed.stderr.strip().splitlines()[-1]}")
    assert _check(str(python)) == version


def _check(python: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(fedloom.__file__).parents[1])}
    done = subprocess.run(
        [python, _HERE / "host_all.py"], env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["hosted"]) >= 12
    return str(found["flwr"])

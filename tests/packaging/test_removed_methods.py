"""A method is its folder: without it, and without what builds on it, everything else goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedloom

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "support" / "removed_methods.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_method_can_be_removed(tmp_path: Path) -> None:
    shutil.copytree(Path(fedloom.__file__).parent, tmp_path / "fedloom", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    checked = done.stdout.splitlines()
    assert len(checked) > 30 and all(": passed in " in line for line in checked), done.stdout


KEPT = {"strategies": "fedavg", "selection": "uniform", "workloads": "image_classification", "monitors": ""}
PLATFORM = ("tests/core", "tests/proto", "tests/reporting", "tests/studies", "tests/cli/test_experiments.py")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_platform_s_fast_tests_pass_with_fedavg_and_one_workload_alone(tmp_path: Path) -> None:
    unneeded = shutil.ignore_patterns("__pycache__", ".*", "runs", "build", "*.egg-info")
    shutil.copytree(ROOT, tmp_path / "tree", ignore=unneeded)
    removed = set[str]()
    for kind, kept in KEPT.items():
        for path in sorted((tmp_path / "tree" / "src" / "fedloom" / kind).iterdir()):
            if path.name.startswith("_") or path.stem == kept:
                continue
            removed |= {path.stem, *(each.stem for each in path.rglob("*.toml"))}
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert {"sfedca", "sfedca-smoke", "mano", "flora"} <= removed
    places = (tmp_path / "tree" / "src", tmp_path / "tree" / "tests" / "support")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "only_platform", "-p", "no:cacheprovider", "-m", "not slow", *PLATFORM],
        cwd=tmp_path / "tree",
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, places)),
            "FEDLOOM_REMOVED": ",".join(sorted(removed)),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 600, done.stdout[-500:]

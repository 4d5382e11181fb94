"""A method is its folder: without it, and without what builds on it, everything else works."""

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


STAYS = {"strategies": "fedavg", "selection": "uniform", "workloads": "image_classification", "monitors": ""}
PARTS = {
    "core": (("tests/core", "tests/proto", "tests/reporting", "tests/studies", "tests/cli/test_experiments.py"), 600),
    "server": (("tests/server",), 700),
    "client": (("tests/client", "tests/simulation"), 500),
}
"""Tests of the platform, with the least number of them that needs no method."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A copy of the checkout without methods but FedAvg and one workload, and the names of what is missing."""
    place = tmp_path_factory.mktemp("without") / "tree"
    unneeded = shutil.ignore_patterns("__pycache__", ".*", "runs", "build", "*.egg-info")
    shutil.copytree(ROOT, place, ignore=unneeded)
    removed = set[str]()
    for kind, stays in STAYS.items():
        for path in sorted((place / "src" / "fedloom" / kind).iterdir()):
            if path.name.startswith("_") or path.stem == stays:
                continue
            removed |= {path.stem, *(each.stem for each in path.rglob("*.toml"))}
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for preset in sorted((place / "src" / "fedloom" / "presets").glob("*.toml")):  # those of a missing method go, too
        if set(re.findall(r'"([a-z_]+)"', preset.read_text(encoding="utf-8"))) & removed:
            removed.add(preset.stem)
            preset.unlink()
    assert {"sfedca", "sfedca-smoke", "mano", "flora", "text-fedavg"} <= removed
    return place, removed


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", PARTS)
def test_the_platforms_fast_tests_pass_with_fedavg_and_one_workload_alone(
    tree: tuple[Path, set[str]], part: str
) -> None:
    place, removed = tree
    tests, least = PARTS[part]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "only_platform", "-p", "no:cacheprovider", "-m", "not slow", *tests],
        cwd=place,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (place / "src", place / "tests" / "support"))),
            "FEDLOOM_REMOVED": ",".join(sorted(removed)),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > least, done.stdout[-500:]

"""A paper as a package of its own: installed beside fedloom in an empty environment, listed, run, studied."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from fedloom.core.seeds import generator

ROOT = Path(__file__).parents[2]
ROUNDS, SEED, Q, LIPSCHITZ = 4, 1, 1.0, 10.0
FEATURES, EXAMPLES, CLIENTS = 4, 30, 10
Floats = npt.NDArray[Any]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with fedloom and the example; what they need is this one's. Nothing is fetched."""
    home = tmp_path_factory.mktemp("home")
    venv.create(home / "env", with_pip=False)
    (site,) = (home / "env" / "lib").glob("python*/site-packages")
    packages = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "packages.pth").write_text("\n".join(packages) + "\n", encoding="utf-8")
    source = home / "fedloom"
    unneeded = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=unneeded)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "examples" / "qffl", home / "qffl", ignore=unneeded)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "env" / "bin" / "python")]
    pip += ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, str(source), str(home / "qffl")], check=True, timeout=300)
    return home


def fedloom(home: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(home / "env" / "bin" / "fedloom"), *words]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def data(seed: int, client: int) -> tuple[Floats, Floats]:
    """x and y of a client: every fifth one's law is one away from the others'."""
    law = generator(seed, "data", "law").normal(size=FEATURES) + (client % 5 == 0)
    rng = generator(seed, "data", "client", client)
    x = rng.normal(size=(EXAMPLES, FEATURES))
    y = x @ law + 0.1 * rng.normal(size=EXAMPLES)
    return x.astype(np.float32), y.astype(np.float32)


def loss(seed: int, client: int, w: Floats) -> float:
    x, y = data(seed, client)
    return float(np.mean((x @ w - y).astype(np.float64) ** 2))


def model_after(cohorts: list[list[int]], seed: int, q: float) -> Floats:
    """The formula of the paper, over the cohorts that a run has drawn."""
    w = np.zeros(FEATURES, np.float32)
    for cohort in cohorts:
        above, below = np.zeros(FEATURES), 0.0
        for client in cohort:
            (x, y), own = data(seed, client), np.array(w)
            for _ in range(5):
                own -= np.float32(0.1) * (2 * x.T @ (x @ own - y) / np.float32(EXAMPLES))
            before, apart = loss(seed, client, w), LIPSCHITZ * (w.astype(np.float64) - own)
            above += before**q * apart
            below += q * before ** (q - 1) * float(apart @ apart) + LIPSCHITZ * before**q
        w = (w - above / below).astype(np.float32)
    return w


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]


def test_it_is_listed_wherever_it_contributes(home: Path) -> None:
    for kind in ("strategies", "workloads", "monitors", "presets", "studies"):
        assert "qffl" in fedloom(home, "list", kind).split(), kind
    assert "qffl" not in fedloom(home, "list", "selection").split()


def test_its_preset_gives_the_formula_s_numbers(home: Path) -> None:
    words = ["run", "qffl", "--runtime", "inline", "--out", "run", "--set", f"rounds={ROUNDS}", "--json"]
    result = json.loads(fedloom(home, *words).splitlines()[-1])
    rounds = records(home / "run")
    cohorts = [record["cohort"] for record in rounds]
    assert result["rounds"] == ROUNDS and all(len(cohort) == 5 for cohort in cohorts)
    expected = model_after(cohorts, SEED, Q)
    (found,) = load_file(home / "run" / "model" / "model.safetensors").values()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    everybody = [loss(SEED, client, expected) for client in range(CLIENTS)]
    assert rounds[-1]["monitor"]["worst"] == pytest.approx(max(everybody), rel=1e-4)
    assert rounds[-1]["monitor"]["mean"] == pytest.approx(sum(everybody) / CLIENTS, rel=1e-4)
    reported = rounds[-1]["info"]["losses"]
    before = model_after(cohorts[:-1], SEED, Q)
    assert reported == {str(client): pytest.approx(loss(SEED, client, before), rel=1e-4) for client in cohorts[-1]}
    html = (home / "run" / "report.html").read_text(encoding="utf-8")
    assert "Fairness" in html and "Loss of the round" in html


def test_its_study_compares_its_own_numbers(home: Path) -> None:
    words = ["--seeds", "1", "--jobs", "1", "--set", f"rounds={ROUNDS}", "--out", "study"]
    fedloom(home, "study", "qffl", *words)
    arms = json.loads((home / "study" / "study.json").read_text(encoding="utf-8"))["scenarios"]["base"]["arms"]
    worst = {}
    for arm, q in (("plain", 0.0), ("fair", 1.0), ("fairer", 5.0)):
        cohorts = [record["cohort"] for record in records(home / "study" / "runs" / "base" / arm / "seed-100")]
        before, last = model_after(cohorts[:-1], 100, q), model_after(cohorts, 100, q)
        worst[arm] = max(loss(100, client, before) for client in cohorts[-1])
        everybody = [loss(100, client, last) for client in range(CLIENTS)]
        numbers = arms[arm]["runs"]["100"]
        assert numbers["worst_loss"] == pytest.approx(worst[arm], rel=1e-4)
        assert numbers["monitored_gap"] == pytest.approx(max(everybody) - sum(everybody) / CLIENTS, rel=1e-4)
    assert arms["fair"]["estimates"]["worst_loss_ratio"]["value"] == pytest.approx(
        worst["fair"] / worst["plain"], rel=1e-4
    )
    assert math.isfinite(arms["fair"]["estimates"]["final_difference"]["value"])
    html = (home / "study" / "study.html").read_text(encoding="utf-8")
    assert "worst client&#x27;s loss" in html or "worst client's loss" in html
    assert "worst minus mean, all clients" in html

"""A workload's helpers in every runtime: elsewhere or here, with the same bits, and gone with the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support_paths import SUPPORT

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import NoCapacity
from fedloom.core.protocols import Resources
from fedloom.testing.fleet import wait_until

ROUNDS, HELPERS = 3, 2


def experiment(name: str, log: Path, workers: int = 1) -> Experiment:
    workload = {"name": str(SUPPORT / "helping.py"), "helpers": HELPERS, "log": str(log)}
    return Experiment.parse(
        {
            "rounds": ROUNDS,
            "clients": 6,
            "cohort": 4,
            "strategy": "fedavg",
            "workload": workload,
            "runtime": {"name": name, "workers": workers},
        }
    )


def run(name: str, log: Path, workers: int = 1) -> api.RunResult:
    log.mkdir()
    return api.run(experiment(name, log, workers), keep=False)


def alive(log: Path) -> list[str]:
    return [path.name for path in log.iterdir() if Path(f"/proc/{path.name}/exe").exists()]


@pytest.mark.parametrize(("name", "workers"), [("process", 2), pytest.param("ray", 1, marks=pytest.mark.slow)])
def test_helpers_elsewhere_give_the_bits_of_those_here(tmp_path: Path, name: str, workers: int) -> None:
    here, elsewhere = run("inline", tmp_path / "inline"), run(name, tmp_path / name, workers)
    assert elsewhere.summary.model_sha256 == here.summary.model_sha256
    assert [record.metrics["elsewhere"] for record in here.history] == ROUNDS * [0.0]
    assert [record.metrics["elsewhere"] for record in elsewhere.history] == ROUNDS * [float(HELPERS)]
    assert HELPERS <= len(list((tmp_path / name).iterdir())) <= workers * HELPERS, "started once by each worker"
    wait_until(lambda: not alive(tmp_path / name), 60, "the end of the helpers")


def test_ray_refuses_a_helper_it_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from fedloom.core.registry import load_file
    from fedloom.simulation import ray_helpers

    free: dict[str, Any] = {"CPU": 0.5}
    monkeypatch.setattr(ray, "available_resources", lambda: free)
    table = load_file(SUPPORT / "helping.py").Table
    for asked, said in ((Resources(), "1 CPU, .* has 0.5 free"), (Resources(cpus=0.5, gpus=1), "1 GPU, .* has 0 free")):
        with pytest.raises(NoCapacity, match=f"helper Table needs {said}"):
            ray_helpers.RayHelpers().start(table, 1, 4, resources=asked)

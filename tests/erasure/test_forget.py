"""Clients withdraw from finished runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fedloom
from fedloom import api
from fedloom.cli.app import main
from fedloom.core import frames
from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError, UsageError
from fedloom.core.records import MODEL, Record, arrays_sha256
from fedloom.erasure.forget import METHODS
from fedloom.erasure.history import History

KEEPING = ["round.group_size=1", "checkpoint.client_updates=true"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of digits with five clients of unequal classes, which keeps its clients' updates."""
    folder = tmp_path_factory.mktemp("original") / "run"
    partition = 'workload.partition={scheme="dirichlet",alpha=0.2}'
    settings = ["rounds=8", "clients=5", "cohort=4", "runtime.name=inline", partition, *KEEPING]
    fedloom.run(fedloom.load("digits-fedavg", settings), out=folder)
    return folder


@pytest.fixture
def original(digits: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(digits, tmp_path / "run"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_in_a_run_without_the_client(original: Path, tmp_path: Path, method: str) -> None:
    sha256 = json.loads((original / "summary.json").read_text(encoding="utf-8"))["model_sha256"]
    erasure = fedloom.forget(original, client=1, method=method, rounds=2, out=tmp_path / "new")
    assert (erasure.client, erasure.method, erasure.round, erasure.recovering_rounds) == (1, method, 8, 2)
    assert erasure.before.sha256 == sha256 != erasure.after.sha256
    assert erasure.jobs_of_client_after == 0 and erasure.cost.recovering == 8
    choices = [json.loads(line) for line in (tmp_path / "new/choices.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [sorted(choice["cohort"]) for choice in choices] == [[0, 2, 3, 4]] * 2
    assert json.loads((tmp_path / "new/erasure.json").read_text(encoding="utf-8"))["client"] == 1
    summary = json.loads((tmp_path / "new/summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "done" and summary["model_sha256"] == erasure.after.sha256
    if method in ("noisy_labels", "gradient_ascent", "calibrate"):  # unlike `drop` they undo what two rounds do not
        assert erasure.after.on_client["loss"] > 2 * erasure.before.on_client["loss"]
        assert erasure.cost.forgetting > 0
    with pytest.raises(UsageError, match=r"client 1 has withdrawn from this run.*without it is .*new"):
        api.resume(original, overrides=["rounds=9"])


def test_without_a_method_the_run_begins_with_the_old_model(original: Path, tmp_path: Path) -> None:
    fedloom.forget(original, client=0, out=tmp_path / "new", rounds=1)
    start = frames.decode((tmp_path / "new/start.safetensors").read_bytes())
    model = frames.decode((original / "model/model.safetensors").read_bytes())
    assert arrays_sha256(start.groups[MODEL]) == arrays_sha256(model.groups[MODEL])


def test_negating_subtracts_the_clients_part_of_its_last_change(original: Path, tmp_path: Path) -> None:
    found = History(original, 8).last_of(1)
    sizes = json.loads((original / "workload.json").read_text(encoding="utf-8"))["client_sizes"]
    assert found is not None
    fedloom.forget(original, client=1, method="negate_update", out=tmp_path / "new", rounds=1)
    start = frames.decode((tmp_path / "new/start.safetensors").read_bytes()).groups[MODEL]
    model = frames.decode((original / "model/model.safetensors").read_bytes()).groups[MODEL]
    for name, array in model.items():
        expected = array - sizes[1] / sum(sizes) * found[1].groups[MODEL][name]
        np.testing.assert_allclose(start[name], expected, rtol=1e-5, atol=1e-6)


def test_the_distance_to_a_model_trained_anew_is_measured(original: Path, tmp_path: Path) -> None:
    erasure = fedloom.forget(original, client=2, out=tmp_path / "new", rounds=1, retrain=True)
    read = [frames.decode((tmp_path / name / "model/model.safetensors").read_bytes()).groups[MODEL]
            for name in ("new", "new-retrained")]  # fmt: skip
    squares = sum(float(np.square(read[0][name].astype(float) - read[1][name]).sum()) for name in read[0])
    assert erasure.after.distance_to_retrained == pytest.approx(squares**0.5)
    assert erasure.retrained is not None and erasure.retrained.sha256 == arrays_sha256(read[1])


def test_purging_deletes_what_holds_the_clients_contribution(original: Path, tmp_path: Path) -> None:
    erasure = fedloom.forget(original, client=2, out=tmp_path / "new", rounds=1, purge=True)
    assert set(erasure.purged) == {"model", "checkpoints", "updates"}
    left = {path.suffix for folder in (original, tmp_path / "new") for path in folder.rglob("*") if path.is_file()}
    assert ".safetensors" in left and not list(original.rglob("*.safetensors"))
    assert not (tmp_path / "new/start.safetensors").exists()
    assert (original / "report.html").exists(), "numbers stay"


def test_a_second_client_withdraws_from_the_new_run(original: Path, tmp_path: Path) -> None:
    fedloom.forget(original, client=1, out=tmp_path / "one", rounds=1)
    with pytest.raises(UsageError, match="client 1 is excluded from this run already"):
        fedloom.forget(tmp_path / "one", client=1, out=tmp_path / "none")
    with pytest.raises(UsageError, match=r"began with an earlier run's model.*Methods that work: drop"):
        fedloom.forget(tmp_path / "one", client=3, method="calibrate", out=tmp_path / "none")
    fedloom.forget(tmp_path / "one", client=3, out=tmp_path / "two", rounds=1)
    assert api.saved_state(tmp_path / "two").experiment.excluded == (1, 3)


def _refused(original: Path, words: str, **arguments: object) -> None:
    """Check that a withdrawal is refused and that nothing has changed."""
    before = {path: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    with pytest.raises(FedloomError, match=words):
        fedloom.forget(original, **{"client": 1, "out": original.parent / "new", **arguments})  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in original.rglob("*") if path.is_file()} == before
    assert "out" in arguments or not (original.parent / "new").exists()


def test_what_cannot_be_forgotten_is_refused_and_changes_nothing(original: Path, tmp_path: Path) -> None:
    _refused(original, "client 7 took no part in any of the run's 8 rounds", client=7)
    _refused(original, "method 'droop': did you mean 'drop'", method="droop")
    (tmp_path / "taken").mkdir()
    _refused(original, "taken exists already", out=tmp_path / "taken")
    shutil.rmtree(original / "updates/000001")
    _refused(
        original, r"round 1 has nothing .*Methods that work: drop, noisy_labels, gradient_ascent", method="calibrate"
    )


def test_a_workload_with_a_loss_of_its_own_is_refused_by_name(
    linear: Callable[..., Experiment], tmp_path: Path
) -> None:
    api.run(linear(rounds=2), out=tmp_path / "run")
    _refused(tmp_path / "run", "has no action 'forget'", method="noisy_labels")


def test_a_model_that_is_not_the_workloads_cannot_be_begun_with(original: Path, tmp_path: Path) -> None:
    experiment = api.saved_state(original).experiment
    wrong = Record({MODEL: {"other": np.zeros(3, np.float32)}})
    with pytest.raises(FedloomError, match=r"does not fit its workload in array '1\.bias'"):
        api.run(experiment, out=tmp_path / "new", start=wrong)


def test_the_command_prints_what_was_done(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forget", str(original), "--client", "1", "--rounds", "1", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[-1])["jobs_of_client_after"] == 0
    assert "Client 1 has withdrawn (drop): 4 local trainings" in shown.err
    assert main(["resume", str(original)]) == 2

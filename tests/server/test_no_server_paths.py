"""No text that leaves the server for a user contains a path of the server: every error a submitter can cause."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from members import Members, members
from owned_runs import Owner, RunsHere

from fedloom.client.download import RemoteFile
from fedloom.core import errors
from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError, StorageFull
from fedloom.proto.v1 import control_pb2 as control_pb
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.testing.fleet import wait_until

Make = Callable[..., Experiment]
BROKEN = {
    "no such file": None,
    "a syntax error": "def f(:\n",
    "raises": "raise RuntimeError(f'in {__file__}')\n",
    "no config": "x = 1\n",
    "no strategy": "from fedloom.core.config import PluginSettings\nclass Config(PluginSettings): pass\n",
    "raises when built": (
        "from fedloom.core.config import PluginSettings\n"
        "class Config(PluginSettings): pass\n"
        "def build_strategy(config, experiment): raise OSError(2, 'gone', __file__)\n"
    ),
}
PLAIN: dict[str, Any] = {"rounds": 1, "clients": 2, "strategy": "fedavg", "workload": "image_classification"}


@pytest.fixture
def runs_here() -> RunsHere:
    return RunsHere()


@pytest.fixture
def fleet(tmp_path: Path, runs_here: RunsHere, monkeypatch: pytest.MonkeyPatch) -> Iterator[Members]:
    """The server lies in a folder whose name has a space, and works there."""
    home = tmp_path / "the server"
    home.mkdir()
    monkeypatch.chdir(home)
    with members(home, run_one=runs_here) as made:
        made.runs.start()
        yield made


@pytest.fixture
def ann(fleet: Members) -> Iterator[Owner]:
    with contextlib.closing(Owner(fleet, fleet.joined("ann", "user"))) as owner:
        yield owner


@pytest.fixture
def admin(fleet: Members) -> Iterator[Owner]:
    with contextlib.closing(Owner(fleet, fleet.admin)) as owner:
        yield owner


def submitted(owner: Owner, text: str) -> str:
    """What a submission of any text is answered."""
    stub = owner.control._stub
    try:
        return str(owner.control._call(stub.Submit, control_pb.SubmitRequest(experiment_json=text)).run_id)
    except FedloomError as exc:
        return str(exc)


def test_whatever_is_submitted(
    fleet: Members, ann: Owner, admin: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.runs.close()  # nothing is begun
    own = tmp_path / "the server"
    relative = {}
    for name, text in BROKEN.items():
        relative[name] = f"./{name.replace(' ', '_')}.py"
        if text is not None:
            (own / relative[name]).write_text(text, encoding="utf-8")
    bodies = ["", "{", "[]", "7", '"\\ud800"', "{}", json.dumps({**PLAIN, "rounds": "x"})]
    bodies += [json.dumps({**PLAIN, section: path}) for section in ("strategy", "workload", "selection", "monitor")
               for path in (*relative.values(), "./folder", "no.module", "os", "../x", "~/x")]  # fmt: skip
    bodies += [json.dumps({**PLAIN, "strategy": {"name": "flower_app", "app": app}}) for app in (".", "./no", "~")]
    said = {body: [submitted(owner, body) for owner in (ann, admin)] for body in bodies}
    for body, texts in said.items():
        for text in texts:
            assert str(tmp_path) not in text and str(Path.home()) + "/" not in text, (body, text)
    assert any("raises.py" in text for texts in said.values() for text in texts), "the file is named all the same"
    where = "/no/such/place/mine.py"
    assert where in submitted(admin, json.dumps({**PLAIN, "strategy": where})), "what the caller wrote is quoted"


@pytest.mark.parametrize("kind", errors.catalogue())
def test_every_kind_of_error_in_every_call(
    fleet: Members,
    admin: Owner,
    linear: Make,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[FedloomError],
    tmp_path: Path,
) -> None:
    """Wherever an error comes from: here from the one place that each call needs, the look at the run's status."""
    exc = kind(f"cannot read {fleet.folder / 'state' / 'runs' / 'x' / 'model'}: it is gone")

    def fails(*arguments: object) -> None:
        raise exc

    monkeypatch.setattr(fleet.runs, "owner", fails)
    monkeypatch.setattr(fleet.runs, "submit", fails)
    monkeypatch.setattr(fleet.runs, "rows", fails)
    asked = RemoteFile(name="run.json", kind="records", size=1, sha256="0" * 64, length=1)
    calls: list[Callable[[], object]] = [
        lambda: admin.control.submit(linear()),
        lambda: admin.control.runs(),
        lambda: list(admin.control.watch("x")),
        lambda: admin.control.stop("x"),
        lambda: admin.results.files("x"),
        lambda: list(admin.results.fetch("x", asked, 0)),
        lambda: list(admin.results.logs("x")),
        lambda: admin.results.delete("x"),
        lambda: admin.results.resume("x"),
    ]
    for call in calls:
        with pytest.raises(FedloomError) as caught:
            call()
        assert str(tmp_path) not in str(caught.value) and "the server/" not in str(caught.value)
        assert "…/model: it is gone" in str(caught.value) or str(FedloomError.public) in str(caught.value)


def test_what_a_run_says_of_itself(
    fleet: Members, admin: Owner, runs_here: RunsHere, linear: Make, tmp_path: Path
) -> None:
    place = fleet.folder / "state" / "runs" / "x" / "model"

    def full(self: DiskRunStore, arrays: object) -> None:
        raise errors.RunFailed(f"cannot write {place}: Permission denied; see {place.parent}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiskRunStore, "save_model", full)
        run_id = admin.control.submit(linear(rounds=1))
        assert admin.ended(run_id) == "failed"
    (row,) = admin.control.runs()
    texts = [json.dumps(dataclasses.asdict(row))]
    texts += [json.dumps(event) for event in admin.control.watch(run_id)]
    texts += [json.dumps(event) for event in admin.results.logs(run_id)]
    offer = admin.results.files(run_id)
    texts += [b"".join(admin.results.fetch(run_id, each, 0)).decode(errors="replace") for each in offer.files]
    assert "…/model: Permission denied" in row.error
    assert sum("Permission denied" in text for text in texts) >= 5, "row, watch, log, summary, events, report"
    for text in texts:
        assert str(tmp_path) not in text and "the server/" not in text


def test_a_full_disk_of_the_server(fleet: Members, admin: Owner, linear: Make, tmp_path: Path) -> None:
    def full(self: DiskRunStore, *arguments: object, **options: object) -> None:
        raise StorageFull(f"cannot write to {self.folder}: No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiskRunStore, "begin", full)
        with pytest.raises(FedloomError, match="No space left") as caught:
            admin.control.submit(linear())
    assert str(tmp_path) not in str(caught.value) and "cannot write to …/" in str(caught.value)
    run_id = admin.control.submit(linear(rounds=1))
    wait_until(lambda: admin.ended(run_id) == "done", 60)

"""Runs in their owners' hands: fetched, read, deleted and resumed over mutual TLS; nobody else's, and bounded."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from members import Members, members
from owned_runs import Owner, RunsHere

from fedloom import api
from fedloom.client.control import ControlClient
from fedloom.client.download import Download, RemoteFile
from fedloom.client.results import ResultsClient
from fedloom.core import frames
from fedloom.core.config import Experiment
from fedloom.core.errors import BadMessage, Forbidden, LimitExceeded, NotFound, Unauthenticated
from fedloom.core.provenance import SubmittedCode, read_provenance, submitted_code
from fedloom.core.records import arrays_sha256
from fedloom.reporting.comparison import compare
from fedloom.server.run_queue import RunQueue
from fedloom.testing.fleet import TOKEN, quick_server, wait_until

Make = Callable[..., Experiment]


ANNEALED = """
from fedloom.core.config import PluginSettings
from fedloom.strategies.fedavg.strategy import FedAvg

class Config(PluginSettings):
    pass

def build_strategy(config, experiment):
    experiment.rounds_known("strategy 'annealed'")
    return FedAvg()
"""
RECORDS = [
    "run.json", "experiment.toml", "plugins.json", "provenance.json", "workload.json", "rounds.jsonl", "choices.jsonl",
    "events.jsonl", "summary.json",
]  # fmt: skip


@pytest.fixture
def runs_here() -> RunsHere:
    return RunsHere()


@pytest.fixture
def fleet(tmp_path: Path, runs_here: RunsHere) -> Iterator[Members]:
    with members(tmp_path / "a server", run_one=runs_here) as made:
        made.runs.start()
        yield made


@pytest.fixture
def admin(fleet: Members) -> Iterator[Owner]:
    with contextlib.closing(Owner(fleet, fleet.admin)) as owner:
        yield owner


def test_a_run_is_fetched_as_it_is_on_the_server_without_its_paths(
    fleet: Members, admin: Owner, linear: Make, tmp_path: Path
) -> None:
    experiment = linear(rounds=2)
    run_id = admin.control.submit(experiment)
    assert admin.ended(run_id) == "done"
    there, here = fleet.runs.folder_of(run_id), tmp_path / "here"
    names = admin.fetched(run_id, here)
    saved = [f"checkpoints/{path.name}" for path in sorted((there / "checkpoints").iterdir())]
    assert names == [*RECORDS, "plugins/workload/linear.py", "model/model.safetensors", "report.html", *saved]
    for name in names:
        same = (here / name).read_bytes() == (there / name).read_bytes()
        assert same or name in ("plugins.json", "summary.json", "events.jsonl", "report.html"), name
        assert str(tmp_path / "a server") not in (here / name).read_text(encoding="utf-8", errors="replace"), name
    summary = json.loads((here / "summary.json").read_text(encoding="utf-8"))
    assert summary["run_dir"] is None
    model = frames.decode((here / "model" / "model.safetensors").read_bytes())
    want = api.run(experiment, keep=False)
    assert arrays_sha256(model.groups["model"]) == summary["model_sha256"] == want.summary.model_sha256
    more = api.resume(here, overrides=["rounds=3"])
    assert more.summary.model_sha256 == api.run(linear(rounds=3), keep=False).summary.model_sha256
    assert admin.fetched(run_id, tmp_path / "only", "model") == ["run.json", "model/model.safetensors"]
    assert admin.fetched(run_id, tmp_path / "page", "report") == ["run.json", "report.html"]


def test_a_run_has_the_code_that_it_was_submitted_from(admin: Owner, linear: Make, tmp_path: Path) -> None:
    states = [SubmittedCode(commit=word * 20, packages={"numpy": "0.0.1"}) for word in ("ab", "cd")]
    runs = [admin.control.submit(linear(rounds=1), code=state) for state in states]
    for number, run_id in enumerate(runs):
        assert admin.ended(run_id) == "done"
        admin.fetched(run_id, tmp_path / str(number))
    found = read_provenance(tmp_path / "0")
    assert found is not None and found.submitted == states[0] and found.repository is None
    assert found.packages["numpy"] == importlib.metadata.version("numpy")
    assert found.flat()["package numpy of the submitter"] == "0.0.1"
    compared = compare([tmp_path / str(number) for number in range(2)])
    assert [row.name for row in compared.code] == ["commit"]


def test_code_that_is_no_code_is_refused(fleet: Members, admin: Owner, linear: Make) -> None:
    for text in ("{", '{"commit": "/home/ann"}', '{"path": "x"}', json.dumps({"packages": {"x" * 200: "1"}})):
        with pytest.raises(BadMessage, match="the submitter's code is not what it should be"):
            submitted_code(text)
    assert submitted_code("") is None
    before = len(admin.control.runs())
    with pytest.raises(BadMessage, match="the submitter's code"):
        admin.control.submit(linear(rounds=1), code=SubmittedCode.model_construct(commit="/home/ann"))
    assert len(admin.control.runs()) == before


def test_of_a_run_in_progress_the_model_so_far_comes_and_says_of_which_round(
    fleet: Members, admin: Owner, runs_here: RunsHere, linear: Make, tmp_path: Path
) -> None:
    runs_here.pause_after = 2
    run_id = admin.control.submit(linear(rounds=4, checkpoint={"keep": 9}))
    assert runs_here.paused.wait(60)
    wait_until(lambda: admin.results.files(run_id, ["model"]).model_round == 2, 60, "the checkpoint of round 2")
    offer = admin.results.files(run_id, ["model", "report"])
    assert (offer.status, offer.rounds_done, offer.rounds) == ("running", 2, 4)
    assert [each.name for each in offer.files] == ["run.json", "model/model-round-000002.safetensors"]
    admin.fetched(run_id, tmp_path / "so-far")
    model = frames.decode((tmp_path / "so-far/model/model-round-000002.safetensors").read_bytes()).groups["model"]
    want = api.run(linear(rounds=2), keep=False).arrays
    assert {name: array.tobytes() for name, array in model.items()} == {
        name: np.asarray(array).tobytes() for name, array in want.items()
    }
    for call in (admin.results.delete, admin.results.resume):
        with pytest.raises(BadMessage, match=rf"is running; only a run that has ended .* fedloom stop {run_id}"):
            call(run_id)
    runs_here.go.set()
    assert admin.ended(run_id) == "done"
    names = admin.fetched(run_id, tmp_path / "so-far", "model")
    assert names == ["run.json", "model/model.safetensors"]
    assert [path.name for path in (fleet.runs.folder_of(run_id) / "model").iterdir()] == ["model.safetensors"]


def test_a_queued_run_has_no_model_and_only_records(admin: Owner, runs_here: RunsHere, linear: Make) -> None:
    runs_here.pause_after = 1
    admin.control.submit(linear(rounds=1))
    assert runs_here.paused.wait(60)
    run_id = admin.control.submit(linear(rounds=1))
    offer = admin.results.files(run_id)
    assert offer.status == "queued" and {each.kind for each in offer.files} == {"records"}
    runs_here.go.set()


def test_a_growing_file_is_served_as_it_was_listed(fleet: Members, admin: Owner, linear: Make) -> None:
    run_id = admin.control.submit(linear(rounds=2))
    assert admin.ended(run_id) == "done"
    (listed,) = (each for each in admin.results.files(run_id, ["records"]).files if each.name == "events.jsonl")
    with (fleet.runs.folder_of(run_id) / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "Notice", "message": "/srv/secret/x", "run_id": "x"}\n{"torn')
    content = b"".join(admin.results.fetch(run_id, listed, 0))
    assert hashlib.sha256(content).hexdigest() == listed.sha256 and len(content) == listed.size
    for offset in (1, 100, listed.size - 1, listed.size, listed.size + 9):
        assert b"".join(admin.results.fetch(run_id, listed, offset)) == content[offset:]
    (now,) = (each for each in admin.results.files(run_id, ["records"]).files if each.name == "events.jsonl")
    assert b"".join(admin.results.fetch(run_id, now, 0)) == content + (
        '{"event": "Notice", "message": "…/x", "run_id": "x"}\n'.encode().replace("…".encode(), b"\\u2026")
    ), "the torn line is left out"
    (fleet.runs.folder_of(run_id) / "events.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(NotFound, match="has changed"):
        list(admin.results.fetch(run_id, now, 0))


@pytest.mark.parametrize(
    "name",
    ["../../fedloom.sqlite", "/etc/passwd", "clients/0-1-0.safetensors", "answers/x", "plugins/../run.json", "",
     "run.json/..", "checkpoints/../../../admin/key.pem", "checkpoints/.x.safetensors", "model/../run.json", "a\0b",
     "model", "checkpoints//round-1.safetensors", "./run.json"],
)  # fmt: skip
def test_no_other_file_is_read(admin: Owner, linear: Make, name: str) -> None:
    run_id = admin.control.submit(linear(rounds=1))
    admin.ended(run_id)
    asked = RemoteFile(name=name, kind="records", size=1, sha256="0" * 64, length=1)
    with pytest.raises(NotFound):
        list(admin.results.fetch(run_id, asked, 0))


def test_unknown_kinds_and_runs_are_named(admin: Owner) -> None:
    with pytest.raises(NotFound, match="no run 'nothing' on this server"):
        admin.results.files("nothing")
    for call in (admin.results.delete, admin.results.resume, lambda run: list(admin.results.logs(run))):
        with pytest.raises(NotFound, match="no run 'nothing' on this server"):
            call("nothing")


def test_another_users_run_is_nobody_elses(fleet: Members, admin: Owner, runs_here: RunsHere, linear: Make) -> None:
    runs_here.fails = True
    ann, bob = (Owner(fleet, fleet.joined(name, "user")) for name in ("ann", "bob"))
    run_id = ann.control.submit(linear(rounds=1, workload={"name": "image_classification"}, runtime={"name": "ray"}))
    assert ann.ended(run_id) == "failed"
    (listed, *_) = ann.results.files(run_id).files
    calls: list[Callable[[], object]] = [
        lambda: bob.results.files(run_id),
        lambda: list(bob.results.fetch(run_id, listed, 0)),
        lambda: list(bob.results.logs(run_id)),
        lambda: bob.results.delete(run_id),
        lambda: bob.results.resume(run_id),
    ]
    for call in calls:
        with pytest.raises(Forbidden, match="does not belong to 'bob'"):
            call()
    assert admin.results.files(run_id).files == ann.results.files(run_id).files
    assert ann.results.delete(run_id) == "failed"
    for owner in (ann, bob):
        owner.close()


def test_a_deleted_run_is_gone_from_list_and_disk(fleet: Members, admin: Owner, linear: Make) -> None:
    kept, run_id = (admin.control.submit(linear(rounds=1)) for _ in range(2))
    assert (admin.ended(kept), admin.ended(run_id)) == ("done", "done")
    folder = fleet.runs.folder_of(run_id)
    assert admin.results.delete(run_id) == "done"
    assert not folder.exists() and [row.run_id for row in admin.control.runs()] == [kept]
    with pytest.raises(NotFound):
        admin.results.delete(run_id)


def test_a_deletion_that_was_cut_short_continues_with_the_next_server(
    fleet: Members, admin: Owner, linear: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_id = admin.control.submit(linear(rounds=1))
    admin.ended(run_id)
    folder = fleet.runs.folder_of(run_id)

    def fails(place: Path) -> None:
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr("shutil.rmtree", fails)
    with pytest.raises(Exception, match=r"cannot be deleted completely: Permission denied\. Try again") as caught:
        admin.results.delete(run_id)
    assert str(tmp_path) not in str(caught.value)
    assert [row.status for row in admin.control.runs()] == ["deleting"]
    with pytest.raises(NotFound, match="is being deleted"):
        admin.results.resume(run_id)
    monkeypatch.undo()
    fleet.runs.close()
    with contextlib.closing(RunQueue(fleet.folder / "state", RunsHere())) as again:
        again.start()
        assert again.rows() == [] and not folder.exists()


def _notices(admin: Owner, run_id: str) -> list[str]:
    """Return the run's notices of changed code, as its owner sees them."""
    events = [event for event in admin.control.watch(run_id) if event["event"] == "Notice"]
    return [event["message"] for event in events if "has changed since the run began" in event["message"]]


class TestResuming:
    def test_a_run_continues_with_more_rounds_as_if_it_had_had_them(
        self, admin: Owner, linear: Make, tmp_path: Path
    ) -> None:
        run_id = admin.control.submit(linear(rounds=2))
        assert admin.ended(run_id) == "done"
        with pytest.raises(BadMessage, match="is done, with 2 rounds; expected --rounds with more than that, got 2"):
            admin.results.resume(run_id)
        with pytest.raises(BadMessage, match="expected --rounds with more than that, got 1"):
            admin.results.resume(run_id, 1)
        resumed = admin.results.resume(run_id, 5)
        assert (resumed.status, resumed.rounds_done, resumed.rounds) == ("done", 2, 5)
        assert admin.ended(run_id) == "done"
        admin.fetched(run_id, tmp_path / "r", "records")
        summary = json.loads((tmp_path / "r/summary.json").read_text(encoding="utf-8"))
        assert summary["model_sha256"] == api.run(linear(rounds=5), keep=False).summary.model_sha256
        (row,) = admin.control.runs()
        assert (row.rounds_done, row.rounds) == (5, 5)

    def test_code_on_the_server_that_differs_from_the_runs_is_named(
        self, fleet: Members, admin: Owner, linear: Make
    ) -> None:
        run_id = admin.control.submit(linear(rounds=1))
        assert admin.ended(run_id) == "done"
        assert not _notices(admin, run_id), "nothing has changed yet"
        path = fleet.runs.folder_of(run_id) / "provenance.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        values["packages"]["numpy"] = "0.0.1"
        path.write_text(json.dumps(values), encoding="utf-8")
        admin.results.resume(run_id, 2)
        assert admin.ended(run_id) == "done"
        now = importlib.metadata.version("numpy")
        expected = f"package numpy has changed since the run began: version 0.0.1 then, {now} now"
        assert _notices(admin, run_id) == [expected]

    def test_one_that_depends_on_its_number_of_rounds_says_so(self, admin: Owner, linear: Make, tmp_path: Path) -> None:
        (tmp_path / "annealed.py").write_text(ANNEALED, encoding="utf-8")
        run_id = admin.control.submit(linear(rounds=1, strategy=str(tmp_path / "annealed.py")))
        admin.ended(run_id)
        with pytest.raises(BadMessage, match="depends on its number of rounds"):
            admin.results.resume(run_id, 9)
        assert admin.results.resume(run_id, 9, as_continuation=True).rounds == 9

    def test_a_users_resumed_runs_count_as_submissions(
        self, runs_here: RunsHere, linear: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        runs_here.fails = True
        monkeypatch.setattr("fedloom.server.access.submission.MAX_SUBMISSIONS", 2)
        with members(tmp_path / "b", run_one=runs_here) as fleet:
            fleet.runs.start()
            ann = Owner(fleet, fleet.joined("ann", "user"))
            workload = {"name": "image_classification"}
            run_id = ann.control.submit(linear(rounds=1, workload=workload, runtime={"name": "ray"}))
            assert ann.ended(run_id) == "failed"
            ann.results.resume(run_id)
            assert ann.ended(run_id) == "failed"
            with pytest.raises(LimitExceeded, match="runs submitted by 'ann'"):
                ann.results.resume(run_id)
            ann.close()


def test_each_call_is_in_the_audit_log(fleet: Members, admin: Owner, linear: Make, tmp_path: Path) -> None:
    run_id = admin.control.submit(linear(rounds=1))
    admin.ended(run_id)
    admin.fetched(run_id, tmp_path / "x", "report")
    list(admin.results.logs(run_id))
    admin.results.resume(run_id, 2)
    assert admin.ended(run_id) == "done"
    admin.results.delete(run_id)
    lines = [json.loads(line) for line in fleet.security.audit.last(50)]
    mine = [(line["event"], line.get("file", ""), line["who"]) for line in lines if line.get("run") == run_id]
    assert mine == [
        ("submitted", "", "server-admin"),
        ("fetched", "run.json", "server-admin"),
        ("fetched", "report.html", "server-admin"),
        ("logs", "", "server-admin"),
        ("resumed", "", "server-admin"),
        ("deleted", "", "server-admin"),
    ]


def test_a_download_continues_with_the_next_server(runs_here: RunsHere, linear: Make, tmp_path: Path) -> None:
    content = np.random.default_rng(1).bytes(48 << 20)
    with contextlib.ExitStack() as first:
        fleet = first.enter_context(members(tmp_path / "a", run_one=runs_here))
        fleet.runs.start()
        owner = Owner(fleet, fleet.admin)
        run_id = owner.control.submit(linear(rounds=1))
        assert owner.ended(run_id) == "done"
        (fleet.runs.folder_of(run_id) / "checkpoints" / "pinned-0.safetensors").write_bytes(content)
        offsets: list[int] = []
        owners = [owner]

        class Source:
            def files(self) -> tuple[RemoteFile, ...]:
                return owners[0].results.files(run_id, ["checkpoints"]).files

            def fetch(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
                chunks = owners[-1].results.fetch(run_id, file, offset)
                if len(content) != file.size:
                    yield from chunks
                    return
                offsets.append(offset)
                yield next(chunks)
                if len(offsets) == 1:
                    first.close()
                yield from chunks

        def restart(seconds: float) -> None:
            again = second.enter_context(members(tmp_path / "a", run_one=runs_here))
            owners.append(Owner(again, again.admin))

        with contextlib.ExitStack() as second:
            Download(Source(), run_id, tmp_path / "r", print, sleep=restart).all()
        for each in owners:
            each.close()
    assert (tmp_path / "r" / "checkpoints" / "pinned-0.safetensors").read_bytes() == content
    assert len(offsets) == 2 and 0 < offsets[1] < len(content), "what had arrived was not sent again"


def test_on_a_server_without_members_whoever_has_the_token_fetches(
    runs_here: RunsHere, linear: Make, tmp_path: Path
) -> None:
    with quick_server() as server, contextlib.closing(RunQueue(tmp_path / "state", runs_here)) as runs:
        address = f"127.0.0.1:{server.listen(token=TOKEN, runs=runs)}"
        runs.start()
        with ControlClient(address, TOKEN) as control, ResultsClient(address, TOKEN) as results:
            run_id = control.submit(linear(rounds=1))
            wait_until(lambda: control.runs()[0].status == "done", 60)
            (_, model) = results.files(run_id, ["model"]).files
            content = b"".join(results.fetch(run_id, model, 0))
            assert hashlib.sha256(content).hexdigest() == model.sha256
            with ResultsClient(address, "another") as stranger, pytest.raises(Unauthenticated):
                stranger.files(run_id)
            assert results.delete(run_id) == "done"

"""Users' runs use what is installed on the server; code and paths of it are for administrators."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from members import Members, members
from support_paths import LINEAR as LINEAR_FILE

from fedloom import api
from fedloom.client.control import ControlClient
from fedloom.client.link import connect
from fedloom.core.code_names import CodeName
from fedloom.core.config import Experiment
from fedloom.core.errors import Forbidden
from fedloom.proto.v1 import control_pb2
from fedloom.proto.v1.control_pb2_grpc import ControlStub
from fedloom.server.access.membership import Membership, open_security
from fedloom.server.access.submission import check_submission

PLAIN: dict[str, Any] = {"rounds": 1, "clients": 2, "strategy": "fedavg", "workload": "image_classification"}
LINEAR = str(LINEAR_FILE)


@pytest.mark.parametrize(
    ("section", "value", "where", "what"),
    [
        ("strategy", "./mine.py", "strategy", "is not one of the strategies installed"),
        ("strategy", {"name": "some.module"}, "strategy", "is not one of the strategies installed"),
        ("workload", LINEAR, "workload", "is not one of the workloads installed"),
        ("selection", {"name": "/x.py"}, "selection", "is not one of the selection installed"),
        ("monitor", "os", "monitor", "is not one of the monitors installed"),
        ("strategy", {"name": "flower", "class": "subprocess:Popen"}, "strategy.class", "names code"),
        (
            "strategy",
            {"name": "flower", "wrapper": {"name": "server_fixed_clipping", "options": {"f": ["a.b:c"]}}},
            "strategy.wrapper.options.f.0",
            "names code",
        ),
        ("strategy", {"name": "sa_fedlora", "adapters": "/etc"}, "strategy.adapters", "may be a path"),
        ("strategy", {"name": "sa_fedlora", "adapters": ".."}, "strategy.adapters", "may be a path"),
        ("strategy", {"name": "flower_app", "app": "~/app"}, "strategy.app", "may be a path"),
        ("strategy", {"name": "flower", "options": {"../x": 1}}, "strategy.options", "may be a path"),
    ],
)
def test_what_is_not_for_users(section: str, value: Any, where: str, what: str) -> None:
    with pytest.raises(Forbidden) as caught:
        check_submission({**PLAIN, section: value}, ())
    assert str(caught.value).startswith(f"{where} = ") and what in str(caught.value)
    assert "fedloom serve --allow" in str(caught.value)


def test_a_setting_that_is_a_path_by_its_type_is_refused_whatever_it_looks_like(tmp_path: Path) -> None:
    values = {**PLAIN, "strategy": {"name": "sa_fedlora", "adapters": "kept"}}
    with pytest.raises(Forbidden, match=r"strategy.adapters = 'kept' may be a path"):
        check_submission(values, ())


def test_what_was_allowed_is_allowed_word_for_word() -> None:
    values = {**PLAIN, "strategy": {"name": "flower", "class": "lab.rules:Mine"}, "workload": "lab.data"}
    check_submission(values, ("lab.rules:Mine", "lab.data"))
    with pytest.raises(Forbidden):
        check_submission(values, ("lab.rules", "lab.data"))


@pytest.mark.parametrize("preset", api.presets())
def test_every_preset_is_for_users(preset: str) -> None:
    check_submission(api.load(preset).to_dict(), ())


def test_nonsense_is_left_to_who_reads_the_experiment() -> None:
    check_submission({"strategy": 7, "workload": ["x"], "selection": {"name": None}}, ())


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Members]:
    with members(tmp_path) as made:
        yield made


def test_a_user_is_refused_and_an_administrator_is_not(fleet: Members) -> None:
    experiment = Experiment.parse({**PLAIN, "workload": LINEAR})
    with ControlClient(fleet.address, identity=fleet.joined("bob", role="user")) as bob:
        with pytest.raises(Forbidden, match="is code that users' runs may not use on this server"):
            bob.submit(experiment)
        assert not bob.runs()
        kept = bob.submit(Experiment.parse(PLAIN))
        assert [row.run_id for row in bob.runs()] == [kept]
    with ControlClient(fleet.address, identity=fleet.admin) as admin:
        assert admin.submit(experiment)


@pytest.mark.parametrize("section", ["strategy", "workload", "selection", "monitor"])
def test_nothing_that_a_user_names_is_imported(
    fleet: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    """Whatever order the checks have: a module, a file, a folder, a file by its digest, with settings or without."""
    (tmp_path / "trap_of_users").mkdir()
    for file in (tmp_path / "trap_of_users" / "__init__.py", tmp_path / "trap_of_users.py"):
        file.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'fired')!r}).touch()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    identity, path = fleet.joined("bob", role="user"), str(tmp_path / "trap_of_users")
    code = str(CodeName.of(Path(f"{path}.py")))
    with contextlib.closing(connect(identity.address, identity)) as channel:
        for name in ("trap_of_users", "trap_of_users.x", "trap_of_users.config", path, f"{path}.py", code, f"{path}#x"):
            for given in (name, {"name": name}, {"name": name, "app": path, "x": [f"{name}:run"]}):
                request = control_pb2.SubmitRequest(experiment_json=json.dumps({**PLAIN, section: given}))
                with pytest.raises(grpc.RpcError) as caught:
                    ControlStub(channel).Submit(request, timeout=20)
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, (name, caught.value.details())
                assert not (tmp_path / "fired").exists(), (section, given)


def test_what_a_server_was_started_with_reaches_the_check(tmp_path: Path) -> None:
    with open_security(tmp_path / "state", "127.0.0.1", Membership(enroll_port=0, allowed=(LINEAR,))) as security:
        check_submission({**PLAIN, "workload": LINEAR}, security.allowed)

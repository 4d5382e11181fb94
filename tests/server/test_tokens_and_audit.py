"""Tokens after they were made: listed, revoked, ended with a member; and what the audit log has of it all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from members import Members, members

from fedloom.cli import main
from fedloom.client.admin import AdminClient
from fedloom.client.control import ControlClient
from fedloom.client.enroll import join
from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError, NotFound, Unauthenticated
from fedloom.core.identity import JoinToken
from fedloom.server.access import audit as module
from fedloom.server.access.audit import Audit, last_lines
from fedloom.server.access.members import Registry

Make = Callable[..., Experiment]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with members(tmp_path_factory.mktemp("members")) as made:
        yield made


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_a_token_is_listed_with_whom_it_admitted_and_revoked(
    fleet: Members, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_admin = ("--identity", str(fleet.admin.folder))
    file = tmp_path / "shelf.token"
    said(capsys, "token", "create", "--name", "shelf", "--uses", "5", "--out", str(file), *as_admin)
    assert file.stat().st_mode & 0o777 == 0o600
    token = file.read_text(encoding="utf-8")
    for place in "ab":
        join(token, tmp_path / place)
    with AdminClient(fleet.admin) as admin:
        (row,) = [each for each in admin.tokens() if each.name == "shelf"]
        assert (row.used, row.uses, row.admitted, row.maker) == (2, 5, ("shelf-1", "shelf-2"), "server-admin")
        assert {each.token for each in admin.members() if each.name.startswith("shelf")} == {row.id}
    line = next(line for line in said(capsys, "token", "list", *as_admin).splitlines() if row.id in line)
    assert "2 of 5" in line and "shelf-1, shelf-2" in line and JoinToken.decode(token).secret not in line
    shown = said(capsys, "token", "revoke", row.id, *as_admin)
    assert shown == (
        f"token {row.id} was revoked\nit admitted shelf-1, shelf-2, who remain members; --members revokes them, too\n"
    )
    with pytest.raises(Unauthenticated, match="invalid, expired, revoked or already used"):
        join(token, tmp_path / "c")
    assert "no token" in said(capsys, "token", "revoke", row.id, *as_admin, code=1)
    assert "shelf-2 was revoked" in said(capsys, "token", "revoke", row.id, "--members", *as_admin)
    with AdminClient(fleet.admin) as admin:
        assert all(each.revoked_at for each in admin.members() if each.name.startswith("shelf"))


@pytest.mark.parametrize("token_id", ["", "0" * 12, "%", "_" * 12, "' or 1=1 --", "é" * 12, "0" * 64])
def test_ids_nobody_has_end_no_token(fleet: Members, token_id: str) -> None:
    fleet.token(f"stays-{len(token_id)}-{abs(hash(token_id)) % 1000}", uses=2)
    before = [(each.id, each.revoked_at) for each in fleet.security.registry.tokens()]
    with AdminClient(fleet.admin) as admin, pytest.raises((NotFound, FedloomError), match="no token"):
        admin.revoke_token(token_id)
    assert [(each.id, each.revoked_at) for each in fleet.security.registry.tokens()] == before


def test_a_revoked_member_does_not_come_back_by_its_token(fleet: Members, tmp_path: Path) -> None:
    token = fleet.token("farm", uses=10)
    join(token, tmp_path / "farm")
    fleet.revoke("farm-1")
    with pytest.raises(Unauthenticated):
        join(token, tmp_path / "again")


def test_unless_the_administrator_keeps_the_token_for_others(fleet: Members, tmp_path: Path) -> None:
    token = fleet.token("field", uses=10)
    join(token, tmp_path / "field")
    with AdminClient(fleet.admin) as admin:
        assert admin.revoke("field-1", keep_token=True) == []
    assert join(token, tmp_path / "again").name == "field-2"


def test_a_revoked_administrator_leaves_no_token_behind_nor_does_a_name(fleet: Members, tmp_path: Path) -> None:
    other = fleet.joined("other-admin", "admin")
    with AdminClient(other) as admin:
        token = admin.create_token("backdoor", role="admin", ttl_s=600.0, uses=3).encode()
    spare = fleet.token("spare")  # a second one for the same name, made before the first was used
    join(fleet.token("spare"), tmp_path / "spare")
    for name in ("other-admin", "spare"):
        fleet.revoke(name)
    for left in (token, spare):
        with pytest.raises(Unauthenticated):
            join(left, tmp_path / "in")


def test_a_registry_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "fedloom.sqlite"
    with sqlite3.connect(file) as old:
        old.executescript(
            """create table tokens (secret_sha256 text primary key, name text not null, role text not null,
                 labels text not null, uses integer not null, used integer not null default 0, expires real not null);
               create table members (name text primary key, role text not null, labels text not null,
                 enrolled real not null, revoked real);
               create table certificates (fingerprint text primary key, member text not null, expires real not null,
                 issued real not null, revoked integer not null default 0);
               insert into members values ('n', 'node', '{}', 1.0, null);
               insert into certificates values ('f', 'n', 4e9, 1.0, 0);
               insert into tokens values ('0123456789abcdef', 't', 'node', '{}', 2, 1, 4e9);"""
        )
    old.close()
    registry = Registry(file)
    try:
        assert registry.admit("f").name == "n"
        (token,) = registry.tokens()
        assert (token.id, token.used, token.maker, token.admitted) == ("0123456789ab", 1, "", ())
        assert registry.revoke("n") == []
    finally:
        registry.close()


def test_the_audit_log_says_who_did_what_from_where(
    fleet: Members, linear: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    ann = fleet.joined("ann", "user")
    with ControlClient(fleet.address, identity=ann) as control:
        run_id = control.submit(linear(rounds=1, workload={"name": "image_classification"}))
        control.stop(run_id)
    fleet.revoke("ann")
    with AdminClient(fleet.admin) as admin:
        entries = [json.loads(line) for line in admin.audit(100)]
    of_ann = [entry for entry in entries if "ann" in (entry["who"], entry.get("name"))]
    assert [(entry["event"], entry["who"]) for entry in of_ann] == [
        ("token made", "server-admin"), ("joined", "ann"), ("submitted", "ann"), ("stopped", "ann"),
        ("revoked", "server-admin"),
    ]  # fmt: skip
    assert of_ann[2]["run"] == of_ann[3]["run"] == run_id
    assert all(entry["from"].startswith("127.0.0.1:") for entry in of_ann)
    state = fleet.folder / "state"
    assert (state / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    shown = said(capsys, "audit", "--state", str(state), "--last", "1")
    assert shown.split()[:5] == ["time", "event", "who", "from", "about"] and "name ann" in shown
    assert json.loads(said(capsys, "audit", "--identity", str(fleet.admin.folder), "--json").splitlines()[-1])


def test_the_audit_log_is_bounded_and_forges_no_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 2000)
    now = [1e9]
    audit = Audit(tmp_path, lambda: now[0])
    audit.record("joined", 'x"}\n{"event": "forged', "ipv6:%5B::1%5D:5", more="y" * 10_000)
    (entry,) = map(json.loads, audit.last(10))
    assert entry["event"] == "joined" and entry["from"] == "[::1]:5" and len(entry["more"]) == 200
    for _ in range(500):
        audit.notice("fetched", "n", "ipv4:1.2.3.4:5", sha256="a")
    assert len(audit.last(1000)) == 2, "the same thing is noticed once a minute"
    now[0] += 61.0
    audit.notice("fetched", "n", "ipv4:1.2.3.4:5", sha256="a")
    assert len(audit.last(1000)) == 3
    for number in range(20):
        now[0] += 1.0
        audit.record("submitted", "n", "ipv4:1.2.3.4:5", run=str(number))
    files = sorted(tmp_path.glob("audit*.jsonl"))
    lines = [line for file in files for line in last_lines(file, 1000)]
    assert len(lines) == 23 and len(files) > 1, "put aside, none lost"

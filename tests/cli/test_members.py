"""Commands about members, against a real server: what they print, and that every refusal says what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from members import Members, members

from fedloom.cli import main
from fedloom.core.identity import Identity, JoinToken
from fedloom.core.receipt import Moment, Receipt


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with members(tmp_path_factory.mktemp("members")) as made:
        yield made


Said = Callable[..., str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What a command prints; it must end with the code."""

    def run(*arguments: str, code: int = 0) -> str:
        assert main(list(arguments)) == code, capsys.readouterr()
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return run


@pytest.fixture
def as_admin(fleet: Members) -> tuple[str, str]:
    return "--identity", str(fleet.admin.folder)


def test_a_device_joins_and_prints_what_to_do_next(
    said: Said, fleet: Members, as_admin: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "digits").mkdir()
    token = said("token", "create", "--name", "lab-1", "--label", "site=lab", *as_admin).strip()
    assert JoinToken.decode(token).address == f"127.0.0.1:{fleet.server.enroll_port}"
    shown = said("join", token, "--allow", "image_classification=digits")
    node = tmp_path / "config" / "fedloom" / "node"
    first, *rules, last = shown.splitlines()
    assert first == f"joined {fleet.address} as node lab-1; its policy is {node}/policy.toml"
    assert rules[0].startswith(f"  workload image_classification is allowed, with $DATA = {tmp_path}/digits")
    assert all(rule.startswith("  ") for rule in rules) and last == "start it with: fedloom client"
    assert f'data = "{tmp_path}/digits"' in (node / "policy.toml").read_text(encoding="utf-8")
    assert "lab-1" in said("node", "list", *as_admin)
    assert "site=lab" in said("node", "show", "lab-1", *as_admin)
    assert said("node", "label", "lab-1", "gpu=yes", "site-", *as_admin) == "lab-1: gpu=yes\n"
    assert said("node", "revoke", "lab-1", *as_admin) == "lab-1 was revoked\n"
    assert "revoked" in said("node", "show", "lab-1", *as_admin)


def test_a_second_identity_is_named_where_it_is_needed(
    said: Said, fleet: Members, as_admin: tuple[str, str], tmp_path: Path
) -> None:
    said("join", fleet.token("first"))
    shown = said("join", fleet.token("second"))
    assert "it refuses all work until that file allows a workload" in shown
    assert f"fedloom client --identity {tmp_path}/config/fedloom/node-second" in shown
    said("join", fleet.token("bob", role="user"))
    shown = said("join", fleet.token("eve", role="user"))
    assert f"fedloom runs --identity {tmp_path}/config/fedloom/user-eve" in shown


def test_a_folder_that_is_not_there_spends_no_token(said: Said, fleet: Members) -> None:
    token = fleet.token("unspent")
    reported = said("join", token, "--allow", "image_classification=/nowhere", code=2)
    assert reported == "fedloom: --allow 'image_classification=/nowhere': /nowhere is not a folder on this machine; the token was not used\n"  # fmt: skip  # noqa: E501
    assert "joined" in said("join", token)


@pytest.mark.parametrize(
    ("arguments", "code", "reported"),
    [
        (["token", "create", "--name", "a b"], 1, "expected 1 to 64 letters"),
        (["token", "create", "--name", "x", "--ttl", "90"], 2, "expected a number and s, m, h or d"),
        (["token", "create", "--name", "x", "--ttl", "90d"], 1, "at most 30 days"),
        (["token", "create", "--name", "x", "--role", "king"], 1, "expected one of node, user, admin"),
        (["token", "create", "--name", "x", "--label", "site"], 2, "expected KEY=VALUE"),
        (["token", "create", "--name", "server-admin"], 2, "is already a member; choose another name"),
        (["node", "show", "nobody"], 2, "no member 'nobody'"),
        (["node", "revoke", "nobody"], 1, "no member 'nobody' in good standing"),
        (["node", "label", "nobody", "a=b"], 1, "no member 'nobody'"),
        (["node", "revoke", "server-admin"], 1, "cannot revoke itself; another administrator can"),
    ],
)
def test_wrong_input_is_reported(
    said: Said, as_admin: tuple[str, str], arguments: list[str], code: int, reported: str
) -> None:
    text = said(*arguments, *as_admin, code=code)
    assert text.startswith("fedloom: ") and reported in text and "no response from the server" not in text


def test_a_clock_that_is_years_ahead_stops_nobody(said: Said, fleet: Members) -> None:
    identity = fleet.joined("once-ann", "user")
    received_in_1970(identity.folder)
    assert "owner" in said("runs", "--identity", str(identity.folder))
    assert Identity.load(identity.folder) == identity, "by the server's clock it is not due"
    assert identity.remaining_s() > 0, "which it has said"


def received_in_1970(folder: Path) -> None:
    """By this machine's clock, before it was restarted."""
    receipt = Receipt.load(folder, (folder / "certificate.pem").read_bytes())
    replace(receipt, received=Moment(wall=0.0, boot="an earlier start", uptime=1.0)).save(folder)


def test_an_ended_certificate_is_the_explanation_where_the_server_does_not_take_it(said: Said, fleet: Members) -> None:
    identity = fleet.joined("twice-ann", "user")
    fleet.revoke("twice-ann")
    received_in_1970(identity.folder)
    told = said("runs", "--identity", str(identity.folder), code=1)
    assert "revoked" in told and "receipt was 1970-01-01 00:00:00" in told and "join again with a new token" in told


def test_nobody_may_read_a_key_but_its_owner(said: Said, fleet: Members) -> None:
    identity = fleet.joined("loose", "user")
    os.chmod(identity.folder / "key.pem", 0o640)  # noqa: PTH101
    assert "chmod 600" in said("runs", "--identity", str(identity.folder), code=2)


def test_a_name_of_several_passes_over_those_taken(fleet: Members, said: Said, tmp_path: Path) -> None:
    fleet.joined("shelf-1")
    token = fleet.token("shelf", uses=2)
    for place in "ab":
        said("join", token, "--identity", str(tmp_path / place))
    assert [Identity.load(tmp_path / place).name for place in "ab"] == ["shelf-2", "shelf-3"]

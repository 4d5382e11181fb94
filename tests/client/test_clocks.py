"""Clocks that are wrong stop no node: validity is judged by the time since receipt, and the server decides."""

from __future__ import annotations

import datetime
import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from members import Members, members

from fedloom.client import enroll, shown_certificate
from fedloom.client.enroll import Renewer, attempt_due_s, attempt_every_s, renewal_due_s, renewed_if_due
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core import receipt
from fedloom.core.errors import ServerUnreachable, Unauthenticated
from fedloom.core.identity import Identity
from fedloom.server.access import authority
from fedloom.testing.by_hand import ManualAgent
from fedloom.testing.fleet import wait_until

DAY_S = 86400.0
YEAR_2040 = 2_208_988_800.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with members(tmp_path_factory.mktemp("members"), certificate_days=30.0) as made:
        yield made


class Machine:
    """The clocks of a machine, set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.boot, self.uptime = time.time(), "first", 1000.0
        monkeypatch.setattr(receipt, "_wall", lambda: self.wall)
        monkeypatch.setattr(receipt, "_boot", lambda: self.boot)
        monkeypatch.setattr(receipt, "_uptime", lambda: self.uptime)

    def run(self, days: float) -> None:
        """Let time pass."""
        self.wall, self.uptime = self.wall + days * DAY_S, self.uptime + days * DAY_S

    def jump(self, days: float) -> None:
        """Set the wall clock."""
        self.wall += days * DAY_S

    def restart(self, days: float = 0.0) -> None:
        """Start the machine again, after which its wall clock says so many days more."""
        self.boot, self.uptime = f"{self.boot}+", 5.0
        self.jump(days)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def attempts(fleet: Members, name: str) -> int:
    """How many certificates a member has had, besides its first."""
    rows = fleet.security.registry._database.execute("select count(*) from certificates where member = ?", (name,))
    return int(rows.fetchone()[0]) - 1


@pytest.mark.parametrize("passed", [0.0, 12.0, 20.0, 31.0])
@pytest.mark.parametrize("jump", [0.0, 5000.0, -5000.0])
def test_what_is_left_is_by_the_time_since_receipt(
    fleet: Members, machine: Machine, passed: float, jump: float
) -> None:
    """30 days, renewed when a third is left; a wall clock that jumps changes nothing while the machine runs."""
    identity = fleet.joined(f"age-{passed:g}-{'on' if jump > 0 else 'back' if jump else 'still'}")
    machine.jump(jump)
    machine.run(passed)
    os.utime(identity.folder / "certificate.pem", (YEAR_2040, YEAR_2040))
    assert identity.remaining_s() / DAY_S == pytest.approx(30.0 - passed, abs=0.01)
    assert renewal_due_s(identity) / DAY_S == pytest.approx(20.0 - passed, abs=0.01)
    assert attempt_due_s(identity) == max(0.0, renewal_due_s(identity))


@pytest.mark.parametrize(("jump", "left"), [(0.0, 30.0), (12.0, 18.0), (31.0, -1.0), (-0.0005, 30.0), (-1.0, 0.0)])
def test_after_a_restart_the_age_is_an_estimate_and_the_server_is_asked(
    fleet: Members, machine: Machine, jump: float, left: float
) -> None:
    name = f"restart-{abs(jump):g}-{'back' if jump < 0 else 'on'}".replace(".", "-")
    identity = fleet.joined(name)
    machine.restart(jump)
    assert identity.remaining_s() / DAY_S == pytest.approx(left, abs=0.01)
    assert attempt_due_s(identity) == 0.0, "by the server's clock, which this one cannot be trusted to match"
    assert renewed_if_due(identity) == identity and attempts(fleet, name) == 0, "it is not due there"
    assert identity.remaining_s() / DAY_S == pytest.approx(30.0, abs=0.01), "the server's word counts from here on"
    assert attempt_due_s(identity) / DAY_S == pytest.approx(20.0, abs=0.01)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / receipt.FILE).unlink(),
        lambda folder: (folder / receipt.FILE).write_bytes(b"\xff\0{"),
        lambda folder: (folder / receipt.FILE).write_text("[]", encoding="utf-8"),
        lambda folder: (folder / receipt.FILE).write_text('{"certificate": 1}', encoding="utf-8"),
        lambda folder: spoil(folder, received={"wall": 1e300, "boot": "first", "uptime": 1.0}),
        lambda folder: spoil(folder, received={"wall": float("nan"), "boot": "first", "uptime": 1.0}),
        lambda folder: spoil(folder, certificate="of another one"),
    ],
    ids=["gone", "bytes", "list", "short", "year", "nan", "other"],
)
def test_a_receipt_that_says_nothing_has_the_server_asked_once(
    fleet: Members, machine: Machine, damage: object, request: pytest.FixtureRequest
) -> None:
    name = f"damaged-{request.node.callspec.id}"
    identity = fleet.joined(name)
    assert callable(damage)
    damage(identity.folder)
    assert attempt_due_s(identity) == 0.0 and "the time of its receipt is not known" in identity.ended()
    assert renewed_if_due(identity) == identity and attempts(fleet, name) == 0
    assert identity.remaining_s() / DAY_S == pytest.approx(30.0, abs=0.01) and not identity.ended()


def spoil(folder: Path, **values: object) -> None:
    content = json.loads((folder / receipt.FILE).read_text(encoding="utf-8"))
    (folder / receipt.FILE).write_text(json.dumps({**content, **values}), encoding="utf-8")


@pytest.mark.parametrize("file_time", [0.0, YEAR_2040])
def test_a_copy_of_any_age_renews_nothing_that_the_server_knows_to_be_fresh(
    fleet: Members, tmp_path: Path, file_time: float
) -> None:
    name = f"copied-{file_time:.0f}"
    original = fleet.joined(name)
    shutil.copytree(original.folder, tmp_path / "copy")
    for file in (tmp_path / "copy").iterdir():
        os.utime(file, (file_time, file_time))
    copy = Identity.load(tmp_path / "copy")
    assert attempt_due_s(copy) == 0.0, "a copy knows nothing of the certificate's age"
    renewer = Renewer(copy)
    renewer.start()
    wait_until(lambda: copy.receipt().attempted is not None and copy.remaining_s() > 0)
    renewer.stop()
    assert renewer.identity == copy and attempts(fleet, name) == 0
    hand = ManualAgent(GrpcChannel(fleet.address, identity=lambda: original), name)
    hand.open()
    hand.channel.close()


def test_a_certificate_that_is_due_is_renewed_whatever_the_clock_says(fleet: Members, machine: Machine) -> None:
    identity = fleet.joined("due")
    registry = fleet.security.registry
    with registry._lock:
        registry._database.execute(
            "update certificates set issued = issued - ?, expires = expires - ? where member = 'due'",
            (21 * DAY_S, 21 * DAY_S),
        )
    machine.restart(-20_000.0)
    fresh = renewed_if_due(identity)
    assert fresh.certificate != identity.certificate and Identity.load(identity.folder) == fresh
    assert fresh.remaining_s() / DAY_S == pytest.approx(30.0, abs=0.01)
    with pytest.raises(Unauthenticated, match=r"has been used, which revoked this one.*copy or an old backup"):
        enroll.confirm(identity)


@pytest.mark.parametrize("clock", ["runs", "restarts", "jumps on", "jumps back"])
def test_there_is_one_attempt_in_ten_minutes_however_often_the_agent_starts(
    fleet: Members, machine: Machine, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = fleet.joined(f"restless-{clock.replace(' ', '-')}")
    (identity.folder / receipt.FILE).unlink()
    tried: list[float] = []

    class Nobody:
        def __init__(self, channel: object) -> None:
            tried.append(machine.uptime)
            raise ServerUnreachable("nobody there")

    monkeypatch.setattr(enroll, "CredentialsStub", Nobody)
    for _ in range(60):
        if attempt_due_s(identity) <= 0:
            with pytest.raises(ServerUnreachable):
                renewed_if_due(identity)
        machine.run(30.0 / DAY_S)
        if clock.startswith("jumps"):
            machine.jump(1000.0 if clock == "jumps on" else -1000.0)
        if clock == "restarts" and len(tried) == 1:
            machine.restart()
            machine.uptime = 1e6
    assert len(tried) == 3 and min(late - soon for soon, late in itertools.pairwise(tried)) >= 600.0


def test_a_failed_attempt_names_both_clocks_and_the_next_one(
    fleet: Members, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    identity = fleet.joined("patient")
    here = datetime.datetime.fromtimestamp(machine.wall, datetime.UTC)
    machine.run(365.0)
    tried: list[Identity] = []

    def refused(mine: Identity, *, only_if_due: bool) -> Identity:
        tried.append(mine)
        raise ServerUnreachable("nobody there")

    monkeypatch.setattr(enroll, "get_fresh", refused)
    monkeypatch.setattr(enroll, "_LOOK_AGAIN_S", 0.01)
    renewer = Renewer(identity)
    with caplog.at_level(logging.WARNING, logger="fedloom.client.enroll"):
        renewer.start()
        wait_until(lambda: tried)
        time.sleep(0.2)
        renewer.stop()
    assert len(tried) == 1 and attempt_every_s(identity) == 600.0
    (line,) = (record.getMessage() for record in caplog.records if record.name == "fedloom.client.enroll")
    issued = x509.load_pem_x509_certificate(identity.certificate).not_valid_after_utc - datetime.timedelta(days=30)
    assert "nobody there" in line and f"the server at {fleet.address} it is valid from {issued:%Y-%m-%d %H:%M}" in line
    assert f"receipt was {here:%Y-%m-%d %H:%M}" in line and "by this machine's clock it is 2" in line
    assert "the next attempt is in 600 s" in line


def test_a_folder_that_cannot_be_written_is_named_and_what_is_valid_is_used(
    fleet: Members, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    identity = fleet.joined("read-only")
    machine.restart()

    def full(self: receipt.Receipt, folder: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(receipt.Receipt, "save", full)
    assert renewed_if_due(identity) == identity
    assert f"{identity.folder} cannot be written (Read-only file system)" in caplog.text


def test_short_validities_are_tried_more_often(tmp_path: Path) -> None:
    with members(tmp_path, certificate_days=60.0 / DAY_S) as short:
        assert attempt_every_s(short.joined("brief")) == pytest.approx(6.0)


def test_clocks_that_are_behind_accept_the_servers_certificates(fleet: Members) -> None:
    _, certificate = fleet.security.authority.server_pair()
    for each in (certificate, fleet.security.authority.certificate_pem):
        assert x509.load_pem_x509_certificate(each).not_valid_before_utc.year == 1970


def test_a_clock_that_is_ahead_of_the_servers_certificate_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to a device whose clock says 2040: the certificate that the server presents has expired."""
    with members(tmp_path) as fleet:
        identity = fleet.joined("ahead")
        monkeypatch.setattr(authority, "_SERVER_DAYS", -1.0)
        fleet.security.authority._server = None
        _, expired = fleet.security.authority.server_pair()
        monkeypatch.setattr(shown_certificate, "shown_certificate", lambda *of: expired)
        until = x509.load_pem_x509_certificate(expired).not_valid_after_utc
        said = shown_certificate.clock_trouble(identity)
        assert f"valid until {until:%Y-%m-%d %H:%M:%S} UTC, and by this machine's clock it is 2" in said
        monkeypatch.undo()
        assert not shown_certificate.clock_trouble(identity), "the one it really presents is valid"

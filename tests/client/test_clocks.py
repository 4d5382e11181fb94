"""Clocks that are wrong stop no node: validity is judged by the time since receipt, and the server decides."""

from __future__ import annotations

import datetime
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from members import Members, members

from fedloom.client import enroll
from fedloom.client.enroll import Renewer, attempt_every_s, renewal_due_s
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.errors import ServerUnreachable
from fedloom.core.identity import Identity
from fedloom.testing.by_hand import ManualAgent
from fedloom.testing.fleet import wait_until

DAY_S = 86400.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with members(tmp_path_factory.mktemp("members"), certificate_days=30.0) as made:
        yield made


def received(identity: Identity, days_ago: float) -> None:
    """Have this machine's clock differ: the certificate was received so many of its days ago."""
    at = time.time() - days_ago * DAY_S
    os.utime(identity.folder / "certificate.pem", (at, at))


@pytest.mark.parametrize(
    ("days_ago", "left", "due"),
    [(0.0, 30.0, 20.0), (12.0, 18.0, 8.0), (20.0, 10.0, 0.0), (31.0, -1.0, -11.0), (-1.0, 0.0, -10.0)],
)
def test_what_is_left_is_by_the_time_since_receipt(fleet: Members, days_ago: float, left: float, due: float) -> None:
    """30 days, renewed when a third is left; a clock set back since says nothing of the time that has passed."""
    identity = fleet.joined(f"age-{days_ago:g}".replace(".", "-").replace("--", "-"))
    received(identity, days_ago)
    assert identity.remaining_s() / DAY_S == pytest.approx(left, abs=0.01)
    assert renewal_due_s(identity) / DAY_S == pytest.approx(due, abs=0.01)


@pytest.mark.parametrize("days_ago", [20_000.0, -20_000.0])
def test_a_node_works_and_renews_whatever_its_clock_says(fleet: Members, days_ago: float) -> None:
    name = f"clock-{'ahead' if days_ago > 0 else 'behind'}"
    identity = fleet.joined(name)
    received(identity, days_ago)
    assert identity.ended(), "so it looks from here"
    hand = ManualAgent(GrpcChannel(fleet.address, identity=lambda: identity), name)
    hand.open()
    hand.channel.close()
    renewer = Renewer(identity)
    renewer.start()
    wait_until(lambda: renewer.identity.certificate != identity.certificate)
    renewer.stop()
    assert renewer.identity.remaining_s() / DAY_S == pytest.approx(30.0, abs=0.01)


def test_there_is_one_attempt_in_ten_minutes_and_both_clocks_are_named(
    fleet: Members, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    identity = fleet.joined("patient")
    received(identity, 365.0)
    attempts: list[Identity] = []

    def refused(mine: Identity) -> Identity:
        attempts.append(mine)
        raise ServerUnreachable("nobody there")

    monkeypatch.setattr(enroll, "get_fresh", refused)
    monkeypatch.setattr(enroll, "_LOOK_AGAIN_S", 0.01)
    renewer = Renewer(identity)
    with caplog.at_level(logging.WARNING, logger="fedloom.client.enroll"):
        renewer.start()
        wait_until(lambda: attempts)
        time.sleep(0.2)
        renewer.stop()
    assert len(attempts) == 1 and attempt_every_s(identity) == 600.0
    (line,) = (record.getMessage() for record in caplog.records if record.name == "fedloom.client.enroll")
    issued = x509.load_pem_x509_certificate(identity.certificate).not_valid_after_utc - datetime.timedelta(days=30)
    here = datetime.datetime.fromtimestamp((identity.folder / "certificate.pem").stat().st_mtime, datetime.UTC)
    assert "nobody there" in line and f"the server at {fleet.address} it is valid from {issued:%Y-%m-%d %H:%M}" in line
    assert f"received at {here:%Y-%m-%d %H:%M}" in line and "the next attempt is in 600 s" in line


def test_short_validities_are_tried_more_often(tmp_path: Path) -> None:
    with members(tmp_path, certificate_days=60.0 / DAY_S) as short:
        assert attempt_every_s(short.joined("brief")) == pytest.approx(6.0)


def test_clocks_that_are_behind_accept_the_servers_certificates(fleet: Members) -> None:
    _, certificate = fleet.security.authority.server_pair()
    for each in (certificate, fleet.security.authority.certificate_pem):
        assert x509.load_pem_x509_certificate(each).not_valid_before_utc.year == 1970

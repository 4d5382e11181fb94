"""What a hosted wrapper of Flower's does not do as its name promises is said once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedloom.strategies.flower import build


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    build._warn.cache_clear()
    yield
    build._warn.cache_clear()


@pytest.mark.parametrize("short", build.WRAPPERS)
def test_differential_privacy_by_a_seed_is_not_private(short: str, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        build._warn(build.WRAPPERS[short])
    reported = [record.getMessage() for record in caplog.records]
    assert sum("is not private" in message for message in reported) == 1
    assert sum("diverges" in message for message in reported) == int(short == "server_adaptive_clipping")


def test_other_wrappers_are_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    build._warn("FedAvg")
    assert not caplog.records

"""A run ends in order when the head of its Ray cluster is gone, before Ray ends the process."""

from __future__ import annotations

import logging

import pytest

from fedloom.simulation.ray_head import VARIABLE, RayHead, patience_s


class Head:
    """A head and a clock that the test sets."""

    def __init__(self) -> None:
        self.now, self.asked, self.dead = 100.0, 0, False

    def clock(self) -> float:
        return self.now

    def reach(self, address: str) -> None:
        assert address == "head:6379"
        self.asked += 1
        if self.dead:
            raise ConnectionRefusedError(111, "Connection refused")


@pytest.fixture
def head() -> Head:
    return Head()


def watched(head: Head, address: str = "head:6379") -> RayHead:
    return RayHead(address, 30.0, head.reach, head.clock)


def test_a_head_that_answers_is_asked_now_and_then(head: Head) -> None:
    ray_head = watched(head)
    for _ in range(100):
        head.now += 0.5
        assert ray_head.look() == ""
    assert head.asked == 25 and ray_head.trouble() == ""


def test_one_that_does_not_counts_as_gone_after_a_while(head: Head, caplog: pytest.LogCaptureFixture) -> None:
    ray_head = watched(head)
    head.now += 2.0
    assert ray_head.look() == ""
    head.dead = True
    with caplog.at_level(logging.WARNING):
        for _ in range(59):
            head.now += 0.5
            assert ray_head.look() == ""
        head.now += 0.5
        said = ray_head.look()
    assert said == (
        "the Ray head at head:6379 has not answered for 30 s (ConnectionRefusedError: [Errno 111] Connection refused)"
    )
    assert "does not answer" in caplog.text and len(caplog.records) == 1, "it is said once"
    assert "Connection refused" in ray_head.trouble()


def test_one_that_is_back_in_time_is_as_before(head: Head) -> None:
    ray_head = watched(head)
    head.dead = True
    for _ in range(50):
        head.now += 0.5
        assert ray_head.look() == ""
    head.dead = False
    for _ in range(100):
        head.now += 0.5
        assert ray_head.look() == ""
    assert ray_head.trouble() == ""


def test_through_ray_client_none_is_asked(head: Head) -> None:
    ray_head = watched(head, "")
    head.dead, head.now = True, 1000.0
    assert ray_head.look() == "" and ray_head.trouble() == "" and not head.asked


@pytest.mark.parametrize(("environment", "seconds"), [({}, 36.0), ({VARIABLE: "100"}, 60.0), ({VARIABLE: "x"}, 36.0)])
def test_rays_own_limit_decides(environment: dict[str, str], seconds: float) -> None:
    assert patience_s(environment) == pytest.approx(seconds)

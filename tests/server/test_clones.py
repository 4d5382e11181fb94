"""Two machines with one identity: the first works on, the second waits, and one warning names both."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from fedloom.client.agent import Agent
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.errors import ServerUnreachable
from fedloom.core.messages import INSTANCE, Heartbeat, Hello
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.testing.fleet import TOKEN, quick_server, wait_until


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    made = Coordinator(PayloadStore(None, max_payload_bytes=1000), heartbeat_s=0.1)
    yield made
    made.close()


def call(coordinator: Coordinator, instance: str, session: str, address: str) -> None:
    hello = Hello(node="twin", session=session, facts={INSTANCE: instance} if instance else {})
    coordinator.register(hello, "remote", address=address)
    coordinator.attach("twin", session)


def test_the_newcomer_waits_and_one_warning_names_both_addresses(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    call(coordinator, "first", "1", "ipv4:10.0.0.1:50")
    with caplog.at_level(logging.WARNING):
        for session in "234":
            with pytest.raises(ServerUnreachable, match=r"from ipv4:10\.0\.0\.1:50, .* from ipv4:10\.0\.0\.2:60"):
                call(coordinator, "second", session, "ipv4:10.0.0.2:60")
            coordinator.receive("twin", "1", Heartbeat())  # the first one's session lives on
    assert len(caplog.messages) == 1
    coordinator.detach("twin", "1", "its connection ended")
    call(coordinator, "second", "5", "ipv4:10.0.0.2:60")
    assert coordinator.nodes()["twin"].hello.session == "5"


def test_one_warning_is_enough_however_often_either_machine_starts_again(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = "ipv4:10.0.0.1", "ipv6:[fd00::2]"
    call(coordinator, "0", "0", f"{ours}:50")
    for number in range(1, 9):  # the two take turns, each time as a new process from a new port
        there = theirs if number % 2 else ours
        with caplog.at_level(logging.WARNING), pytest.raises(ServerUnreachable, match="copies of one identity"):
            call(coordinator, f"{number}", f"{number}", f"{there}:{60 + number}")
        coordinator.detach("twin", f"{number - 1}", "its connection ended")
        call(coordinator, f"{number}", f"{number}", f"{there}:{80 + number}")
    assert len(caplog.messages) == 1 and "10.0.0.1:50" in caplog.text and "[fd00::2]:61" in caplog.text


@pytest.mark.parametrize(("before", "now"), [("first", "first"), ("", "second"), ("first", "")])
def test_the_same_agent_and_older_ones_replace_their_session(coordinator: Coordinator, before: str, now: str) -> None:
    call(coordinator, before, "1", "a")
    call(coordinator, now, "2", "b")
    assert coordinator.nodes()["twin"].hello.session == "2"


def test_agents_of_one_name_do_not_take_turns() -> None:
    with quick_server(shared_memory=False) as server:
        address = f"127.0.0.1:{server.listen(token=TOKEN)}"
        agents = [Agent(GrpcChannel(address, TOKEN), "twin", give_up_s=30) for _ in range(2)]
        threads = [threading.Thread(target=agent.run) for agent in agents]
        nodes = server.coordinator.nodes
        threads[0].start()
        wait_until(lambda: "twin" in nodes() and nodes()["twin"].online)
        session = nodes()["twin"].hello.session
        threads[1].start()
        wait_until(lambda: nodes()["twin"].rivals)
        assert nodes()["twin"].hello.session == session and not agents[0].farewell
        agents[0].stop()
        threads[0].join(60)
        wait_until(lambda: nodes()["twin"].online and nodes()["twin"].hello.session != session)
        agents[1].stop()
        threads[1].join(60)

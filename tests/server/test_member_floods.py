"""Messages of one member, or of a stranger, without end: an administrator is answered within a second meanwhile.

What the server writes and holds stays bounded, too. Run with `-s` to read the numbers.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from flooded_site import BOUND_S, Site

from fedloom.client.control import ControlClient
from fedloom.client.link import connect, connect_trusting
from fedloom.core.config import Experiment
from fedloom.core.identity import Identity, JoinToken, certificate_request, make_key
from fedloom.core.messages import PROTOCOL
from fedloom.proto.v1 import control_pb2, enroll_pb2, results_pb2
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.server.access.control_service import MAX_EXPERIMENT
from fedloom.testing.fleet import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PREFIX = "/fedloom.proto.v1."
Once = Callable[[grpc.Channel, int], object]
"""One message of a flood over a connection, with its number."""
MEGABYTE = 1 << 20
METADATA = (("fedloom-node", "evil"), ("fedloom-session", "s"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with contextlib.closing(made.shell):
        yield made


def register(channel: grpc.Channel, session: str = "s", facts: str = "") -> None:
    request = pb.RegisterRequest(protocol=PROTOCOL, node="evil", session=session, facts_json=facts).SerializeToString()
    channel.unary_unary(PREFIX + "Fleet/Register", None, None)(request, timeout=10)


def unary(call: str, request: Callable[[int], bytes]) -> Once:
    """The same call again and again; calls whose answers are streams are read to their end."""

    def once(channel: grpc.Channel, number: int) -> object:
        return list(channel.unary_stream(PREFIX + call, None, None)(request(number), metadata=METADATA, timeout=30))

    return once


def stream(messages: Callable[[int], list[pb.FromAgent]]) -> Once:
    """A stream of messages in the node's session, as many as its connection takes, never reading an answer."""

    def once(channel: grpc.Channel, number: int) -> object:
        with contextlib.suppress(grpc.RpcError):
            register(channel, f"s{number}-{id(channel)}")
        batch = pb.FromAgentBatch(messages=messages(number)).SerializeToString()
        metadata = (("fedloom-node", "evil"), ("fedloom-session", f"s{number}-{id(channel)}"))
        call = channel.stream_stream(PREFIX + "Fleet/Work", None, None)(
            (batch for _ in range(2000)), metadata=metadata, timeout=3
        )
        return list(call)

    return once


def flood(site: Site, open_channel: Callable[[], grpc.Channel], once: Once, threads: int = 8) -> tuple[float, int]:
    """Send for some seconds from several connections; the slowest call of an administrator, and the messages sent."""
    over, sent = threading.Event(), [0] * threads

    def run(number: int) -> None:
        with contextlib.closing(open_channel()) as channel:
            while not over.is_set():
                with contextlib.suppress(grpc.RpcError):
                    once(channel, threads * sent[number] + number)
                sent[number] += 1

    running = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(threads)]
    for thread in running:
        thread.start()
    try:
        wait_until(lambda: sum(sent) > threads, 60)
        slowest = site.slowest_call_s(3.0)
    finally:
        over.set()
        for thread in running:
            thread.join(40)
    return slowest, sum(sent)


def key(number: int) -> pb.GroupKey:
    return pb.GroupKey(run_id="r", round=1, exchange=0, index=number % 4_000_000)


def results(size: int) -> Callable[[int], list[pb.FromAgent]]:
    """Results of groups that nobody assigned, each with a sum of so many bytes."""
    total = pb.Payload(size=size, inline=bytes(size))
    return lambda number: [pb.FromAgent(result=pb.GroupResult(key=key(number), total=total))] * 16


NODE_FLOODS = {
    "results of nobody's groups": stream(results(1000)),
    "large results": stream(results(200_000)),
    "verdicts nobody asked for": stream(
        lambda number: [pb.FromAgent(verdict=pb.Verdict(id=f"{number}", kind="code"))] * 64
    ),
    "refusals of nobody's groups": stream(
        lambda number: [pb.FromAgent(refusal=pb.Refusal(key=key(number), kind="hours", reason="x" * 2000))] * 64
    ),
    "runs it says it lacks": stream(
        lambda number: [pb.FromAgent(heartbeat=pb.Heartbeat(missing_runs=[f"r{n}" for n in range(4096)]))] * 4
    ),
    "goodbyes": stream(lambda number: [pb.FromAgent(goodbye=pb.Goodbye(reason="x" * 60_000))]),
    "registrations": lambda channel, number: register(channel, f"s{number}", json.dumps({"x": "y" * 4000})),
    "offsets of uploads": unary(
        "Fleet/UploadOffset", lambda number: pb.UploadRequest(sha256=f"{number:064x}", size=1 << 30).SerializeToString()
    ),
    "digests": unary("Fleet/Download", lambda number: pb.DownloadRequest(sha256=f"{number:064x}").SerializeToString()),
    "renewals": unary(
        "Credentials/Renew",
        lambda number: enroll_pb2.RenewRequest(csr_pem=certificate_request(make_key())).SerializeToString(),
    ),
    "calls that are not its own": unary("Admin/ListMembers", lambda number: b""),
}  # fmt: skip


@pytest.mark.parametrize("name", NODE_FLOODS)
def test_messages_of_a_node(site: Site, name: str) -> None:
    identity = site.joined("evil")
    with contextlib.closing(connect(identity.address, identity)) as channel:
        register(channel)
    before = site.memory_mb(), site.written()
    slowest, sent = flood(site, lambda: connect(identity.address, identity), NODE_FLOODS[name])
    _report(site, name, slowest, sent, before)


def many_texts(number: int) -> bytes:
    """As many texts as an experiment may have, each of them to be judged."""
    values = {"rounds": 1, "strategy": "fedavg", "workload": {"name": "image_classification", "x": ["a/b"] * 150_000}}
    return control_pb2.SubmitRequest(
        experiment_json=json.dumps(values)[: MAX_EXPERIMENT + number % 2]
    ).SerializeToString()


BEYOND = control_pb2.SubmitRequest(experiment_json="[" * (15 * MEGABYTE)).SerializeToString()


def deep(number: int) -> bytes:
    values = '{"rounds": 1, "workload": {"name": "image_classification", "x": ' + "[" * 400 + "]" * 400 + "}}"
    return control_pb2.SubmitRequest(experiment_json=values).SerializeToString()


USER_FLOODS = {
    "experiments of a megabyte": unary("Control/Submit", many_texts),
    "experiments beyond the limit": unary("Control/Submit", lambda number: BEYOND),
    "deep experiments": unary("Control/Submit", deep),
    "lists of runs": unary("Control/ListRuns", lambda number: b""),
    "calls for administrators": unary(
        "Admin/Audit", lambda number: enroll_pb2.AuditRequest(last=10).SerializeToString()
    ),
    "runs that are not there": unary(
        "Results/Files", lambda number: results_pb2.FilesRequest(run_id=f"r{number}").SerializeToString()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", USER_FLOODS)
def test_messages_of_a_user(site: Site, name: str) -> None:
    identity = site.joined("evil", "user")
    before = site.memory_mb(), site.written()
    slowest, sent = flood(site, lambda: connect(identity.address, identity), USER_FLOODS[name])
    _report(site, name, slowest, sent, before)


OWN_RUN_FLOODS: dict[str, Callable[[str], Once]] = {
    "submissions": lambda run: unary(
        "Control/Submit",
        lambda number: control_pb2.SubmitRequest(
            experiment_json=json.dumps(_experiment().to_dict())
        ).SerializeToString(),
    ),
    "stops": lambda run: unary("Control/Stop", lambda number: control_pb2.StopRequest(run_id=run).SerializeToString()),
    "logs": lambda run: unary("Results/Logs", lambda number: results_pb2.LogsRequest(run_id=run).SerializeToString()),
    "lists of files": lambda run: unary(
        "Results/Files", lambda number: results_pb2.FilesRequest(run_id=run).SerializeToString()
    ),
    "files by any name": lambda run: unary(
        "Results/Fetch",
        lambda number: results_pb2.FetchRequest(run_id=run, name=f"plugins/{number}.py", length=1).SerializeToString(),
    ),
}  # fmt: skip


def _experiment() -> Experiment:
    return Experiment.parse(
        {"name": "own", "rounds": 1, "clients": 2, "strategy": "fedavg", "workload": "image_classification"}
    )


@pytest.mark.parametrize("name", OWN_RUN_FLOODS)
def test_calls_about_a_run_of_ones_own(site: Site, name: str) -> None:
    identity = site.joined("evil", "user")
    with ControlClient(identity.address, identity=identity) as control:
        run = control.submit(_experiment())
    before = site.memory_mb(), site.written()
    slowest, sent = flood(site, lambda: connect(identity.address, identity), OWN_RUN_FLOODS[name](run))
    _report(site, name, slowest, sent, before)


@pytest.mark.parametrize("secret", ["x" * 43, "x" * 10_000])
def test_requests_to_join_by_a_stranger(site: Site, secret: str) -> None:
    ticket = JoinToken.decode(_token(site))
    request = enroll_pb2.JoinRequest(protocol=PROTOCOL, secret=secret, csr_pem=certificate_request(make_key()))
    before = site.memory_mb(), site.written()

    def open_channel() -> grpc.Channel:
        return connect_trusting(ticket.address, site.admin.authority)

    once = unary("Enroll/Join", lambda number: request.SerializeToString())
    slowest, sent = flood(site, open_channel, once)
    _report(site, "requests to join", slowest, sent, before)


def _token(site: Site) -> str:
    from fedloom.client.admin import AdminClient

    with AdminClient(site.admin) as admin:
        return admin.create_token("one", ttl_s=600.0).encode()


def _report(site: Site, name: str, slowest: float, sent: int, before: tuple[float, int]) -> None:
    memory, written = site.memory_mb() - before[0], site.written() - before[1]
    print(
        f"\n{name}: {sent} sent, slowest administrator's call {slowest:.2f} s, +{memory:.0f} MB, "
        f"+{written:,} bytes written"
    )
    assert slowest < BOUND_S
    assert memory < 1200, "sixteen messages of 16 MiB, each a few times, and the threads"
    runs = 60 * 20_000 if name == "submissions" else 0
    assert written < 100_000 + runs, "some lines a second; of each user at most sixty runs"
    assert site.process.poll() is None
    deadline = time.monotonic() + 20
    while (left := site.threads()) > 1500 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left <= 1500


def test_an_administrator_is_answered_without_a_flood(site: Site) -> None:
    """The control."""
    identity: Identity = site.admin
    print(f"\nno flood: slowest administrator's call {site.slowest_call_s(1.0):.2f} s")
    assert identity.role == "admin"

"""A node and a server that lies to it, or is only newer: what it says is bounded, and does not end or fill the node."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from fedloom.client.agent import MAX_WAITING, Agent
from fedloom.client.grpc_channel import GrpcChannel, clamped
from fedloom.client.inbox import INBOX_MESSAGES, Inbox
from fedloom.core.errors import LimitExceeded
from fedloom.core.identity import Identity, key_pem, make_key, pem
from fedloom.core.messages import MAX_PAYLOAD_BYTES, Cancel, Goodbye, Group, GroupKey, Welcome
from fedloom.core.records import Job
from fedloom.core.reserved import reserve
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
from fedloom.server.access.authority import Authority
from fedloom.testing.fleet import wait_until

EXPERIMENT = {
    "rounds": 1, "clients": 1, "strategy": "fedavg", "selection": "uniform",
    "workload": {"name": "image_classification", "model": {"name": "mlp"}},
}  # fmt: skip
SOUND = Welcome(heartbeat_s=2.0, max_payload_bytes=1 << 30, chunk_bytes=1 << 20)


@pytest.mark.parametrize(
    ("reported", "taken"),
    [
        (0.0, 0.05), (-1.0, 0.05), (1e-9, 0.05), (2.0, 2.0), (1e300, 60.0), (math.inf, 60.0), (-math.inf, 60.0),
        (math.nan, 60.0),
    ],
)  # fmt: skip
def test_heartbeats_are_no_flood_and_no_silence(reported: float, taken: float) -> None:
    assert clamped(dataclasses.replace(SOUND, heartbeat_s=reported), is_member=True).heartbeat_s == taken


def test_sizes_and_paths_of_a_server_are_bounded() -> None:
    wild = dataclasses.replace(SOUND, max_payload_bytes=1 << 62, chunk_bytes=0, depot_path="/home/owner")
    taken = clamped(wild, is_member=True)
    assert (taken.max_payload_bytes, taken.chunk_bytes, taken.depot_path) == (MAX_PAYLOAD_BYTES, 4096, "")
    assert clamped(dataclasses.replace(wild, chunk_bytes=1 << 31), is_member=True).chunk_bytes == 1 << 20
    assert clamped(wild, is_member=False).depot_path == "/home/owner", "a simulation's agents share memory"


def test_room_for_a_payload_is_taken_as_it_comes() -> None:
    before = resident_mb()
    buffer = reserve(4 << 30)
    buffer[:1000] = bytes(1000)
    assert resident_mb() - before < 50
    with pytest.raises(LimitExceeded, match="no memory for a frame"):
        reserve(1 << 62)
    assert len(reserve(0)) == 0


def resident_mb(pid: str = "self") -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def test_what_is_not_taken_is_not_read() -> None:
    inbox, added = Inbox(), []
    message = Cancel(run_id="r", round=1, exchange=0)

    def fill() -> None:
        for number in range(INBOX_MESSAGES + 10):
            inbox.put(message, 10)
            added.append(number)

    filling = threading.Thread(target=fill, daemon=True)
    filling.start()
    wait_until(lambda: len(added) == INBOX_MESSAGES)
    time.sleep(0.05)
    assert len(added) == INBOX_MESSAGES, "the next one waits"
    assert inbox.get(0.0) is message
    wait_until(lambda: len(added) == INBOX_MESSAGES + 1)
    inbox.close()
    filling.join(5)
    assert not filling.is_alive()
    large = Inbox()
    large.put(message, 1 << 30)  # alone, whatever its size
    assert large.get(1.0) is message and large.get(0.0) is None


def test_groups_that_wait_have_an_end() -> None:
    agent = Agent(GrpcChannel("127.0.0.1:1"), "n")
    job = Job(round=1, client=0, kind="train")
    for number in range(MAX_WAITING + 50):
        agent._take(Group(key=GroupKey("untold", 1, 0, number), jobs=(job,), accumulator="mean"))
    assert len(agent._waiting) == MAX_WAITING
    assert len(agent._heartbeat().groups) == MAX_WAITING, "those that are not kept come again"


class Liar(FleetServicer):
    """A server of one's own making: says what a test wants it to say, and listens."""

    def __init__(self, welcome: Mapping[str, object], messages: Sequence[pb.ToAgent]) -> None:
        reported = {"heartbeat_s": 2.0, "max_payload_bytes": 1 << 62, "chunk_bytes": 1 << 20, **welcome}
        self._welcome, self._messages = pb.RegisterReply(**reported), messages  # type: ignore[arg-type]
        self.heard: list[pb.FromAgent] = []
        self.called = threading.Event()

    def Register(self, request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.RegisterReply:
        self.called.set()
        return self._welcome

    def Work(
        self, request_iterator: Iterator[pb.FromAgentBatch], context: grpc.ServicerContext
    ) -> Iterator[pb.ToAgentBatch]:
        threading.Thread(target=self._hear, args=(request_iterator,), daemon=True).start()
        for message in self._messages:
            yield pb.ToAgentBatch(messages=[message])
        while context.is_active():
            time.sleep(0.1)

    def UploadOffset(self, request: pb.UploadRequest, context: grpc.ServicerContext) -> pb.UploadReply:
        return pb.UploadReply(received=0)

    def _hear(self, requests: Iterator[pb.FromAgentBatch]) -> None:
        with contextlib.suppress(Exception):
            for batch in requests:
                self.heard.extend(batch.messages)

    def said(self, kind: str) -> list[pb.FromAgent]:
        return [message for message in self.heard if message.WhichOneof("body") == kind]


@dataclasses.dataclass
class Node:
    """A `fedloom client` that has joined a liar."""

    liar: Liar
    process: subprocess.Popen[bytes]
    log: Path

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


Start = Callable[..., Node]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def made(*messages: pb.ToAgent, policy: str = "[workloads.image_classification]\n", **welcome: object) -> Node:
            authority, key, liar = Authority.open(tmp_path / "authority"), make_key(), Liar(welcome, messages)
            server = grpc.server(ThreadPoolExecutor(8))
            add_FleetServicer_to_server(liar, server)
            roots = authority.certificate_pem
            pair = grpc.ssl_server_credentials([authority.server_pair()], roots, True)
            port = server.add_secure_port("127.0.0.1:0", pair)
            server.start()
            stack.callback(lambda: server.stop(None))
            certificate = pem(authority.sign_key(key.public_key(), "victim", "node", 86400.0))
            folder = tmp_path / "node"
            Identity(
                folder=folder, name="victim", role="node", address=f"127.0.0.1:{port}", key=key_pem(key),
                certificate=certificate, authority=roots,
            ).save()  # fmt: skip
            (folder / "policy.toml").write_text(policy, encoding="utf-8")
            (folder / "policy.toml").chmod(0o600)
            log = tmp_path / "node.log"
            command = [sys.executable, "-m", "fedloom", "client", "--identity", str(folder)]
            with log.open("wb") as out:
                process = subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path)
            stack.callback(process.wait)
            stack.callback(process.kill)
            node = Node(liar, process, log)
            assert liar.called.wait(60), "the node has called"
            return node

        yield made


def run(experiment: Mapping[str, object] | str) -> pb.ToAgent:
    text = experiment if isinstance(experiment, str) else json.dumps(experiment)
    return pb.ToAgent(run=pb.RunSpec(run_id="r", experiment_json=text))


def group(number: int = 0, run_id: str = "r", **more: object) -> pb.ToAgent:
    key = pb.GroupKey(run_id=run_id, round=1, exchange=0, index=number)
    jobs = [pb.Job(client=0, kind="train", inputs=["model"])]
    return pb.ToAgent(group=pb.Group(key=key, jobs=jobs, accumulator="mean", updates_json='"model"', **more))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment",
    [
        {**EXPERIMENT, "workload": {**EXPERIMENT["workload"], "newer": 1}},  # type: ignore[dict-item]
        {**EXPERIMENT, "newer": {"than": "this"}},
        {},
        {"rounds": "many"},
    ],
)
def test_an_experiment_it_does_not_know_is_answered(start: Start, experiment: Mapping[str, object]) -> None:
    node = start(run(experiment), group())
    wait_until(lambda: node.liar.said("refusal") or node.liar.said("result"), 60, "an answer")
    for answer in node.liar.said("result"):
        assert answer.result.failures and not answer.result.reports
    assert node.process.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{", '"text"'])
def test_an_experiment_that_cannot_be_read_does_not_end_it(start: Start, text: str) -> None:
    node = start(run(text), group())
    time.sleep(2.0)
    assert node.process.poll() is None and node.cpu_s() < 30
    assert "sent an unreadable message" in node.log.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("reported", [0.0, -1.0, math.nan, 1e300])
def test_a_wild_heartbeat_does_not_spin_it_or_end_it(start: Start, reported: float) -> None:
    node = start(heartbeat_s=reported)
    begin, used = len(node.liar.heard), node.cpu_s()
    time.sleep(2.0)
    assert node.process.poll() is None
    assert len(node.liar.heard) - begin < 100 and node.cpu_s() - used < 1.0


@pytest.mark.slow
def test_a_payload_that_is_only_announced_takes_no_memory(start: Start) -> None:
    node = start(run(EXPERIMENT), group(inputs={"model": pb.Payload(size=8 << 30, sha256="0" * 64)}))
    wait_until(lambda: node.liar.said("refusal") or node.liar.said("result") or "lost the connection" in
               node.log.read_text(encoding="utf-8"), 60)  # fmt: skip
    assert node.process.poll() is None and resident_mb(str(node.process.pid)) < 1500


@pytest.mark.slow
def test_a_folder_that_a_server_names_is_not_touched(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "of-the-owner"
    folder.mkdir()
    (folder / "nonce").write_text("123", encoding="utf-8")
    wide = {**EXPERIMENT, "workload": {**EXPERIMENT["workload"], "model": {"name": "mlp", "hidden": [3000]},  # type: ignore[dict-item]
                                       "data": {"source": "digits"}}}  # fmt: skip
    key = pb.GroupKey(run_id="r", round=1, exchange=0, index=0)
    init = pb.ToAgent(group=pb.Group(key=key, jobs=[pb.Job(client=0, kind="init")], accumulator="mean",
                                     updates_json='"model"'))  # fmt: skip
    node = start(run(wide), init, depot_path=str(folder), depot_nonce="123")
    time.sleep(6.0)
    assert node.process.poll() is None and [path.name for path in folder.iterdir()] == ["nonce"]


@pytest.mark.slow
def test_groups_of_a_run_it_never_got_do_not_fill_it(start: Start) -> None:
    inline = {"model": pb.Payload(size=100_000, inline=bytes(100_000))}
    node = start(*(group(number, "untold", inputs=inline) for number in range(3000)))
    before = resident_mb(str(node.process.pid))
    time.sleep(4.0)
    assert node.process.poll() is None and resident_mb(str(node.process.pid)) - before < 150


@pytest.mark.slow
def test_a_goodbye_ends_it(start: Start) -> None:
    """The control: such a server is heard at all."""
    node = start(pb.ToAgent(goodbye=pb.Goodbye(reason="no work", come_back=False)))
    assert node.process.wait(60) == 1
    assert Goodbye(reason="no work").reason in node.log.read_text(encoding="utf-8")

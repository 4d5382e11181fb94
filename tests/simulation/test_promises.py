"""Promises with numbers: what a round costs, what crosses, what memory a payload takes, and that it is all there is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from support_paths import SUPPORT

from fedloom import api
from fedloom.client.agent import IDLE_BEATS, Agent
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core import frames
from fedloom.core.config import Experiment
from fedloom.core.events import RoundFinished, RoundStarted
from fedloom.core.messages import Channel, FromAgent, Group, Heartbeat, ToAgent
from fedloom.core.records import Record
from fedloom.server.fleet import payloads
from fedloom.server.rounds.session import run_session
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.testing.by_hand import ManualAgent, open_exchange, planned_groups
from fedloom.testing.faults import ForwardingChannel
from fedloom.testing.fleet import TOKEN, fleet_access, quick_server, run_on_fleet, running_agents, wait_until

Make = Callable[..., Experiment]
ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


def still(size: int = 4, **values: Any) -> Experiment:
    """An experiment in which only the platform works."""
    workload = {"name": str(SUPPORT / "still.py"), "size": size}
    runtime = {"name": "inline"}
    return Experiment.parse(
        {"strategy": "fedavg", "workload": workload, "runtime": runtime, "evaluation": {"every": 0}, **values}
    )


class Meter:
    """Counts the calls (Python's and C's) of each round in this thread."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self._count = 0

    def write(self, event: Any) -> None:
        if isinstance(event, RoundStarted):
            self._count = 0
            sys.setprofile(self._tick)
        if isinstance(event, RoundFinished):
            sys.setprofile(None)
            self.calls.append(self._count)

    def close(self) -> None:
        pass

    def _tick(self, frame: Any, event: str, arg: Any) -> None:
        if event in ("call", "c_call"):
            self._count += 1


def test_a_round_costs_the_same_whatever_the_population() -> None:
    meters = {}
    for population in (100, 10_000):
        meters[population] = Meter()
        experiment = still(rounds=8, clients=population, cohort=20)
        api.run(experiment, keep=False, sinks=[meters[population]])
    small, large = meters[100], meters[10_000]
    assert statistics.median(large.calls) <= 1.05 * statistics.median(small.calls)


@pytest.mark.parametrize("shared_memory", [True, False])
def test_a_broadcast_is_encoded_once_and_crosses_once_to_each_node(
    monkeypatch: pytest.MonkeyPatch, shared_memory: bool
) -> None:
    written: list[str] = []

    class Counting:
        """`core.frames` as the payload store sees it."""

        def __getattr__(self, name: str) -> Any:
            if name in ("write_into", "encode", "pieces"):
                written.append(name)
            return getattr(frames, name)

    monkeypatch.setattr(payloads, "frames", Counting())
    size, rounds, workers, groups = 100_000, 3, 2, 6
    experiment = still(size, rounds=rounds, clients=24, cohort=24, round={"group_size": 4})
    outcome = run_on_fleet(experiment, workers=workers, shared_memory=shared_memory)
    assert outcome.error is None
    if shared_memory:
        assert written.count("write_into") == rounds and not written.count("encode")
    else:  # digested once, then streamed to each node
        assert written.count("pieces") <= rounds * (1 + workers) and not written.count("encode")
    model = frames.frame_size(Record({"model": {"w": np.empty(size, np.float32)}}))
    for record in outcome.history:
        assert record.traffic.wire_bytes_down <= 1.05 * workers * model
        assert record.traffic.wire_bytes_up <= 1.05 * groups * model
        assert record.traffic.bytes_down == 24 * model, "what the clients would read, were each alone"


class Counted(ForwardingChannel):
    """A channel that counts what passes."""

    def __init__(self, inner: Channel) -> None:
        super().__init__(inner)
        self.sent: list[FromAgent] = []
        self.looked = 0
        self.came: list[ToAgent] = []

    def send(self, message: FromAgent) -> None:
        self.sent.append(message)
        self.inner.send(message)

    def receive(self, timeout_s: float) -> ToAgent | None:
        self.looked += 1
        message = self.inner.receive(timeout_s)
        if message is not None:
            self.came.append(message)
        return message


def test_an_idle_agent_and_its_server_exchange_only_heartbeats() -> None:
    with quick_server(heartbeat_s=0.05) as server:
        channel = Counted(GrpcChannel(f"127.0.0.1:{server.listen(token=TOKEN)}", TOKEN))
        agent = Agent(channel, "idle")
        thread = threading.Thread(target=agent.run)
        thread.start()
        wait_until(lambda: len(channel.sent) >= 10)
        beats, looked = len(channel.sent), channel.looked
        assert all(message == Heartbeat() for message in channel.sent)
        assert not channel.came
        assert looked <= IDLE_BEATS * (beats + 2), "it waits for a message; it does not look for one"
        agent.stop()
        thread.join()


def test_a_payload_needs_its_own_size_and_a_few_chunks() -> None:
    size = 64 * MIB
    record = Record({"model": {"w": np.zeros(size // 4, np.float32)}})
    with quick_server(shared_memory=False, heartbeat_s=5.0) as server:
        hand = ManualAgent(GrpcChannel(f"127.0.0.1:{server.listen(token=TOKEN)}", TOKEN))
        hand.open()
        hand.channel.send(Heartbeat())
        with open_exchange(server.coordinator, planned_groups(1.0), inputs={"model": record}):
            ref = hand.take(Group)[0].inputs["model"]
            tracemalloc.start()
            try:
                fetched = hand.channel.fetch(ref)
                down = tracemalloc.get_traced_memory()[1]
                del fetched
                tracemalloc.reset_peak()
                stored = hand.channel.store(record, "run")
                up = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        # Frames that arrive are mapped, which tracemalloc does not count, so this is all there is beside them.
        assert down <= 8 * MIB, f"{down / MIB:.1f} MiB beside the frame the agent has"
        assert up <= 8 * MIB, f"{up / MIB:.1f} MiB beside the frame the server has"
        assert server.payloads.take("hand", stored).num_bytes == size
        hand.channel.close()


PAYLOAD_SERVER = """
import sys
import numpy as np
from fedloom.core.records import Record
from fedloom.server.app import Server
from fedloom.testing.by_hand import open_exchange, planned_groups
with Server(shared_memory=False) as server:
    record = Record({"model": {"w": np.ones(int(sys.argv[1]) // 2, np.float16)}})
    with open_exchange(server.coordinator, planned_groups(1.0), inputs={"model": record}):
        print(server.listen(), flush=True)
        sys.stdin.readline()
    print(max(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")), flush=True)
"""
PAYLOAD_AGENT = """
import sys
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.messages import Group, Heartbeat
from fedloom.testing.by_hand import ManualAgent
def peak(): return max(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
hand = ManualAgent(GrpcChannel(f"127.0.0.1:{sys.argv[1]}"), "n")
hand.start()
ref = hand.take(Group)[0].inputs["model"]
before = peak()
record = hand.channel.fetch(ref)
down = peak()
hand.channel.store(record, "run")
print(before, down, peak(), float(record.groups["model"]["w"][-1]), flush=True)
hand.channel.close()
"""


@pytest.mark.parametrize("mib", [128, pytest.param(3072, marks=pytest.mark.slow)])
def test_processes_that_stream_a_payload_stay_small(mib: int) -> None:
    """Resident memory, gRPC's own included: the payload once on each side, and what a transfer needs beside it."""
    with subprocess.Popen(
        [sys.executable, "-c", PAYLOAD_SERVER, str(mib * MIB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as server:
        assert server.stdout is not None and server.stdin is not None
        port = server.stdout.readline().strip()
        agent = subprocess.run(
            [sys.executable, "-c", PAYLOAD_AGENT, port], capture_output=True, encoding="utf-8", check=True, timeout=170
        )
        server.stdin.write("\n")
        server.stdin.flush()
        server_peak = int(server.stdout.readline())
    before, down, after, last = map(float, agent.stdout.split())
    assert last == 1.0
    assert (down - before) / 1024 <= mib + 24
    assert (after - before) / 1024 <= mib + 24
    assert server_peak / 1024 <= 2 * mib + 150, "the model, the upload, and the program itself"


class Proxy:
    """A TCP proxy that counts."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.up = self.down = 0
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                threading.Thread(target=self._pump, args=(near, far, "up"), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, "down"), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                setattr(self, way, getattr(self, way) + len(data))
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def test_the_bytes_we_count_are_those_that_cross() -> None:
    """The model never changes, so each node reads it once; each sends a sum in every round."""
    experiment = still(600_000, rounds=5, clients=4, cohort=4, round={"group_size": 2}, evaluation={"every": 1})
    with quick_server(shared_memory=False, heartbeat_s=0.5) as server:
        port = server.listen(token=TOKEN)
        with contextlib.closing(Proxy(port)) as proxy, running_agents(f"127.0.0.1:{proxy.port}", ["one", "two"]):
            fleet = fleet_access(server.coordinator, patience_s=10)
            outcome = run_session(experiment, MemoryRunStore("counted"), fleet, (), stop=threading.Event())
            assert outcome.error is None
            rows = server.coordinator.rows()
            least = {"down": 2 * 2.4e6, "up": 5 * 2 * 2.4e6}
            for way, crossed in (("down", proxy.down), ("up", proxy.up)):
                counted = sum(row[f"wire_bytes_{way}"] for row in rows)
                assert crossed > least[way]
                assert abs(counted - crossed) <= 0.02 * crossed, (way, counted, crossed)
        reported = outcome.summary
        assert 0 < reported.wire_bytes_up <= sum(row["wire_bytes_up"] for row in rows)
        assert 0 < reported.wire_bytes_down <= sum(row["wire_bytes_down"] for row in rows)


FIRST_ROUND = """
import sys
from fedloom.core.events import RoundFinished
from fedloom import api
class First:
    def write(self, event):
        if isinstance(event, RoundFinished) and event.record.round == 1:
            print(*sorted({"torch", "ray", "grpc", "flwr", "transformers"} & set(sys.modules)))
    def close(self): pass
api.run(api.load("it.toml"), keep=False, sinks=[First()])
"""


def test_a_first_round_needs_no_heavy_imports(linear: Make, tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_text(tomli_w.dumps(linear(rounds=1).to_dict()), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", FIRST_ROUND], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", ["fedloom", "fedloom.api", "fedloom.cli", "fedloom.server.app"])
def test_importing_it_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'ray', 'grpc', 'flwr', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == []


STOPPING = """
from fedloom.testing.linear import Config, Linear as Plain
class Linear(Plain):
    def train(self, job, inputs, shard, rule, rng):
        breakpoint()
        return super().train(job, inputs, shard, rule, rng)
def build_workload(config, experiment):
    return Linear(config, experiment)
"""


def test_a_breakpoint_in_a_client_stops_in_the_main_thread(
    linear: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stopping.py").write_text(STOPPING, encoding="utf-8")
    hits: list[tuple[threading.Thread, int]] = []

    def hook(*args: object, **kwargs: object) -> None:
        job = sys._getframe(1).f_locals["job"]
        hits.append((threading.current_thread(), job.client))

    monkeypatch.setattr(sys, "breakpointhook", hook)
    result = api.run(linear(rounds=1, workload={"name": str(tmp_path / "stopping.py")}), keep=False)
    assert sorted(client for _, client in hits) == sorted(result.history[0].cohort)
    assert {thread for thread, _ in hits} == {threading.main_thread()}


def _network_namespace() -> list[str]:
    """A command that runs another one where there is no network but the loopback."""
    if shutil.which("unshare") and shutil.which("ip"):
        prefix = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        if not subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
            return prefix
    pytest.skip("making a network namespace takes `unshare`, `ip`, and the right to use them")


@pytest.mark.parametrize("runtime", ["process", pytest.param("inline", marks=pytest.mark.slow)])
def test_the_quick_start_runs_without_a_network(tmp_path: Path, runtime: str) -> None:
    program = "import sys; from fedloom.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "run", "digits-fedavg", "--runtime", runtime, "--set", "rounds=2"]
    done = subprocess.run(
        [*_network_namespace(), *command, "--json", "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "FEDLOOM_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rounds"] == 2


BARE = """
import sys
from fedloom.testing.linear import Config, Linear as Plain
class Linear(Plain):
    def train(self, job, inputs, shard, rule, rng):
        rooms = {"server", "client", "strategies", "simulation", "workloads", "selection", "reporting", "core", "cli"}
        ours = sorted((rooms | {"proto"}) & set(sys.modules))
        if ours:
            raise RuntimeError(f"bare rooms: {ours}")
        return super().train(job, inputs, shard, rule, rng)
def build_workload(config, experiment):
    return Linear(config, experiment)
"""


def test_no_bare_room_is_loaded_in_a_worker_though_started_at_the_repositorys_root(
    linear: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare.py").write_text(BARE, encoding="utf-8")
    workload, runtime = {"name": str(tmp_path / "bare.py")}, {"name": "process", "workers": 1}
    experiment = linear(rounds=1, workload=workload, runtime=runtime)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent / "support"))
    assert api.run(experiment, keep=False).summary.status == "done"

"""How long a node waits for the server while a large model is on its way to and from another node, over gRPC.

Three processes on this machine, without shared memory: the server (this one), an agent that downloads and uploads a
large model in every round of a real run, and a probe that sends small results and times their acknowledgements. The
probe sends on a fixed schedule; a result that had to wait for the one before it counts from when it was due, so that a
server that is silent for a second shows as a second of late results, not as a single one.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

import numpy as np

from benchmarks.report import micro_table
from fedloom.client.app import run_client
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core import frames
from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment
from fedloom.core.events import Event, RoundFinished
from fedloom.core.history import RoundRecord
from fedloom.core.messages import Ack, Channel, Group, GroupKey, GroupResult, Heartbeat, Hello, PayloadRef
from fedloom.core.records import MODEL, ClientReport, Exchange, Job, Record, Update
from fedloom.server.app import Server
from fedloom.server.fleet.open_exchange import OpenExchange
from fedloom.server.fleet.planned import PlannedExchange, PlannedGroup, RunFacts
from fedloom.server.fleet.vetting import vet_sum
from fedloom.server.rounds.run_services import FleetAccess, RuntimeInfo
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.store.memory_run_store import MemoryRunStore

EVERY_S = 0.025
"""Seconds between two probes."""
_TOGETHER = 2
"""Results in one probe: the server answers with the next push, which comes when a node is down to one group."""
_BEAT_S = 2.0
_GROUPS, _WAITING = 50_000, 16
"""Groups for the probe, more than it can do while this runs, and how many of them wait at a time."""
_NOOP = Path(__file__).parent / "noop_workload.py"
_MB = 1 << 20


# The probe, a process of its own


class Probe:
    """A node without a workload: answers its groups at once, in pairs, and times the acknowledgements."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._channel.open(Hello(node="probe", session="only"))
        self._held: deque[GroupKey] = deque()
        self._acknowledged: set[GroupKey] = set()
        self._beaten = 0.0
        mean = RunningMean()
        mean.add(Update(num_examples=1, groups=_small_model().groups), 1.0, 0)
        frame = bytes(frames.encode(mean.record()))
        self._total = PayloadRef(size=len(frame), inline=frame)

    def sample(self, stop: threading.Event) -> list[float]:
        """Probe on schedule until told to stop; seconds from when each was due to its last acknowledgement."""
        delays, due = list[float](), time.perf_counter()
        while not stop.is_set():
            while len(self._held) < _TOGETHER:
                self._read(0.1)
            time.sleep(max(0.0, due - time.perf_counter()))
            self._beat()
            keys = {self._held.popleft() for _ in range(_TOGETHER)}
            for key in keys:
                report = ClientReport(client=key.group, num_examples=1, seconds=0.0)
                self._channel.send(GroupResult(key=key, total=self._total, reports=(report,)))
            while not keys <= self._acknowledged:
                self._read(1.0)
            delays.append(time.perf_counter() - due)
            self._acknowledged.clear()
            due += EVERY_S
        return delays

    def _read(self, timeout_s: float) -> None:
        """Take one message, or say that the probe is alive."""
        message = self._channel.receive(timeout_s)
        if isinstance(message, Group):
            self._held.append(message.key)
        elif isinstance(message, Ack):
            if message.status != "accepted":
                raise RuntimeError(f"a probe's result was {message.status}: {message.message}")
            self._acknowledged.add(message.key)
        elif message is None:
            self._beat()

    def _beat(self) -> None:
        if time.monotonic() - self._beaten > _BEAT_S:
            self._beaten = time.monotonic()
            self._channel.send(Heartbeat(groups=tuple(self._held)))


def probe(address: str) -> None:
    """The second process: samples from a line on stdin to the next, then prints what it measured."""
    made = Probe(GrpcChannel(address))
    made.sample(_after(0.5))  # connections, caches
    print("ready", flush=True)
    while sys.stdin.readline():
        stop, delays = threading.Event(), list[float]()
        worker = threading.Thread(target=lambda stop=stop, into=delays: into.extend(made.sample(stop)))
        worker.start()
        sys.stdin.readline()
        stop.set()
        worker.join()
        print(json.dumps(delays), flush=True)


def _after(seconds: float) -> threading.Event:
    event = threading.Event()
    threading.Timer(seconds, event.set).start()
    return event


def _small_model() -> Record:
    return Record({MODEL: {"w": np.ones(8, np.float32)}})


# The server's side


@dataclass
class Rounds:
    """A sink that ends a run after some rounds: what a session does when it is over is no part of a round."""

    count: int
    stop: threading.Event = field(default_factory=threading.Event)
    records: list[RoundRecord] = field(default_factory=list)

    def write(self, event: Event) -> None:
        """Take an event of the run."""
        if isinstance(event, RoundFinished):
            self.records.append(event.record)
            if len(self.records) == self.count:
                self.stop.set()

    def close(self) -> None:
        """Nothing to flush."""


class Child:
    """A process of this module: `python -m benchmarks.acknowledgement` with other arguments."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.acknowledgement", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")

    def say(self) -> None:
        """Send a line: begin, or end."""
        stdin = _pipe(self._process.stdin)
        stdin.write("\n")
        stdin.flush()

    def read(self) -> str:
        """What it prints next."""
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError("a process of the benchmark ended; its error is above")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise RuntimeError("the process was started without pipes")
    return stream


def measure(megabytes: int, rounds: int, idle_s: float) -> list[dict[str, float | int | str]]:
    """Probe an idle server, then one in whose run the other node takes and returns a model.

    One row for each, and the difference.

    Args:
        megabytes: size of the model.
        rounds: in which it is published and received.
        idle_s: seconds of probing before and after that.
    """
    with Server(shared_memory=False, by_labels=True) as server:
        address = f"127.0.0.1:{server.listen()}"
        with Child("--agent", address), Child("--probe", address) as probing, _probed(server):
            _label(server, {"agent": {"part": "large"}, "probe": {"part": "probe"}})
            probing.read()

            def sampled(seconds: float) -> list[float]:
                probing.say()
                time.sleep(seconds)
                probing.say()
                return [float(delay) for delay in json.loads(probing.read())]

            idle = sampled(idle_s)
            probing.say()
            begin = time.perf_counter()
            outcome = _run_large(server, megabytes, rounds)
            took_s = time.perf_counter() - begin
            probing.say()
            loaded = json.loads(probing.read())
            idle += sampled(idle_s)
    if len(outcome.history) != rounds:
        raise RuntimeError(f"{len(outcome.history)} of {rounds} rounds were done: {outcome.error}")
    rows = [_row("idle", idle), _row(f"{megabytes} MB down and up, {rounds} times in {took_s:.0f} s", loaded)]
    added = {name: float(rows[1][name]) - float(rows[0][name]) for name in ("p50 ms", "p99 ms", "longest ms")}
    return [*rows, {"server": "added", "probes": "", **added}]


def _row(what: str, delays: Sequence[float]) -> dict[str, float | int | str]:
    p50, p99 = np.percentile(delays, [50, 99])
    return {
        "server": what,
        "probes": len(delays),
        "p50 ms": float(p50) * 1e3,
        "p99 ms": float(p99) * 1e3,
        "longest ms": max(delays) * 1e3,
    }


@contextlib.contextmanager
def _probed(server: Server) -> Iterator[None]:
    """An open exchange for the node with label `part = probe`."""
    run = RunFacts.of("probe", _experiment("probe", 1, 1, {"cohort": 1, "clients": _GROUPS}))
    groups = tuple(PlannedGroup(jobs=(Job(round=1, client=client),), work=1.0) for client in range(_GROUPS))
    spec = Exchange(jobs=tuple(job for group in groups for job in group.jobs), inputs={MODEL: _small_model()})
    vet = functools.partial(vet_sum, RunningMean, spec.inputs[MODEL])
    planned = PlannedExchange(
        run=run, round=1, index=0, exchange=spec, groups=groups, reserve=range(_WAITING, _GROUPS), vet=vet
    )
    with server.coordinator.exchange(planned) as opened:
        gc.freeze()  # no run has so many groups, and the collector's looks at them would be counted
        over = threading.Event()
        reader = threading.Thread(target=_read, args=(server, opened, over))
        reader.start()
        try:
            yield
        finally:
            over.set()
            reader.join()
            gc.unfreeze()


def _read(server: Server, opened: OpenExchange, over: threading.Event) -> None:
    """Take the probe's answers, and put out a group for each."""
    following = iter(range(_WAITING, _GROUPS))
    while not over.is_set():
        with contextlib.suppress(queue.Empty):
            opened.answers.get(timeout=0.5)
            server.coordinator.release(opened, [next(following)])


def _label(server: Server, labels: dict[str, dict[str, str]]) -> None:
    """Wait for the nodes, and say what each is for."""
    deadline = time.monotonic() + 60
    while server.coordinator.online < len(labels):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{server.coordinator.online} of {len(labels)} nodes connected within a minute")
        time.sleep(0.05)
    for node, own in labels.items():
        server.coordinator.label(node, own)


def _run_large(server: Server, megabytes: int, rounds: int) -> Outcome:
    """A run whose only client gets the model and sends it back, stopped after some rounds."""
    experiment = _experiment("large", 1024 * megabytes, rounds + 2, {"clients": 1, "cohort": 1})
    store, sink = MemoryRunStore("large"), Rounds(rounds)
    store.begin(experiment)
    return run_session(experiment, store, _access(server), (sink,), stop=sink.stop)


def _experiment(part: str, kilobytes: int, rounds: int, more: dict[str, object]) -> Experiment:
    return Experiment.parse(
        {
            "name": part,
            "rounds": rounds,
            "strategy": "fedavg",
            "workload": {"name": str(_NOOP), "kilobytes": kilobytes},
            "evaluation": {"every": 0},
            "checkpoint": {"every": rounds},
            "fleet": {"labels": {"part": part}},
            **more,
        }
    )


def _access(server: Server) -> FleetAccess:
    return FleetAccess(coordinator=server.coordinator, place=_place)


def _place() -> RuntimeInfo:
    return RuntimeInfo(runtime="fleet", workers=1, where="another process of this machine")


# Two probing runs on one node


def trainings(rounds: int) -> list[dict[str, float | int | str]]:
    """Two runs at once on one agent, each of which has candidates train before it chooses; one row for each run.

    A chosen candidate hands over the update it holds, so `trainings` is as many as `candidates`: what is more was
    trained a second time.
    """
    with Server(shared_memory=False, by_labels=True) as server:
        address = f"127.0.0.1:{server.listen()}"
        with Child("--agent", address):
            _label(server, {"agent": {}})
            sinks = [Rounds(rounds), Rounds(rounds)]
            threads = [
                threading.Thread(target=_run_probing, args=(server, f"run-{index}", rounds, sink))
                for index, sink in enumerate(sinks)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    return [_trained(f"run-{index}", sink.records, rounds) for index, sink in enumerate(sinks)]


def _run_probing(server: Server, run_id: str, rounds: int, sink: Rounds) -> None:
    values = {"clients": 40, "cohort": 4, "selection": {"name": "update_norm", "candidates": 8}, "fleet": {}}
    experiment = _experiment(run_id, 100, rounds, {**values, "seed": 1 + int(run_id[-1])})
    store = MemoryRunStore(run_id)
    store.begin(experiment)
    run_session(experiment, store, _access(server), (sink,), stop=threading.Event())


def _trained(run_id: str, records: Sequence[RoundRecord], rounds: int) -> dict[str, float | int | str]:
    if len(records) != rounds:
        raise RuntimeError(f"{run_id}: {len(records)} of {rounds} rounds were done")
    candidates = sum(len(record.candidates) for record in records)
    trained = sum(record.local_trainings for record in records)
    return {
        "run": run_id,
        "rounds": rounds,
        "candidates": candidates,
        "chosen": sum(len(record.cohort) for record in records),
        "trainings": trained,
        "trained again": trained - candidates,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.acknowledgement", description=__doc__)
    parser.add_argument("--megabytes", type=int, help="size of the model (default 1024; 64 if quick)")
    parser.add_argument("--rounds", type=int, default=5, help="in which it goes down and up")
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--probe", metavar="ADDRESS", help="be the probe")
    parser.add_argument("--agent", metavar="ADDRESS", help="be the agent")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.probe:
        probe(options.probe)
    elif options.agent:
        run_client(options.agent, name="agent", give_up_s=10)
    else:
        megabytes, idle_s = (64, 2.0) if options.quick else (1024, 10.0)
        rows = measure(options.megabytes or megabytes, options.rounds, idle_s)
        print(micro_table("From a small result's due time to its acknowledgement", rows))
        twice = trainings(rounds=5)
        print(micro_table("Two runs whose candidates train, at once on one agent", twice))
        if options.json is not None:
            options.json.write_text(
                json.dumps({"acknowledgement": rows, "trainings": twice}, indent=1) + "\n", encoding="utf-8"
            )


if __name__ == "__main__":
    main()

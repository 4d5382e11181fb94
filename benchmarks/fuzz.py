"""Every message of the services, broken in every way: `python -m benchmarks.fuzz` sends a hundred thousand of them.

Sound messages are encoded, then bytes are flipped, cut out, put in and exchanged, numbers made huge and texts absurd.
They are sent over gRPC, as raw bytes, by a node that is let in, to a server in another process that has a run in
progress. Each must be answered with a status of the catalogue (or taken, where it is still sound), and nothing that was
there before may change: runs, other nodes, what is waited for. The server's memory is read before and after.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from benchmarks.report import micro_table
from fedloom.core import frames
from fedloom.core.accumulators import RunningMean
from fedloom.core.messages import GroupKey, GroupResult, Heartbeat, Hello, PayloadRef, Refusal, RunSpec
from fedloom.core.records import MODEL, ClientFailure, ClientReport, Exchange, Job, Mean, Record, Update
from fedloom.core.seeds import generator
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import control_pb2 as control_pb
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.server.app import Server
from fedloom.server.open_exchange import PlannedGroup
from fedloom.server.run_queue import RunQueue
from fedloom.server.vetting import vet_sum

FLEET, CONTROL = "/fedloom.proto.v1.Fleet/", "/fedloom.proto.v1.Control/"
STATUSES = ("INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "PERMISSION_DENIED")
"""What a broken message may be answered with."""
_UNREADABLE = "Exception deserializing request!"
"""gRPC's own words for bytes that are no such message; its status is INTERNAL."""
_MB = 1 << 20
_NODE, _SESSION, _RUN = "fuzz", "only", "standing"
_TOKEN = "of-this-fuzz"


def _model() -> Record:
    return Record({MODEL: {"w": np.ones(8, np.float32)}})


def _sum(client: int) -> Record:
    mean = RunningMean()
    mean.add(Update(num_examples=1, groups=_model().groups), 1.0, client)
    return mean.record()


def samples() -> dict[str, list[Message]]:
    """Sound messages of each call."""
    frame = bytes(frames.encode(_sum(0)))
    key = GroupKey(_RUN, 1, 0, 0)
    report = ClientReport(client=0, num_examples=1, seconds=0.1, metrics={"loss": Mean(1.0, 1.0)}, info={"x": [1]})
    failure = ClientFailure(client=0, round=1, stage="train", error="E", message="m", traceback="t", node="n")
    inline = PayloadRef(size=len(frame), inline=frame)
    named = PayloadRef(size=len(frame), sha256=hashlib.sha256(frame).hexdigest())
    told = [
        GroupResult(key=key, total=inline, reports=(report,), states={0: inline}, busy_s=1.0),
        GroupResult(key=key, total=named, reports=(report,)),
        GroupResult(key=key._replace(run_id="another", round=3), total=None, failures=(failure,)),
        Heartbeat(held=(key, key._replace(group=1)), missing_runs=(_RUN,)),
        Refusal(key=key, kind="hours", reason="not now", retry_s=0.1),
    ]
    head = pb.UploadRequest(sha256=named.sha256, size=len(frame))
    experiment = {"rounds": 1, "strategy": "none", "workload": "none"}
    return {
        FLEET + "Work": [pb.FromAgentBatch(messages=[codec.from_agent_message(message)]) for message in told],
        FLEET + "Register": [codec.hello_message(Hello(node="passing", session="s", facts={"cores": 2}))],
        FLEET + "UploadOffset": [head],
        FLEET + "Upload": [head],
        FLEET + "Download": [pb.DownloadRequest(sha256=named.sha256, offset=1)],
        CONTROL + "Submit": [control_pb.SubmitRequest(experiment_json=json.dumps(experiment))],
        CONTROL + "ListRuns": [control_pb.ListRunsRequest()],
        CONTROL + "Watch": [control_pb.WatchRequest(run_id="nobody")],
        CONTROL + "Stop": [control_pb.StopRequest(run_id="nobody")],
        CONTROL + "ListNodes": [control_pb.ListNodesRequest()],
    }


def bend(message: Any, rng: np.random.Generator) -> None:
    """Give one field, at any depth, a value nobody would send: the message stays readable."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = fields[int(rng.integers(len(fields)))]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return
    value = getattr(message, field.name)
    if field.message_type is not None:
        inner = (value[int(rng.integers(len(value)))] if len(value) else value.add()) if field.is_repeated else value
        if field.is_repeated and rng.random() < 0.3:
            value.extend([inner] * int(rng.integers(1, 40)))
        elif rng.random() < 0.1:
            message.ClearField(field.name)
        else:
            inner.SetInParent()
            bend(inner, rng)
        return
    odd = _odd(field.type, value, rng)
    if field.is_repeated:
        value.extend([odd] * int(rng.integers(1, 5)))
    else:
        setattr(message, field.name, odd)


def _odd(kind: int, value: Any, rng: np.random.Generator) -> Any:
    """A strange value of a field's type."""
    strange: list[Any]
    if kind == FieldDescriptor.TYPE_STRING:
        strange = ["", "x" * 300, "\0", "../../etc/passwd", "[" * 5000, '{"a":' * 2000, "{}", "NaN", "é" * 50, "0" * 64]
        strange += [f"{value}x", str(value)[: len(value) // 2] if isinstance(value, str) else ""]
    elif kind == FieldDescriptor.TYPE_BYTES:
        strange = [mutate(value, [value], rng) if isinstance(value, bytes) and value else b"x", b"", rng.bytes(50)]
    elif kind == FieldDescriptor.TYPE_BOOL:
        strange = [True, False]
    elif kind == FieldDescriptor.TYPE_DOUBLE:
        strange = [float("nan"), float("inf"), -1.0, 0.0, 1e308, 5e-324]
    elif kind == FieldDescriptor.TYPE_INT64:
        strange = [0, 1, -1, 2**31, 2**63 - 1, -(2**63)]
    elif kind == FieldDescriptor.TYPE_UINT64:
        strange = [0, 1, 2**20, 2**34, 2**63, 2**64 - 1]
    else:
        strange = [0, 1, 2, 100, 2**31, 2**32 - 1]
    return strange[int(rng.integers(len(strange)))]


def mutate(sound: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """One to four changes of a message's bytes."""
    data = bytearray(sound)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(data) + 1))
        match int(rng.integers(7)):
            case 0 if at < len(data):
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at : at + int(rng.integers(1, 40))]
            case 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 20)))
            case 3:
                del data[at:]
            case 4:
                other = others[int(rng.integers(len(others)))]
                data[at:] = other[int(rng.integers(len(other) + 1)) :]
            case 5:  # the longest number a field can hold, the shortest, NaN
                number = [b"\xff" * 9 + b"\x01", b"\x00", b"\x00\x00\x00\x00\x00\x00\xf8\x7f"]
                data[at : at + 1] = number[int(rng.integers(3))]
            case _:
                data[at:at] = b"[" * int(rng.integers(1, 5000))
    return bytes(data)


@dataclass
class Tally:
    """Answers to one call."""

    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Answers that are none of the catalogue."""

    def take(self, exc: grpc.RpcError | None) -> None:
        """Count an answer; None is one without an error."""
        self.sent += 1
        call: Any = exc
        name = "taken" if exc is None else call.code().name
        self.answers[name] += 1
        known = exc is None or name in STATUSES or (name == "INTERNAL" and call.details() == _UNREADABLE)
        if not known or (exc is not None and "Traceback" in call.details()):
            self.wrong.append(f"{name}: {call.details()[:200]}")


class Fuzzer:
    """Sends broken messages to a server.

    Args:
        address: of the server.
        seed: of what is broken, and how.
    """

    def __init__(self, address: str, seed: int) -> None:
        options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
        self._channel = grpc.insecure_channel(address, options=options)
        self._rng, self._samples = generator(seed, "fuzz"), samples()
        self._all = [sound.SerializeToString() for each in self._samples.values() for sound in each]
        self._frame = bytes(frames.encode(_sum(0)))
        self._who = (("fedloom-token", _TOKEN), ("fedloom-node", _NODE), ("fedloom-session", _SESSION))
        self.tallies = {path: Tally() for path in self._samples}

    def register(self) -> None:
        """Be let in, as a node."""
        hello = codec.hello_message(Hello(node=_NODE, session=_SESSION)).SerializeToString()
        self._channel.unary_unary(FLEET + "Register")(hello, metadata=self._who, timeout=10)

    def broken(self, path: str) -> bytes:
        """A broken message for a call: one that can be read, or bytes that mostly cannot."""
        sound = self._samples[path]
        message = type(chosen := sound[int(self._rng.integers(len(sound)))])()
        message.CopyFrom(chosen)
        if self._rng.random() < 0.7:
            for _ in range(int(self._rng.integers(1, 4))):
                bend(message, self._rng)
            return message.SerializeToString()
        return mutate(message.SerializeToString(), self._all, self._rng)

    def send(self, path: str, count: int) -> None:
        """Send broken messages to a call."""
        for _ in range(count):
            try:
                self._call(path, self.broken(path))
                self.tallies[path].take(None)
            except grpc.RpcError as exc:
                self.tallies[path].take(exc)

    def _call(self, path: str, data: bytes) -> None:
        if path.endswith("Work"):
            self._stream(data)
        elif path.endswith(("Download", "Watch")):
            for _ in self._channel.unary_stream(path)(data, metadata=self._who, timeout=10):
                pass
        elif path.endswith("Upload"):
            chunks = [data, *(self._chunk() for _ in range(int(self._rng.integers(4))))]
            self._channel.stream_unary(path)(iter(chunks), metadata=self._who, timeout=10)
        else:
            self._channel.unary_unary(path)(data, metadata=self._who, timeout=10)

    def _chunk(self) -> bytes:
        """The frame, a broken one, or nothing."""
        if self._rng.random() < 0.4:
            return self._frame
        return mutate(self._frame, self._all, self._rng) if self._rng.random() < 0.8 else b""

    def _stream(self, data: bytes) -> None:
        """A broken message on a stream of its own, and then an empty one, whose refusal says that it was taken."""
        call = self._channel.stream_stream(FLEET + "Work")(iter([data, b""]), metadata=self._who, timeout=10)
        try:
            for _ in call:
                pass
        except grpc.RpcError as exc:
            refused: Any = exc
            if "empty batch" not in refused.details() or not data:
                raise


def serve(folder: Path) -> None:
    """The server under test: for each line on stdin, what it holds."""

    def never(store: Any, emit: Any, stop: threading.Event) -> Any:
        raise AssertionError("no run is started here")

    run = RunSpec(run_id=_RUN, experiment={"round": {"max_attempts": 1_000_000}})
    groups = [PlannedGroup(jobs=(Job(round=1, client=client),), work=1.0) for client in (0, 1)]
    spec = Exchange(jobs=tuple(group.jobs[0] for group in groups), inputs={MODEL: _model()})

    def vet(total: Record, clients: Any) -> None:
        vet_sum(RunningMean, _model(), total, clients)

    with Server(shared_memory=False) as server, contextlib.closing(RunQueue(folder, never)) as runs:
        server.coordinator.register(Hello(node="honest", session="s"), "remote")
        print(server.listen(token=_TOKEN, runs=runs), flush=True)
        accepted, sound = 0, True
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(server.coordinator.exchange(run, 1, 0, spec, groups, (), vet))
            for _ in sys.stdin:
                while not opened.answers.empty():
                    answer: Any = opened.answers.get()
                    accepted += 1
                    if answer.total is not None:
                        vet(answer.total, [report.client for report in answer.result.reports])
                    opened.done.discard(answer.index)
                    if answer.index not in opened.pending:
                        opened.pending.append(answer.index)
                sound = sound and "honest" in server.coordinator.nodes() and len(opened.groups) == 2
                held = {
                    "accepted": accepted,
                    "sound": sound,
                    "runs": len(runs.rows()),
                    "nodes": len(server.coordinator.nodes()),
                    "upload bytes": sum(len(upload.data) for upload in server.payloads._uploads.values()),
                    "threads": threading.active_count(),
                }
                print(json.dumps(held), flush=True)


def fuzz(count: int, seed: int, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Send about `count` broken messages; a third of them on the Work stream, which has most to say."""
    with tempfile.TemporaryDirectory(prefix="fedloom-fuzz-") as folder:
        command = [sys.executable, "-m", "benchmarks.fuzz", "--serve", folder]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )
        assert child.stdin is not None and child.stdout is not None
        try:
            process, begin = psutil.Process(child.pid), time.perf_counter()
            fuzzer = Fuzzer(f"127.0.0.1:{int(child.stdout.readline())}", seed)
            fuzzer.register()
            held = dict[str, Any]()
            sent, rss = 0, list[float]()
            slice_ = max(10, count // 200)
            while sent < count:
                for path in fuzzer.tallies:
                    share = 5 * slice_ if path.endswith("Work") else slice_
                    fuzzer.send(path, share)
                    sent += share
                child.stdin.write("\n")
                child.stdin.flush()
                held = json.loads(child.stdout.readline())
                rss.append(process.memory_info().rss / _MB)
                say(f"{sent} sent, {rss[-1]:.0f} MB")
            alive = child.poll() is None
        finally:
            child.stdin.close()
            child.wait(30)
    return {
        "calls": {
            path.rpartition("v1.")[2]: {"sent": tally.sent, **tally.answers, "wrong": tally.wrong}
            for path, tally in fuzzer.tallies.items()
        },
        "sent": sent,
        "seconds": time.perf_counter() - begin,
        "alive": alive,
        "held": held,
        "rss_mb": rss,
    }


def table(found: dict[str, Any]) -> str:
    """The answers to each call, and the server afterwards."""
    kinds = sorted({kind for call in found["calls"].values() for kind in call} - {"sent", "wrong"})
    rows = [
        {"call": name, "sent": call["sent"], **{kind: call.get(kind, 0) for kind in kinds}, "wrong": len(call["wrong"])}
        for name, call in found["calls"].items()
    ]
    rss = found["rss_mb"]
    told = [micro_table(f"{found['sent']} broken messages in {found['seconds']:.0f} s", rows)]
    told += [f"  {name}: {text}" for name, call in found["calls"].items() for text in call["wrong"][:3]]
    told.append(
        f"  the server {'lives' if found['alive'] else 'DIED'}; {rss[0]:.0f} MB resident after the first slice, "
        f"{rss[len(rss) // 2]:.0f} MB halfway, {rss[-1]:.0f} MB at the end; it holds {found['held']}"
    )
    return "\n".join(told)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", type=Path, metavar="STATE", help="be the server")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve)
        return 0
    found = fuzz(options.count, options.seed, lambda line: print(line, file=sys.stderr, flush=True))
    print(table(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found) + "\n")
    return (
        0 if found["alive"] and found["held"]["sound"] and not any(c["wrong"] for c in found["calls"].values()) else 1
    )


if __name__ == "__main__":
    sys.exit(main())

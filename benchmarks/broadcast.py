"""A large model to many agents at once: what all streams together bring, against one stream alone.

The server is this process; the agents are streams of a second one, over loopback, without shared memory. Each agent
takes every byte and checks the digest when asked to; by default it only counts, so that the server is what is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.report import micro_table
from fedloom.client.link import connect
from fedloom.core.messages import Hello
from fedloom.core.records import MODEL, Record
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.fleet_pb2_grpc import FleetStub
from fedloom.server.app import Server

_MB = 1 << 20


class Stream:
    """One agent's connection."""

    def __init__(self, address: str, index: int) -> None:
        self._channel = connect(address)
        hello = Hello(node=f"device-{index:04}", session="only")
        self._metadata = (("fedloom-node", hello.node), ("fedloom-session", hello.session))
        FleetStub(self._channel).Register(codec.hello_message(hello), metadata=self._metadata, wait_for_ready=True)

    def download(self, sha256: str, check: bool) -> int:
        """Take a frame and let it go; returns its bytes."""
        call = self._channel.unary_stream(
            "/fedloom.proto.v1.Fleet/Download",
            request_serializer=pb.DownloadRequest.SerializeToString,
            response_deserializer=bytes,
        )
        received, digest = 0, hashlib.sha256()
        for chunk in call(pb.DownloadRequest(sha256=sha256), metadata=self._metadata):
            received += len(chunk)
            if check:
                digest.update(chunk)
        if check and digest.hexdigest() != sha256:
            raise RuntimeError("a download brought other bytes than were announced")
        return received


def take(address: str, agents: int) -> None:
    """The second process: for each line on stdin, so many streams take the frame at the same time."""
    streams = [Stream(address, index) for index in range(agents)]
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        received = [0] * order["streams"]

        def one(index: int, order: Any = order, received: list[int] = received) -> None:
            received[index] = streams[index].download(order["sha256"], order["check"])

        threads = [threading.Thread(target=one, args=(index,)) for index in range(order["streams"])]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps({"wall_s": time.perf_counter() - begin, "bytes": sum(received)}), flush=True)


def measure(agents: int, megabytes: int, repeats: int) -> list[dict[str, Any]]:
    """One stream and `agents` streams in turns; the best of the repeats of each."""
    arrays = {f"w{i}": np.full(_MB, i, np.float32) for i in range(megabytes // 4)}
    with Server(shared_memory=False) as server:
        address = f"127.0.0.1:{server.listen()}"
        command = [sys.executable, "-m", "benchmarks.broadcast", "--connect", address, "--agents", str(agents)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        offer = server.payloads.offer(Record({MODEL: arrays}))
        server.payloads.prepare(offer, ("remote",))
        ref = server.payloads.ref(offer, "remote")
        process, best = psutil.Process(), dict[int, dict[str, Any]]()
        for repeat in range(repeats):
            for streams in (1, agents):
                rss, cpu = process.memory_info().rss, time.process_time()
                order = {"streams": streams, "sha256": ref.sha256, "check": repeat == 0}
                child.stdin.write(json.dumps(order) + "\n")
                child.stdin.flush()
                peak, answered = _peak_until_answer(process, child.stdout)
                reported = json.loads(answered)
                if reported["bytes"] != streams * ref.size:
                    raise RuntimeError(f"{streams} streams brought {reported['bytes']} bytes of {streams * ref.size}")
                row = {
                    "streams": streams,
                    "MB each": megabytes,
                    "wall s": reported["wall_s"],
                    "MB/s, all": reported["bytes"] / _MB / reported["wall_s"],
                    "server CPU ms/MB": (time.process_time() - cpu) * 1e3 / (reported["bytes"] / _MB),
                    "server extra MB": (peak - rss) / _MB,
                }
                if repeat and (streams not in best or row["MB/s, all"] > best[streams]["MB/s, all"]):
                    best[streams] = row  # the first repeat checks digests and warms up
        child.stdin.close()
        child.wait()
    alone = best[1]["MB/s, all"]
    return [row | {"of one stream": row["MB/s, all"] / alone} for row in best.values()]


def _peak_until_answer(process: psutil.Process, answers: Any) -> tuple[int, str]:
    """The highest resident size while the agents work, and what they said."""
    peak, done, line = 0, threading.Event(), ""

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    line = answers.readline()
    done.set()
    watcher.join()
    return max(peak, process.memory_info().rss), line


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broadcast", description=__doc__)
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3, help="the first only warms up and checks every byte")
    parser.add_argument("--connect", metavar="ADDRESS", help="be the agents")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.connect:
        take(options.connect, options.agents)
        return
    rows = measure(options.agents, options.megabytes, options.repeats)
    print(micro_table("A model to many agents at once, over loopback", rows))
    if options.json is not None:
        options.json.write_text(json.dumps(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""A large model over the wire between two processes that share no memory: time, CPU, and memory beside the payload.

The parent is the server, the child is an agent with the real gRPC channel. A download costs the agent the payload
itself; an upload costs the server the payload itself. What comes on top on either side is `extra`.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.messages import Group, PayloadRef
from fedloom.core.records import MODEL, Record
from fedloom.server.app import Server
from fedloom.testing.by_hand import ManualAgent, open_exchange, planned_groups

_MB = 1 << 20
_NODE = "agent"


def peak_and_cpu(act: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `act` returns, and the rise of this process's resident memory, its CPU and wall seconds meanwhile."""
    process = psutil.Process()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the highest resident size so far
    before, cpu, begin = process.memory_info().rss, time.process_time(), time.perf_counter()
    value = act()
    wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    high = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return value, {"rise_mb": (high - before) / _MB, "cpu_s": cpu_s, "wall_s": wall_s}


def agent(address: str) -> None:
    """The child: says when it is connected, then does what each line on stdin says; answers are lines of JSON."""
    hand = ManualAgent(GrpcChannel(address), _NODE)
    hand.start()
    print(json.dumps({}), flush=True)
    record = Record()
    for line in sys.stdin:
        if line.strip() == "fetch":
            ref = hand.take(Group)[0].inputs[MODEL]
            record, cost = peak_and_cpu(functools.partial(hand.channel.fetch, ref))
            answer: dict[str, Any] = cost
        else:
            ref, cost = peak_and_cpu(functools.partial(hand.channel.store, record, "run"))
            answer = cost | {"size": ref.size, "sha256": ref.sha256}
        print(json.dumps(answer), flush=True)
    hand.channel.close()


def measure(megabytes: int) -> list[dict[str, Any]]:
    """Send a model down and up again; one row for each direction."""
    arrays = {f"w{i}": np.full(4 * _MB // 4, i, np.float32) for i in range(megabytes // 4)}
    with Server(shared_memory=False) as server:
        address = f"127.0.0.1:{server.listen()}"
        command = [sys.executable, "-m", "benchmarks.transfer", "--agent", address]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")

        def answer() -> dict[str, Any]:
            assert child.stdout is not None
            line = child.stdout.readline()
            if not line:
                raise RuntimeError("the agent ended; its error is above")
            read: dict[str, Any] = json.loads(line)
            return read

        def order(word: str) -> dict[str, Any]:
            assert child.stdin is not None
            child.stdin.write(word + "\n")
            child.stdin.flush()
            return answer()

        answer()
        digesting = time.perf_counter()
        with open_exchange(server.coordinator, planned_groups(1.0), inputs={MODEL: Record({MODEL: arrays})}):
            digest_s = time.perf_counter() - digesting
            down, served = peak_and_cpu(lambda: order("fetch"))
            up, took = peak_and_cpu(lambda: order("store"))
            record = server.payloads.take(_NODE, PayloadRef(size=up["size"], sha256=up["sha256"]))
        same = all(np.array_equal(arrays[name], array) for name, array in record.groups[MODEL].items())
        if not same:
            raise RuntimeError("the model came back changed")
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
    return [
        _row(
            "down", megabytes, down, server_extra=served["rise_mb"], agent_extra=down["rise_mb"] - megabytes, cpu=served
        )
        | {"digest s": digest_s},
        _row("up", megabytes, up, server_extra=took["rise_mb"] - megabytes, agent_extra=up["rise_mb"], cpu=took)
        | {"digest s": 0.0},
    ]


def _row(
    direction: str,
    megabytes: int,
    agents: dict[str, Any],
    *,
    server_extra: float,
    agent_extra: float,
    cpu: dict[str, float],
) -> dict[str, Any]:
    return {
        "direction": direction,
        "MB": megabytes,
        "wall s": agents["wall_s"],
        "MB/s": megabytes / agents["wall_s"],
        "CPU s, both": agents["cpu_s"] + cpu["cpu_s"],
        "server extra MB": server_extra,
        "agent extra MB": agent_extra,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--agent", help="address of the server: be the agent")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.agent:
        agent(options.agent)
        return
    rows = measure(options.megabytes)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "result.json").write_text(json.dumps(rows), encoding="utf-8")
    else:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

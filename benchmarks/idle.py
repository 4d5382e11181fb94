"""Agents that are connected and have nothing to do: what they cost the server, in memory and in CPU.

The server is a process of its own; the agents are sessions of a second one, each with a connection of its own, a real
stream, and heartbeats as often as an agent with nothing in hand sends them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks.report import micro_table
from fedloom.client.agent import IDLE_BEATS
from fedloom.core.messages import Heartbeat, Hello
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.fleet_pb2_grpc import FleetStub
from fedloom.server.app import Server

_MB = 1 << 20
_BEAT = pb.FromAgentBatch(messages=[codec.from_agent_message(Heartbeat())])


def serve() -> None:
    """The server: says its port, then answers each line on stdin with how many agents are online."""
    with Server(shared_memory=False) as server:
        print(server.listen(), flush=True)
        for _ in sys.stdin:
            print(server.coordinator.online, flush=True)


async def session(address: str, index: int) -> None:
    """One idle agent, for ever."""
    channel = grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
    stub: Any = FleetStub(channel)
    hello = Hello(node=f"device-{index:04}", session="only")
    metadata = (("fedloom-node", hello.node), ("fedloom-session", hello.session))
    welcome = await stub.Register(codec.hello_message(hello), metadata=metadata)
    stream = stub.Work(metadata=metadata)
    await stream.write(_BEAT)
    pause_s = welcome.heartbeat_s * IDLE_BEATS
    await asyncio.sleep(random.random() * pause_s)  # devices do not beat in step
    while True:
        await stream.write(_BEAT)
        await asyncio.sleep(pause_s)


async def sessions(address: str, count: int) -> None:
    """All agents, some at a time until all are there."""
    tasks = []
    for index in range(count):
        tasks.append(asyncio.create_task(session(address, index)))
        if index % 20 == 19:
            await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)


def measure(count: int, seconds: float) -> dict[str, Any]:
    """Connect `count` agents, wait until all are online, and watch the server for some seconds."""
    here = [sys.executable, "-m", "benchmarks.idle"]
    server = subprocess.Popen([*here, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    port = int(server.stdout.readline())
    process = psutil.Process(server.pid)
    alone = process.memory_full_info().pss
    agents = subprocess.Popen([*here, "--connect", f"127.0.0.1:{port}", "--agents", str(count)])
    try:
        online, deadline = 0, time.monotonic() + 120
        while online < count:
            if agents.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{online} of {count} agents came online")
            time.sleep(0.5)
            server.stdin.write("\n")
            server.stdin.flush()
            online = int(server.stdout.readline())
        time.sleep(5)
        begin, before = time.perf_counter(), process.cpu_times()
        time.sleep(seconds)
        after, wall_s = process.cpu_times(), time.perf_counter() - begin
        pss, threads = process.memory_full_info().pss, process.num_threads()
        server.stdin.write("\n")
        server.stdin.flush()
        stayed = int(server.stdout.readline())
    finally:
        agents.kill()
        agents.wait()
        server.stdin.close()
        server.wait(30)
    return {
        "agents": count,
        "online at the end": stayed,
        "server PSS MB": pss / _MB,
        "before MB": alone / _MB,
        "KB/agent": (pss - alone) / 1024 / count,
        "threads": threads,
        "% of a core": 100 * (after.user + after.system - before.user - before.system) / wall_s,
        "seconds": round(wall_s),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__)
    parser.add_argument("--agents", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--serve", action="store_true", help="be the server")
    parser.add_argument("--connect", metavar="ADDRESS", help="be the agents")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.serve:
        serve()
    elif options.connect:
        asyncio.run(sessions(options.connect, options.agents))
    else:
        row = measure(options.agents, options.seconds)
        print(micro_table("Agents that are connected and idle", [row]))
        if options.json is not None:
            options.json.write_text(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

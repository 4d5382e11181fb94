"""Agents that are connected and have nothing to do: what they cost the server, in memory and in CPU.

The server is a process of its own; the agents are sessions of a second one, each with a connection of its own, a real
stream, and heartbeats as often as an agent with nothing in hand sends them. With `--members` every agent has joined: a
certificate of its own, mutual TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks.report import micro_table
from fedloom.client.admin import AdminClient
from fedloom.client.agent import IDLE_BEATS
from fedloom.client.enroll import join
from fedloom.core.identity import SERVER_NAME, Identity
from fedloom.core.messages import Heartbeat, Hello
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.fleet_pb2_grpc import FleetStub
from fedloom.server.access.membership import Membership, enroll_administrator, open_security
from fedloom.server.app import Server

_MB = 1 << 20
_LOOKS = 4
"""How often the server's memory is looked at while the agents are idle."""
_BEAT = pb.FromAgentBatch(messages=[codec.from_agent_message(Heartbeat())])


def serve(state: Path | None) -> None:
    """The server: says its port, then answers each line on stdin with how many agents are online.

    With a state folder it is one with members, and its administrator's identity is there.
    """
    with Server(shared_memory=False) as server, contextlib.ExitStack() as stack:
        if state is None:
            port = server.listen()
        else:
            security = stack.enter_context(open_security(state, "127.0.0.1", Membership(enroll_port=0)))
            port = server.listen(security=security)
            enroll_administrator(security, state / "admin", "127.0.0.1", port)
        print(port, flush=True)
        for _ in sys.stdin:
            print(server.coordinator.online, flush=True)


def enroll(state: Path, count: int) -> None:
    """Let as many devices join as are wanted; their identities are beside the server's state."""
    with AdminClient(Identity.load(state / "admin")) as admin:
        token = admin.create_token("device", ttl_s=600.0, uses=count).encode()
    for index in range(count):
        join(token, _identity(state, index))


def _identity(state: Path, index: int) -> Path:
    return state / "devices" / f"{index:04}"


def channel_to(address: str, identity: Identity | None) -> grpc.aio.Channel:
    """A connection of one agent's own."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", SERVER_NAME))
    if identity is None:
        return grpc.aio.insecure_channel(address, options=options[:1])
    credentials = grpc.ssl_channel_credentials(identity.authority, identity.key, identity.certificate)
    return grpc.aio.secure_channel(address, credentials, options=options)


async def session(address: str, index: int, state: Path | None) -> None:
    """One idle agent, for ever."""
    identity = Identity.load(_identity(state, index)) if state is not None else None
    stub: Any = FleetStub(channel_to(address, identity))
    hello = Hello(node=identity.name if identity is not None else f"device-{index:04}", session="only")
    metadata = (("fedloom-node", hello.node), ("fedloom-session", hello.session))
    welcome = await stub.Register(codec.hello_message(hello), metadata=metadata)
    stream = stub.Work(metadata=metadata)
    await stream.write(_BEAT)
    pause_s = welcome.heartbeat_s * IDLE_BEATS
    await asyncio.sleep(random.random() * pause_s)  # devices do not beat in step
    while True:
        await stream.write(_BEAT)
        await asyncio.sleep(pause_s)


async def sessions(address: str, count: int, state: Path | None) -> None:
    """All agents, some at a time until all are there."""
    tasks = []
    for index in range(count):
        tasks.append(asyncio.create_task(session(address, index, state)))
        if index % 20 == 19:
            await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)


def measure(count: int, seconds: float, *, members: bool = False) -> dict[str, Any]:
    """Connect `count` agents, wait until all are online, and watch the server for some seconds."""
    with tempfile.TemporaryDirectory(prefix="fedloom-idle-") as folder:
        return _measure(count, seconds, Path(folder) if members else None)


def _measure(count: int, seconds: float, state: Path | None) -> dict[str, Any]:
    here = [sys.executable, "-m", "benchmarks.idle", *(["--state", str(state)] if state is not None else [])]
    server = subprocess.Popen([*here, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    assert server.stdin is not None and server.stdout is not None
    port = int(server.stdout.readline())
    process = psutil.Process(server.pid)
    alone = process.memory_full_info().pss
    if state is not None:
        enroll(state, count)
    agents = subprocess.Popen([*here, "--connect", f"127.0.0.1:{port}", "--agents", str(count)])
    try:
        online, deadline = 0, time.monotonic() + 240
        while online < count:
            if agents.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{online} of {count} agents came online")
            time.sleep(0.5)
            server.stdin.write("\n")
            server.stdin.flush()
            online = int(server.stdout.readline())
        time.sleep(5)
        begin, before = time.perf_counter(), process.cpu_times()
        curve = [process.memory_full_info().pss]
        for _ in range(_LOOKS):
            time.sleep(seconds / _LOOKS)
            curve.append(process.memory_full_info().pss)
        after, wall_s = process.cpu_times(), time.perf_counter() - begin
        pss, threads = curve[-1], process.num_threads()
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
        "mode": "members" if state is not None else "plain",
        "online at the end": stayed,
        "server PSS MB": pss / _MB,
        "before MB": alone / _MB,
        "MB from look to look": " ".join(f"{each / _MB:.1f}" for each in curve),
        "KB/agent": (pss - alone) / 1024 / count,
        "threads": threads,
        "% of a core": 100 * (after.user + after.system - before.user - before.system) / wall_s,
        "seconds": round(wall_s),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__)
    parser.add_argument("--agents", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--members", action="store_true", help="agents that have joined, over mutual TLS")
    parser.add_argument("--serve", action="store_true", help="be the server")
    parser.add_argument("--state", type=Path, help="where a server with members, or its agents, have their identities")
    parser.add_argument("--connect", metavar="ADDRESS", help="be the agents")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.state)
    elif options.connect:
        asyncio.run(sessions(options.connect, options.agents, options.state))
    else:
        row = measure(options.agents, options.seconds, members=options.members)
        print(micro_table("Agents that are connected and idle", [row]))
        if options.json is not None:
            options.json.write_text(json.dumps(row) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

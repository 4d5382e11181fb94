"""The programs of a schedule, as processes forked from one that has imported everything: `python -m …chaos.programs`.

It reads one JSON object a line, `{"role", …}`, forks a process that plays the role, and answers with `{"pid"}`. When
its input ends, all it has forked end too. Nothing here starts a thread before a fork.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fedloom.client.agent
import fedloom.server.run_queue
from benchmarks.chaos import clock, digits
from benchmarks.chaos.hostile import LyingChannel
from benchmarks.chaos.network import enter
from fedloom import api
from fedloom.client.agent import Agent
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.client.guard import Guard
from fedloom.client.policy import Policy, WorkloadPolicy
from fedloom.client.setup import NodeSetup
from fedloom.client.usage import Usage
from fedloom.core.addresses import DeviceAddress
from fedloom.core.identity import Identity
from fedloom.core.messages import Channel
from fedloom.server.access.membership import Membership
from fedloom.server.standing import ServerSettings, serve
from fedloom.testing.faults import FaultyChannel

_PR_SET_PDEATHSIG = 1


def server(*, state: str, port: int, token: str, ready: str, quick: bool, **_: Any) -> None:
    """A standing server, until it is killed; without a token, one with members."""

    def announce(address: str) -> None:
        Path(ready).write_text(address, encoding="utf-8")

    settings = ServerSettings(
        host="0.0.0.0",
        port=port,
        state=Path(state),
        token=token,
        members=None if token else Membership(enroll_port=0, address=DeviceAddress(host="127.0.0.1")),
    )
    if quick:  # notices things within a fraction of a second, so that a schedule takes seconds
        settings = replace(settings, heartbeat_s=0.1, grace_s=0.3, lost_after_s=2.0)
        fedloom.server.run_queue.ROOM_S = 0.3
    serve(settings, on_ready=announce)


def agent(
    *,
    address: str,
    name: str,
    token: str,
    identity: str,
    seed: int,
    noise: bool,
    lie: str,
    log: str,
    quick: bool,
    **_: Any,
) -> None:
    """A node, honest or not, until it is killed."""
    if quick:
        fedloom.client.agent.LAST_RETRY_S = 0.3
    digits.ledger = Path(log).with_name("ledger.txt")
    me = Identity.load(Path(identity)) if identity else None
    channel: Channel = GrpcChannel(address, token, identity=(lambda: me) if me is not None else None, connect_s=2.0)
    if lie:
        channel = LyingChannel(channel, lie, seed)
    if noise:
        channel = FaultyChannel(channel, seed, drop=0.1, duplicate=0.15, delay=0.2, cut=0.003, delay_s=0.03)
    policy = Policy(workloads={digits.__name__: WorkloadPolicy()})
    guard = Guard(policy, Usage(Path(log).with_name(f"usage-{name}.json"))) if me is not None else None
    Agent(channel, name, NodeSetup(guard=guard)).run()


def resume(*, run: str, **_: Any) -> None:
    """What an operator does about a run that failed: put the cause right, then go on with it."""
    api.resume(run, overrides=["runtime.name=inline"])


_ROLES: dict[str, Callable[..., None]] = {"server": server, "agent": agent, "resume": resume}


def fork(spec: dict[str, Any]) -> int:
    """Start a process that plays a role; its output goes to the file `log`."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if spec.get("namespace"):
            enter(spec["namespace"])
        if spec.get("clock"):
            clock.install(Path(spec["clock"]))
        _ROLES[spec["role"]](**spec)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    digits.load()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: the kernel clears them away
    for line in sys.stdin:
        print(json.dumps({"pid": fork(json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()

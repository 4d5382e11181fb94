"""The agent as a program: what `fedloom client` does."""

from __future__ import annotations

import logging
import os
import platform
import signal

from fedloom.client.agent import Agent
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.errors import RunFailed

_log = logging.getLogger(__name__)

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_client(server: str, *, name: str | None = None, token: str = "", give_up_s: float | None = None) -> None:
    """Be an agent of a server until it says goodbye, or SIGTERM or Ctrl-C comes.

    Args:
        server: `host:port`.
        name: the node's lasting name; the host's name by default. Names must differ between agents of one server.
        token: the server's shared secret; empty where it has none.
        give_up_s: seconds without a server after which to end; None tries for ever, with growing pauses.

    Raises:
        ServerUnreachable: no server for `give_up_s` seconds.
        Unauthenticated: the server wants another token.
        RunFailed: the server sent this node away for good, such as because another one has its name.
    """
    for variable in _THREADS:  # sums must not depend on the number of threads; one agent to a core
        os.environ.setdefault(variable, "1")
    agent = Agent(GrpcChannel(server, token), name or platform.node() or "client", give_up_s=give_up_s)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    _log.info("node %s: connecting to %s", agent.node, server)
    agent.run()
    if agent.farewell:
        raise RunFailed(f"the server at {server} sent node {agent.node!r} away: {agent.farewell}")

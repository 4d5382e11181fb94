"""Worker process of a runtime: runs an agent until the server ends the session."""

from __future__ import annotations

from fedloom.client.agent import Agent
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.client.leftovers import Leftovers
from fedloom.client.setup import NodeSetup
from fedloom.core.errors import ServerUnreachable
from fedloom.core.protocols import Helpers
from fedloom.simulation.client_states import simulation_states

GIVE_UP_S = 15.0
"""Seconds without its server after which a worker ends: it has no other purpose."""


def work(node: str, address: str, token: str, helpers: Helpers, leftovers: Leftovers | None = None) -> None:
    """Run one agent to its end.

    Args:
        node: its name.
        address: of its server.
        token: for the server.
        helpers: starts helpers for its workload.
        leftovers: ends what clients' code has started; None where the runtime does.
    """
    setup = NodeSetup(helpers=helpers, leftovers=leftovers, states=simulation_states())
    agent = Agent(GrpcChannel(address, token), node, setup, give_up_s=GIVE_UP_S)
    try:
        agent.run()
    except ServerUnreachable:
        return  # the run is over, or its server was killed: there is no one to report to

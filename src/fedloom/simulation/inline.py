"""One agent in the caller's own thread: for debuggers, notebooks, and the first look at a failing client."""

from __future__ import annotations

from fedloom.client.agent import Agent
from fedloom.client.setup import NodeSetup
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.rounds.run_services import RuntimeInfo
from fedloom.simulation.client_states import simulation_states
from fedloom.simulation.in_process import InProcessChannel

_IDLE_S = 0.05
"""Seconds one `pump` waits for a message when there is no work."""


class InlineRuntime:
    """Does the clients' work in the server's loop whenever it would wait.

    Args:
        debug: raise a client's exception immediately, with its traceback, instead of counting it as a failed client.
    """

    def __init__(self, *, debug: bool = True) -> None:
        self._debug = debug
        self._agent: Agent | None = None

    def host(self) -> str:
        return ""

    def start(self, coordinator: Coordinator, address: str, token: str) -> None:
        setup = NodeSetup(debug=self._debug, interruptible=True, states=simulation_states())
        self._agent = Agent(InProcessChannel(coordinator), "inline", setup)
        self._agent.connect()

    def place(self) -> RuntimeInfo:
        return RuntimeInfo(runtime="inline", workers=1, where="this thread")

    def pump(self) -> None:
        assert self._agent is not None
        self._agent.step(_IDLE_S)

    def stop(self) -> None:
        if self._agent is not None:
            self._agent.end_helpers()
        self._agent = None

"""Every channel keeps the same promises: in process, over shared memory, over the network, and on a bad network."""

from __future__ import annotations

import pytest

from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.messages import Channel
from fedloom.server.app import Server
from fedloom.simulation.in_process import InProcessChannel
from fedloom.testing.channel import ChannelConformance
from fedloom.testing.faults import FaultyChannel
from fedloom.testing.fleet import TOKEN

KINDS = ("in-process", "shared", "remote")


@pytest.mark.parametrize("bad", [False, True], ids=["good", "faulty"])
@pytest.mark.parametrize("kind", KINDS)
class TestChannels(ChannelConformance):
    @pytest.fixture(autouse=True)
    def _chosen(self, kind: str, bad: bool) -> None:
        self.kind, self.bad, self.shared = kind, bad, kind == "shared"

    def server(self) -> Server:
        server = super().server()
        server.listen(token=TOKEN)
        return server

    def connect(self, server: Server) -> Channel:
        channel: Channel = (
            InProcessChannel(server.coordinator)
            if self.kind == "in-process"
            else GrpcChannel(f"127.0.0.1:{server.port}", TOKEN)
        )
        return FaultyChannel(channel, 3, duplicate=0.3, delay=0.3, delay_s=0.004) if self.bad else channel

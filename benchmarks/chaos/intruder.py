"""Somebody who is not let in, and keeps trying: every call of both services, with no secret, a wrong one, or a
certificate that has been revoked."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc

from fedloom.client.link import connect
from fedloom.core.identity import Identity
from fedloom.core.seeds import generator

FLEET = tuple(f"/fedloom.proto.v1.Fleet/{name}" for name in ("Register", "UploadOffset", "Upload", "Work", "Download"))
CONTROL = tuple(f"/fedloom.proto.v1.Control/{name}" for name in ("Submit", "ListRuns", "Watch", "Stop", "ListNodes"))
_STREAMS = ("Work", "Download", "Watch")
_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
"""Statuses of a server that is not there right now."""


class Intruder:
    """Calls about twenty times a second until it is closed; `answers` counts what it was told.

    Args:
        address: of the server.
        seed: of what is called.
        identity: of a member that is none any more; None on a server without members.
    """

    def __init__(self, address: str, seed: int, identity: Identity | None) -> None:
        self._address, self._rng, self._identity = address, generator(seed, "intruder"), identity
        self.answers: Counter[str] = Counter()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._try, daemon=True)
        self._thread.start()

    @property
    def let_in(self) -> int:
        """Calls that got anything but a refusal."""
        return sum(count for name, count in self.answers.items() if name not in ("UNAUTHENTICATED", *_AWAY))

    @property
    def refused(self) -> int:
        """Calls that were refused."""
        return self.answers["UNAUTHENTICATED"]

    def close(self) -> None:
        """Give up."""
        self._closed.set()
        self._thread.join()

    def _try(self) -> None:
        with contextlib.closing(connect(self._address, self._identity)) as channel:
            while not self._closed.wait(0.05):
                path = str(self._rng.choice((*FLEET, *CONTROL)))
                try:
                    self._call(channel, path)
                    self.answers["OK"] += 1
                except grpc.RpcError as exc:
                    call: Any = exc
                    self.answers[call.code().name] += 1

    def _call(self, channel: grpc.Channel, path: str) -> None:
        reported: tuple[tuple[str, str], ...] = (("fedloom-node", "north"), ("fedloom-session", "x"))
        reported += (("fedloom-token", "wrong"),) if self._rng.random() < 0.7 else ()
        data = b"" if self._rng.random() < 0.5 else b"\x0a\x05north"
        name = path.rpartition("/")[2]
        if name in _STREAMS:
            call: Any = channel.stream_stream if name == "Work" else channel.unary_stream
            replies = call(path)(_requests(data) if name == "Work" else data, metadata=reported, timeout=1)
            next(iter(replies), None)
        elif name == "Upload":
            channel.stream_unary(path, bytes, bytes)(_requests(data), metadata=reported, timeout=1)
        else:
            channel.unary_unary(path, bytes, bytes)(data, metadata=reported, timeout=1)


def _requests(data: bytes) -> Iterator[bytes]:
    yield data

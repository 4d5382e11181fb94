"""Sends broken messages, and counts what they are answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from benchmarks.fuzz.bend import bend, mutate
from benchmarks.fuzz.samples import HONEST, NODE, PASSING, SESSION, Samples, frame
from fedloom.core.seeds import generator
from fedloom.proto.v1 import control_pb2, enroll_pb2, fleet_pb2, results_pb2

PREFIX = "/fedloom.proto.v1."
STATUSES = ("INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "PERMISSION_DENIED")
"""What a broken message may be answered with."""
ALSO: Mapping[str, tuple[str, ...]] = {
    "Enroll/Join": ("UNAUTHENTICATED", "ALREADY_EXISTS"),
    "Admin/CreateToken": ("ALREADY_EXISTS",),
}
"""And what some calls may: a secret is none of a token, a name is taken."""
SEVERAL = ("Work", "Upload")
"""Methods that want several messages."""
_WHO = ("", "x", "x" * 300, "../..", HONEST, PASSING, "host:", "host:x", "%00", "~" * 1000)
"""What a caller says who it is, or where."""
_NOT_OURS = ("Traceback", "metadata size", "Exception ")
"""Words of a refusal that this project did not write."""

_SERVICES = {
    name: service
    for module in (control_pb2, enroll_pb2, fleet_pb2, results_pb2)
    for name, service in module.DESCRIPTOR.services_by_name.items()
}

Judge = Callable[[Any, Any, str], str]
"""From a request, its reply (None where it was refused) and the status: what is wrong with the answer, or nothing."""


@dataclass
class Tally:
    """Answers to one call."""

    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Answers that are none of the catalogue, or should not have been given."""

    def take(self, call: str, exc: grpc.RpcError | None) -> str:
        """Count an answer; None is one without an error. Returns its name."""
        self.sent += 1
        refused: Any = exc
        name = "taken" if exc is None else str(refused.code().name)
        self.answers[name] += 1
        known = name in ("taken", *STATUSES, *ALSO.get(call, ()))
        if not known or (exc is not None and any(word in refused.details() for word in _NOT_OURS)):
            self.wrong.append(f"{name}: {refused.details()[:200]}")
        return name


class Fuzzer:
    """Sends broken messages to a server.

    Args:
        doors: the connection by which each service or call is reached; a call's own counts.
        samples: what is broken.
        seed: of what is broken, and how.
        token: shared secret of a server without members.
        makers: calls whose sound messages are made anew each time.
        judges: of calls whose answers say more than their status.
    """

    def __init__(
        self,
        doors: Mapping[str, grpc.Channel],
        samples: Samples,
        seed: int,
        *,
        token: str = "",
        makers: Mapping[str, Callable[[np.random.Generator], Message]] | None = None,
        judges: Mapping[str, Judge] | None = None,
    ) -> None:
        self._doors, self._samples, self._rng = doors, samples, generator(seed, "fuzz")
        self._makers, self._judges = makers or {}, judges or {}
        self._all = [sound.SerializeToString() for each in samples.values() for sound in each]
        self._frame = frame()
        self._token = token
        self.tallies = {call: Tally() for call in samples}

    def broken(self, call: str) -> bytes:
        """A broken message for a call: one that can be read, or bytes that mostly cannot; one in ten is sound."""
        sound = self._samples[call]
        message = type(chosen := sound[int(self._rng.integers(len(sound)))])()
        message.CopyFrom(chosen)
        if call in self._makers:
            message.CopyFrom(self._makers[call](self._rng))
            if self._rng.random() < 0.6:  # what was made is strange already
                return message.SerializeToString()
        kind = self._rng.random()
        if kind < 0.1:
            return message.SerializeToString()
        if kind < 0.7:
            for _ in range(int(self._rng.integers(1, 4))):
                bend(message, self._rng)
            return message.SerializeToString()
        return mutate(message.SerializeToString(), self._all, self._rng)

    def send(self, call: str, count: int) -> None:
        """Send broken messages to a call."""
        for _ in range(count):
            messages, reply, refused = self.messages(call), None, None
            try:
                reply = self._call(call, messages)
            except grpc.RpcError as exc:
                refused = exc
            name = self.tallies[call].take(call, refused)
            if call in self._judges and messages and (wrong := self._judge(call, messages[0], reply, name)):
                self.tallies[call].wrong.append(wrong)

    def messages(self, call: str) -> list[bytes]:
        """Messages of one call: a broken one; in one call of eight none, or several, sound ones among them.

        On the wire every call is a stream: one that wants a single message may get any number.
        """
        first = self.broken(call)
        if call.partition("/")[2] in SEVERAL or self._rng.random() > 1 / 8:
            return [first]
        others = list(self._samples)
        more = [
            self.broken(call if self._rng.random() < 0.7 else others[int(self._rng.integers(len(others)))])
            for _ in range(int(self._rng.integers(1, 6)))
        ]
        return [first, *more] if self._rng.random() < 0.7 else []

    def _judge(self, call: str, data: bytes, reply: bytes | None, name: str) -> str:
        asked, answered = _kinds(call)
        try:
            request = asked.FromString(data)
        except DecodeError:
            return "bytes that are no message were taken" if reply is not None else ""
        return self._judges[call](request, None if reply is None else answered.FromString(reply), name)

    def _call(self, call: str, messages: Sequence[bytes]) -> bytes | None:
        service, _, method = call.partition("/")
        channel, path, who = self._doors.get(call) or self._doors[service], PREFIX + call, self._who()
        if len(messages) != 1:
            replies = list(channel.stream_stream(path, bytes, bytes)(iter(messages), metadata=who, timeout=10))
            return bytes(replies[0]) if replies else None
        data = messages[0]
        if method == "Work":
            self._stream(channel, path, data, who)
        elif method in ("Download", "Watch", "Fetch", "Logs"):
            for _ in channel.unary_stream(path, bytes, bytes)(data, metadata=who, timeout=10):
                pass
        elif method == "Upload":
            chunks = [data, *(self._chunk() for _ in range(int(self._rng.integers(4))))]
            channel.stream_unary(path, bytes, bytes)(iter(chunks), metadata=who, timeout=10)
        else:
            return bytes(channel.unary_unary(path, bytes, bytes)(data, metadata=who, timeout=10))
        return None

    def _who(self) -> tuple[tuple[str, str], ...]:
        """Who calls, beside the message; one in twenty says something strange."""
        reported = {"fedloom-node": NODE, "fedloom-session": SESSION, "fedloom-locality": "remote"}
        if self._rng.random() < 0.05:
            reported[str(self._rng.choice(list(reported)))] = str(self._rng.choice(_WHO))
        return (("fedloom-token", self._token), *reported.items())

    def _chunk(self) -> bytes:
        """The frame, a broken one, or nothing."""
        if self._rng.random() < 0.4:
            return self._frame
        return mutate(self._frame, self._all, self._rng) if self._rng.random() < 0.8 else b""

    def _stream(self, channel: grpc.Channel, path: str, data: bytes, who: tuple[tuple[str, str], ...]) -> None:
        """Send broken messages on one stream, and then an empty one, whose refusal says that they were taken."""
        more = [self.broken("Fleet/Work") for _ in range(int(self._rng.choice([0, 0, 0, 1, 2, 7])))]
        batches = [data, *(each for each in more if each), b""]
        call = channel.stream_stream(path, bytes, bytes)(iter(batches), metadata=who, timeout=10)
        try:
            for _ in call:
                pass
        except grpc.RpcError as exc:
            refused: Any = exc
            if "empty batch" not in refused.details() or not data:
                raise


def _kinds(call: str) -> tuple[Any, Any]:
    """A call's kinds of request and reply."""
    service, _, method = call.partition("/")
    found = _SERVICES[service].methods_by_name[method]
    return GetMessageClass(found.input_type), GetMessageClass(found.output_type)

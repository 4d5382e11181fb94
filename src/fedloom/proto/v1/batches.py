"""Encodes the server's messages for a stream. What the groups of an exchange have in common is encoded once.

The encoding of a protobuf message may come in parts: bytes of some of its fields, followed by bytes of the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedloom.core.messages import Group, ToAgent
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb

MAX_COMMON = 32
"""Common parts of exchanges that are remembered."""
_LENGTH_DELIMITED = 2
"""Wire type of messages in protobuf."""


@dataclass(frozen=True, slots=True)
class _Common:
    """What groups have in common, encoded."""

    data: bytes
    objects: tuple[object, ...]
    """What it was made of, by whose identities it is found: they are referenced so that no others get these."""


class BatchWriter:
    """Encodes batches. Not thread-safe."""

    def __init__(self) -> None:
        self._common: dict[tuple[object, ...], _Common] = {}

    def encode(self, messages: Iterable[ToAgent]) -> bytes:
        """Return a `ToAgentBatch` of these messages."""
        return b"".join(map(self._message, messages))

    def _message(self, message: ToAgent) -> bytes:
        if not isinstance(message, Group):
            return pb.ToAgentBatch(messages=[codec.to_agent_message(message)]).SerializeToString()
        group = codec.own_part(message).SerializeToString() + self._common_part(message)
        return _field(pb.ToAgentBatch.MESSAGES_FIELD_NUMBER, _field(pb.ToAgent.GROUP_FIELD_NUMBER, group))

    def _common_part(self, group: Group) -> bytes:
        objects = (group.knobs, group.rules, group.updates, *group.inputs.values())
        names = (group.accumulator, group.measure, group.park, group.collects, group.clients, *group.inputs)
        key = (*map(id, objects), *names)
        if (known := self._common.get(key)) is not None:
            return known.data
        if len(self._common) >= MAX_COMMON:
            del self._common[next(iter(self._common))]
        made = self._common[key] = _Common(codec.common_part(group).SerializeToString(), objects)
        return made.data


def _field(number: int, data: bytes) -> bytes:
    """Return a field with bytes, or a message, in it."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Encode a number as protobuf does: seven bits a byte, the lowest first, with a mark on all but the last."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)

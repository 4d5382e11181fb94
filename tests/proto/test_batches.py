"""Batches for agents: the bytes mean what the messages say, and what groups have in common is encoded once."""

import numpy as np
import pytest

from fedloom.core.messages import Ack, Group, GroupKey, PayloadRef, RunOver, ToAgent
from fedloom.core.records import Job
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.batches import MAX_COMMON, BatchWriter

KNOBS = {"rate": 0.1}
REF = PayloadRef(size=300, inline=bytes(np.arange(300, dtype=np.uint8).tobytes()))


def group(client: int, *, knobs: dict[str, float] = KNOBS, ref: PayloadRef = REF, collects: int | None = None) -> Group:
    """A group of one client."""
    job = Job(round=3, client=client, kind="train", inputs=("model",), knobs={"own": client}, weight=0.5)
    return Group(
        key=GroupKey("run", 3, 0, client),
        jobs=(job,),
        inputs={"model": ref},
        knobs=knobs,
        rules=("rule",),
        updates={"model": frozenset({"w"})},
        collects=collects,
        states={client: PayloadRef(size=1, inline=b"s")},
        clients=9,
    )


def test_every_message_of_a_batch_is_read_as_it_was_written() -> None:
    messages: list[ToAgent] = [
        RunOver(run_id="old", resumable=True),
        *(group(client) for client in (0, 1, 200)),
        group(2, knobs={}, ref=PayloadRef(size=1 << 40, sha256="ab"), collects=0),
        Ack(key=GroupKey("run", 2, 1, 7), status="accepted"),
    ]
    read = pb.ToAgentBatch.FromString(BatchWriter().encode(messages)).messages
    assert [codec.read_to_agent(message) for message in read] == messages
    assert list(read) == [codec.to_agent_message(message) for message in messages]


def test_the_common_part_is_encoded_once_for_equal_objects_and_anew_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, original = list[int](), codec.common_part

    def counted(group: Group) -> pb.Group:
        encoded.append(group.key.group)
        return original(group)

    monkeypatch.setattr(codec, "common_part", counted)
    writer = BatchWriter()
    updates = {"model": frozenset({"w"})}
    shared = [
        Group(key=GroupKey("run", 1, 0, index), jobs=(), inputs={"model": REF}, knobs=KNOBS, updates=updates)
        for index in range(5)
    ]
    writer.encode(shared)
    assert encoded == [0]
    others = [
        Group(key=GroupKey("run", 1, 0, 10 + index), jobs=(), inputs={"model": REF}, knobs=dict(KNOBS), updates=updates)
        for index in range(2 * MAX_COMMON)
    ]
    data = writer.encode([*others, shared[0]])
    assert encoded == [0, *range(10, 10 + 2 * MAX_COMMON), 0], "the oldest are forgotten"
    assert codec.read_to_agent(pb.ToAgentBatch.FromString(data).messages[-1]) == shared[0]

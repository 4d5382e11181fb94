"""Mutated frames and uploads straight into the plain functions behind the service: refused or taken, never broken."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import pytest
from fleet_support import Hand, a_sum, assert_same_record, exchange, odd_records, planned, result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedloom.core import frames
from fedloom.core.errors import BadFrame, BadMessage, FedloomError, LimitExceeded
from fedloom.core.messages import Ack, Group, Heartbeat, PayloadRef
from fedloom.server.coordinator import Coordinator
from fedloom.server.payloads import PayloadStore
from fedloom.simulation.in_process import InProcessChannel

SUM = bytes(frames.encode(a_sum(0)))
FRAMES = [SUM, *(bytes(frames.encode(record)) for record in odd_records(200))]
fast = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A sound frame with bytes flipped, cut out, put in, or with a part of another one."""
    frame = bytearray(draw(st.sampled_from(FRAMES)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        match draw(st.sampled_from(["flip", "cut", "insert", "truncate", "splice"])):
            case "flip" if at < len(frame):
                frame[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del frame[at : at + draw(st.integers(1, 40))]
            case "insert":
                frame[at:at] = draw(st.binary(min_size=1, max_size=20))
            case "truncate":
                del frame[at:]
            case "splice":
                other = draw(st.sampled_from(FRAMES))
                frame[at:] = other[draw(st.integers(0, len(other))) :]
            case _:
                pass
    return bytes(frame)


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    coordinator = Coordinator(PayloadStore(None), heartbeat_s=5.0)
    yield coordinator
    coordinator.close()


@fast
@given(mutated())
def test_a_mutated_sum_is_refused_or_a_sound_frame(coordinator: Coordinator, frame: bytes) -> None:
    hand = Hand(InProcessChannel(coordinator), "n")
    hand.open()
    hand.channel.send(Heartbeat())
    with exchange(coordinator, planned(1.0)) as opened:
        key = hand.take(Group)[0].key
        hand.channel.send(result(key, 0, total=PayloadRef(size=len(frame), inline=frame or b"\0")))
        (ack,) = hand.take(Ack)
        if ack.status == "accepted":
            assert_same_record(opened.answers.get(timeout=5).total, frames.decode(frame))
        else:
            assert ack.status == "rejected" and ack.message
            assert opened.answers.empty() and not opened.done


@fast
@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=4), st.integers(-3, 3), st.booleans())
def test_any_cutting_of_an_upload_gives_the_frame_or_an_error(
    data: bytes, cuts: list[int], wrong: int, flip: bool
) -> None:
    store = PayloadStore(None, max_payload_bytes=2900)
    digest = hashlib.sha256(data).hexdigest()
    sent = bytearray(data)
    if flip and sent:
        sent[0] ^= 1
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    chunks = [bytes(sent[start:end]) for start, end in itertools.pairwise(edges)]
    size = max(0, len(data) + wrong)
    try:
        received = store.upload("n", digest, size, 0, chunks)
    except FedloomError as exc:
        assert isinstance(exc, BadFrame | BadMessage | LimitExceeded)
        assert not any(upload.complete for upload in store._uploads.values())
    else:
        if received == size:
            assert bytes(store._uploads["n", digest].data) == data
        else:
            assert wrong > 0 and received == len(data)

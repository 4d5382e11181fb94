"""A mailbox: what waits, what wakes, what is never lost."""

import queue

import pytest

from fedloom.core.messages import Ack, Cancel, GroupKey
from fedloom.server.fleet.nodes import Mailbox

ACKS = [Ack(key=GroupKey("run", 1, 0, index), status="accepted") for index in range(3)]
CANCEL = Cancel(run_id="run", round=1, exchange=0)


def test_what_is_put_by_leaves_before_the_next_message() -> None:
    mailbox = Mailbox()
    mailbox.put_deferred(ACKS[0])
    mailbox.put_deferred(ACKS[1])
    mailbox.put(CANCEL)
    assert mailbox.take(10) == [ACKS[0], ACKS[1], CANCEL]


def test_it_leaves_without_another_message_when_flushed_or_asked_for() -> None:
    mailbox = Mailbox()
    mailbox.put_deferred(ACKS[0])
    mailbox.flush()
    assert mailbox.take(10) == [ACKS[0]]
    mailbox.put_deferred(ACKS[1])
    assert mailbox.get(0) == ACKS[1]
    with pytest.raises(queue.Empty):
        mailbox.get(0)


def test_the_end_comes_after_what_was_put_by() -> None:
    mailbox = Mailbox()
    mailbox.put_deferred(ACKS[2])
    mailbox.close()
    assert mailbox.take(10) == [ACKS[2]]
    assert mailbox.closed and mailbox.take(10) == []


def test_what_is_deferred_waits_for_company_from_one_look_to_the_next() -> None:
    mailbox = Mailbox()
    mailbox.put_deferred(ACKS[0])
    mailbox.flush_aged()
    assert mailbox.take(10) == []
    mailbox.put_deferred(ACKS[1])
    mailbox.flush_aged()
    assert mailbox.take(10) == [ACKS[0], ACKS[1]]
    mailbox.put_deferred(ACKS[2])
    mailbox.flush_aged()
    mailbox.put(CANCEL)
    assert mailbox.take(10) == [ACKS[2], CANCEL]
    mailbox.flush_aged()
    assert mailbox.take(10) == []

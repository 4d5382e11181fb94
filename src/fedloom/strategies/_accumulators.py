"""The error for an accumulator that does not match a strategy's exchange."""

from __future__ import annotations

from fedloom.core.accumulators import Accumulator
from fedloom.core.errors import RunFailed


def wrong_accumulator(strategy: str, expected: type[Accumulator], found: Accumulator) -> RunFailed:
    """Return the error for a total of another kind than the exchange's.

    Args:
        strategy: its name, as a user knows it.
        expected: the kind its exchange names.
        found: what `finish` was given.
    """
    return RunFailed(
        f"strategy {strategy!r}: expected the exchange's total as {expected.__name__}, got {type(found).__name__}. The "
        "platform must make the accumulator of the exchange; are the results from another version?"
    )

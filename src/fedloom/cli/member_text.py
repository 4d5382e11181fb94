"""Labels and times of members and tokens, as the command line reads and prints them."""

from __future__ import annotations

from datetime import UTC, datetime

from fedloom.core.errors import UsageError


def read_labels(pairs: list[str]) -> dict[str, str]:
    """Return the labels of `KEY=VALUE` arguments.

    Raises:
        UsageError: an argument has another form.
    """
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise UsageError(
                f"label {pair!r}: expected KEY=VALUE, such as site=lab (`fedloom node label` removes by KEY-)"
            )
        labels[key] = value
    return labels


def time_text(seconds: float) -> str:
    """Return a time, seconds since 1970, as date and minute in UTC; `never` for 0."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC" if seconds else "never"

"""The numbers of a result from another process: counts, weights of metrics and times, each within what it can be.

A metric's value may be anything: one that is not finite is left out where metrics are added up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedloom.core.errors import BadUpdate
from fedloom.core.messages import GroupResult
from fedloom.core.records import ClientReport, Job

MOST_EXAMPLES = 1 << 53
"""Limit of one client's examples: the largest count that a float64 distinguishes from the next."""


def check_reports(
    result: GroupResult, jobs: Sequence[Job], input_bytes: Mapping[str, int], max_payload_bytes: int
) -> None:
    """Refuse a result with a count that cannot be.

    Args:
        result: about exactly the clients of `jobs`.
        jobs: of its group.
        input_bytes: size of the frame of each input of the exchange.
        max_payload_bytes: the largest frame a node may send.

    Raises:
        BadUpdate: names the client, the field, what came and what can be.
    """
    readable = {job.client: sum(input_bytes[name] for name in job.inputs) for job in jobs}
    for report in result.reports:
        down = readable[report.client]
        if not (
            0 <= report.num_examples <= MOST_EXAMPLES
            and 0 <= report.num_trained <= 1
            and 0 <= report.num_retrained <= 1
            and 0 <= report.bytes_down <= down
            and 0 <= report.params_down <= down  # no element is smaller than a byte
            and 0 <= report.bytes_up <= max_payload_bytes
            and 0 <= report.params_up <= max_payload_bytes
        ):
            raise _wrong_count(report, down, max_payload_bytes)
        for name, mean in report.metrics.items():
            if not 0 <= mean.weight < math.inf:
                raise BadUpdate(
                    f"client {report.client}: the weight of metric {name!r} must be a number of at least 0, got "
                    f"{mean.weight}"
                )
    for failure in result.failures:
        down = readable[failure.client]
        if not 0 <= failure.bytes_down <= down:
            raise _not_within(failure.client, "bytes_down", failure.bytes_down, down)


def _wrong_count(report: ClientReport, down: int, up: int) -> BadUpdate:
    """Return the error about the first count of a report that cannot be."""
    counts = {
        "num_examples": (report.num_examples, MOST_EXAMPLES),
        "num_trained": (report.num_trained, 1),
        "num_retrained": (report.num_retrained, 1),
        "bytes_down": (report.bytes_down, down),
        "params_down": (report.params_down, down),
        "bytes_up": (report.bytes_up, up),
        "params_up": (report.params_up, up),
    }
    field, (value, most) = next(each for each in counts.items() if not 0 <= each[1][0] <= each[1][1])
    return _not_within(report.client, field, value, most)


def _not_within(client: int, field: str, value: int, most: int) -> BadUpdate:
    return BadUpdate(f"client {client}: {field} must be from 0 to {most}, got {value}")


def bounded_times(result: GroupResult, limit_s: float) -> GroupResult:
    """Return a result none of whose times is longer than the exchange has been open.

    Args:
        result: as it came.
        limit_s: seconds since the exchange was opened, by the server's clock.
    """
    times = [result.busy_s, *[r.seconds for r in result.reports], *[f.seconds for f in result.failures]]
    if all(0.0 <= seconds <= limit_s for seconds in times):
        return result
    return replace(
        result,
        busy_s=_bounded(result.busy_s, limit_s),
        reports=tuple(replace(each, seconds=_bounded(each.seconds, limit_s)) for each in result.reports),
        failures=tuple(replace(each, seconds=_bounded(each.seconds, limit_s)) for each in result.failures),
    )


def _bounded(seconds: float, limit_s: float) -> float:
    return min(max(seconds, 0.0), limit_s) if not math.isnan(seconds) else 0.0

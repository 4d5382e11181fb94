"""The numbers of a result from another process: counts, weights of metrics and times, each within what it can be.

A metric's value may be anything: one that is not finite is left out where metrics are added up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
        limits = {
            "num_examples": MOST_EXAMPLES,
            "num_trained": 1,
            "num_retrained": 1,
            "bytes_down": down,
            "params_down": down,  # no element is smaller than a byte
            "bytes_up": max_payload_bytes,
            "params_up": max_payload_bytes,
        }
        for field, most in limits.items():
            _check_count(report.client, field, _FIELDS[field](report), most)
        for name, mean in report.metrics.items():
            if not (math.isfinite(mean.weight) and mean.weight >= 0):
                raise BadUpdate(
                    f"client {report.client}: the weight of metric {name!r} must be a number of at least 0, got "
                    f"{mean.weight}"
                )
    for failure in result.failures:
        _check_count(failure.client, "bytes_down", failure.bytes_down, readable[failure.client])


def bounded_times(result: GroupResult, limit_s: float) -> GroupResult:
    """Return a result none of whose times is longer than the exchange has been open.

    Args:
        result: as it came.
        limit_s: seconds since the exchange was opened, by the server's clock.
    """
    times = (result.busy_s, *(r.seconds for r in result.reports), *(f.seconds for f in result.failures))
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


def _check_count(client: int, field: str, value: int, most: int) -> None:
    if not 0 <= value <= most:
        raise BadUpdate(f"client {client}: {field} must be from 0 to {most}, got {value}")


_FIELDS: Mapping[str, Callable[[ClientReport], int]] = {
    "num_examples": lambda report: report.num_examples,
    "num_trained": lambda report: report.num_trained,
    "num_retrained": lambda report: report.num_retrained,
    "bytes_down": lambda report: report.bytes_down,
    "params_down": lambda report: report.params_down,
    "bytes_up": lambda report: report.bytes_up,
    "params_up": lambda report: report.params_up,
}

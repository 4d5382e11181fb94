"""Candidates' reports as arrays; missing and invalid values are NaN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.errors import BadMessage, UsageError
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.sampling import Floats, Indices


def losses(reports: Sequence[ClientReport], who: str) -> Floats:
    """Return each report's mean `loss`, float64 [r]; NaN if it is missing or not finite.

    Raises:
        UsageError: no report has a loss.
    """
    if not any("loss" in report.metrics for report in reports):
        names = sorted({name for report in reports for name in report.metrics})
        raise UsageError(
            f"selection {who!r} needs the metric 'loss', but the clients report {names or 'no metrics'}. "
            "Use a workload whose metrics have a loss"
        )
    return finite([report.metrics["loss"].value if "loss" in report.metrics else np.nan for report in reports])


def numbers(reports: Sequence[ClientReport], name: str, who: str) -> Floats:
    """Return a measure's number from each report, float64 [r]; NaN if it is missing or not a finite number.

    Raises:
        BadMessage: no report has it.
    """
    _require(reports, name, who)
    return finite([_number(report.info.get(name)) for report in reports])


def vectors(reports: Sequence[ClientReport], name: str, who: str, width: int | None = None) -> Floats:
    """Return a measure's list of numbers from each report, float64 [r, C], C being `width`, or the commonest length.

    A list of another length, or with anything but finite numbers in it, is a row of NaN.

    Raises:
        BadMessage: no report has it.
    """
    _require(reports, name, who)
    lists = [report.info.get(name) for report in reports]
    lengths = [len(values) for values in lists if isinstance(values, Sequence) and not isinstance(values, str)]
    if width is None:
        width = int(np.bincount(lengths).argmax()) if lengths else 0
    rows = np.full((len(reports), width), np.nan)
    for row, values in zip(rows, lists, strict=True):
        if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == width:
            read = np.array([_number(value) for value in values])
            if np.isfinite(read).all():
                row[:] = read
    return rows


def examples(reports: Sequence[ClientReport]) -> Floats:
    """Examples n_k behind each report, float64 [r]."""
    return np.array([max(0, report.num_examples) for report in reports], np.float64)


def finite(values: Sequence[float]) -> Floats:
    """Return the values as float64, NaN if they are not finite."""
    read = np.asarray(values, np.float64)
    return np.where(np.isfinite(read), read, np.nan)


def largest(values: Floats, size: int) -> Indices:
    """Return the indices of the `size` largest values, largest first; ties keep their order, NaN comes last."""
    return np.argsort(-values, kind="stable")[:size]


def clients_at(reports: Sequence[ClientReport], picked: Indices) -> tuple[int, ...]:
    """Return the clients of the picked reports, in candidate order: a choice never changes the aggregation order."""
    return tuple(reports[index].client for index in np.sort(picked))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else np.nan


def _require(reports: Sequence[ClientReport], name: str, who: str) -> None:
    if not any(name in report.info for report in reports):
        raise BadMessage(
            f"selection {who!r} expects {name!r} in the candidates' reports, but none of {len(reports)} has it. "
            "Do server and clients run the same version?"
        )

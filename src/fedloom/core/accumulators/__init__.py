"""Aggregate updates where they arrive: running means, sums, and lists for rules that need the updates separately.

An accumulator is made where the clients run, filled in cohort order (`add`), sent as a record, and merged on the
server in group order (`merge`). It owns its arrays and may change them in place; nothing else in the platform does.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedloom.core.accumulators.base import Accumulator, Allocate
from fedloom.core.accumulators.integers import IntegerSum
from fedloom.core.accumulators.mean import RunningMean
from fedloom.core.accumulators.senders import MeanOfSenders
from fedloom.core.accumulators.separate import MetricsOnly, UpdateList
from fedloom.core.accumulators.sums import is_finite, not_finite, scaled_add, sum_dtype

BUILTIN: Mapping[str, type[Accumulator]] = {
    "mean": RunningMean,
    "separate": UpdateList,
    "metrics": MetricsOnly,
    "mean_of_senders": MeanOfSenders,
    "integers": IntegerSum,
}
"""Accumulators by the name an exchange gives."""

__all__ = [
    "Accumulator",
    "Allocate",
    "BUILTIN",
    "IntegerSum",
    "MeanOfSenders",
    "MetricsOnly",
    "RunningMean",
    "UpdateList",
    "is_finite",
    "not_finite",
    "scaled_add",
    "sum_dtype",
]

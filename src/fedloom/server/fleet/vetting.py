"""Validates sums from remote agents: client set, finiteness, shapes.

An agent rejects such updates itself, and names the client. These checks are for agents that do not. One that shares the
server's memory could change a sum after any check; such agents are the server's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedloom.core.accumulators import (
    BUILTIN,
    Accumulator,
    MeanOfSenders,
    MetricsOnly,
    RunningMean,
    UpdateList,
    is_finite,
    sum_dtype,
)
from fedloom.core.accumulators.senders import MAX_ENTRY, WEIGHTS
from fedloom.core.errors import BadUpdate
from fedloom.core.messages import GroupResult
from fedloom.core.records import MODEL, Array, Arrays, Contents, DType, Exchange, Groups, Job, Record, Update

Vet = Callable[[Record, Collection[int]], Accumulator | None]
"""Raises `BadUpdate` unless a record is the accumulator of these clients."""

WEIGHED = ("train", "collect")
"""Kinds of jobs whose updates weigh as the run says; all others weigh one."""
_TOLERANCE = 1e-9
"""Relative difference of two sums of the same weights."""


def vet_sum(kind: type[Accumulator], model: Record | None, total: Record, clients: Collection[int]) -> Accumulator:
    """Check what an agent sent as the accumulator of some clients.

    Args:
        kind: the accumulator's class.
        model: the global model of the exchange; None if it has none.
        total: the record received.
        clients: those with an update, according to the result.

    Returns:
        The accumulator.

    Raises:
        BadUpdate: it is no such accumulator, is about another number of clients, is not finite, or a mean's arrays
            have not the model's shapes.
    """
    try:
        partial = kind.from_record(total)
        reported = sorted(client for client, _ in partial.updates) if isinstance(partial, UpdateList) else None
        count = int(partial.count)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as exc:
        raise BadUpdate(f"the result is not a {kind.__name__}: {type(exc).__name__}: {exc}") from exc
    if count != len(clients) or (reported is not None and reported != sorted(clients)):
        raise BadUpdate(f"a {kind.__name__} of {count} updates, but the result lists clients {sorted(clients)}")
    for group, name, array in total.items():
        if not is_finite(array):
            raise BadUpdate(f"array {name!r} of group {group!r} is not finite (NaN or infinity)")
    if isinstance(partial, RunningMean) and kind is RunningMean:
        _vet_mean(partial.weight, model, total)
    return partial


def _vet_mean(weight: float, model: Record | None, total: Record) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise BadUpdate(f"a mean's weight must be a number of at least 0, got {weight}")
    for name, array in total.groups.get(MODEL, {}).items():
        want = model.groups.get(MODEL, {}).get(name) if model is not None else None
        if want is not None and (array.shape, array.dtype) != (want.shape, sum_dtype(want.dtype)):
            raise BadUpdate(
                f"array {name!r} of group {MODEL!r} is {array.dtype} {array.shape}; the sum of models like the "
                f"global one is {sum_dtype(want.dtype)} {want.shape}"
            )


def summed_part(result: GroupResult, jobs: Sequence[Job]) -> GroupResult:
    """Return a result with the reports of those clients alone that its sum has an update of."""
    if all(report.has_update for report in result.reports):
        return result
    weighed = {job.client for job in jobs if job.kind.partition(".")[0] in WEIGHED}
    reports = tuple(each for each in result.reports if each.has_update or each.client not in weighed)
    return replace(result, reports=reports)


@dataclass(frozen=True, kw_only=True, slots=True)
class SumTerms:
    """Requirements of an exchange on its partial sums, besides being finite."""

    kind: type[Accumulator]
    contents: Contents
    """Which arrays each update of a trained client contains."""
    model: Arrays | None
    """The global model of the exchange; None if it has none."""
    by_examples: bool
    """Whether updates of trained clients weigh as much as their examples."""
    parts: int
    """Sums, or updates, that will be added up, at most."""

    @classmethod
    def of(cls, kind: type[Accumulator], exchange: Exchange, *, by_examples: bool, parts: int) -> SumTerms:
        """Return the terms of an exchange."""
        model = exchange.inputs.get(MODEL)
        return cls(
            kind=kind,
            contents={} if exchange.park else exchange.updates,  # parked updates stay where they were made
            model=model.groups.get(MODEL, {}) if model is not None else None,
            by_examples=by_examples,
            parts=parts,
        )

    def check(self, partial: Accumulator, total: Record, result: GroupResult, jobs: Sequence[Job]) -> None:
        """Refuse a sum with other weights or other arrays than its clients can have made.

        Args:
            partial: the accumulator that `vet_sum` has found in `total`.
            total: what came.
            result: the result it came with.
            jobs: of the group.

        Raises:
            BadUpdate: says what came and what was expected.
        """
        self._check_weight(partial, result, jobs)
        if not result.reports:  # of clients without examples alone
            if total.groups:
                raise BadUpdate(f"expected no arrays in the sum of no updates, got groups {sorted(total.groups)[:4]}")
            return
        parts = self.parts
        if isinstance(partial, UpdateList):  # whoever adds them up weighs them first
            parts *= max((1, *(report.num_examples for report in result.reports)))
        for group, name, array in total.items():
            if not within(array, parts):
                raise BadUpdate(
                    f"array {name!r} of group {group!r} has numbers so large that {parts} such sums could not be "
                    "added up"
                )
        if self.kind not in BUILTIN.values():
            return  # which arrays it has is the strategy's
        if isinstance(partial, MetricsOnly):
            if total.groups:
                raise BadUpdate(f"expected no arrays, got groups {sorted(total.groups)[:4]}")
            return
        trained = all(job.kind.partition(".")[0] in WEIGHED for job in jobs)
        if isinstance(partial, UpdateList):
            self._check_list(partial, result, trained=trained)
        elif trained:
            self._check_arrays(partial, total)

    def _check_weight(self, partial: Accumulator, result: GroupResult, jobs: Sequence[Job]) -> None:
        weight = vars(partial).get("weight")
        if not isinstance(weight, int | float):
            return
        by_client = {job.client: job for job in jobs}
        expected = sum(self._weight(report.num_examples, by_client[report.client]) for report in result.reports)
        if not math.isclose(weight, expected, rel_tol=_TOLERANCE):
            raise BadUpdate(
                f"the sum has weight {weight}; {len(result.reports)} clients with "
                f"{sum(report.num_examples for report in result.reports)} examples have {expected}"
            )

    def _weight(self, num_examples: int, job: Job) -> float:
        return (float(num_examples) if self.by_examples and job.kind in WEIGHED else 1.0) * job.weight

    def _check_list(self, partial: UpdateList, result: GroupResult, *, trained: bool) -> None:
        """Check updates that came apart: each says of itself what its client's report says."""
        reports = {report.client: report for report in result.reports}
        for client, update in partial.updates:
            report = reports[client]
            if update.num_examples != report.num_examples or update.metrics.keys() != report.metrics.keys():
                raise BadUpdate(f"client {client}: its update has other examples or metrics than its report")
            for name, mean in update.metrics.items():
                if mean.weight != report.metrics[name].weight:
                    raise BadUpdate(f"client {client}: metric {name!r} of its update is not that of its report")
            if trained:
                self._check_update(update, f"client {client}")

    def _check_update(self, update: Update, who: str) -> None:
        declared = self._declared(update.groups, who)
        for group, names in declared.items():
            for name, want in names.items():
                found = update.groups[group][name]
                if want is not None and (found.shape, found.dtype) != (want.shape, want.dtype):
                    raise BadUpdate(
                        f"{who}: array {name!r} of group {group!r} came as {found.dtype} {found.shape}; the global "
                        f"model has {want.dtype} {want.shape}"
                    )

    def _check_arrays(self, partial: Accumulator, total: Record) -> None:
        """Check the arrays of a sum, and the dtypes their mean will have."""
        declared = self._declared(total.groups, "the sum")
        dtypes = total.info.get("dtypes", {})
        for group, names in declared.items():
            for name, want in names.items():
                found = total.groups[group][name]
                if want is None:
                    continue
                self._check_array(f"array {name!r} of group {group!r}", found, want, partial)
                named = dtypes.get(name) if isinstance(partial, MeanOfSenders) else dtypes.get(group, {}).get(name)
                if named is not None and _dtype(named) != want.dtype:
                    raise BadUpdate(f"array {name!r} is the sum of {named!r}; the global model has {want.dtype}")
                if named is None and isinstance(partial, RunningMean) and found.dtype != want.dtype:
                    raise BadUpdate(f"array {name!r} is the sum of {found.dtype}; the global model has {want.dtype}")
        if isinstance(partial, MeanOfSenders):
            self._check_senders(partial)

    def _check_array(self, what: str, found: Array, want: Array, partial: Accumulator) -> None:
        summed = isinstance(partial, RunningMean | MeanOfSenders)
        dtype = sum_dtype(want.dtype) if summed else found.dtype
        if (found.shape, found.dtype) != (want.shape, dtype):
            raise BadUpdate(f"{what} came as {found.dtype} {found.shape}; expected {dtype} {want.shape}")

    def _check_senders(self, partial: MeanOfSenders) -> None:
        """Check that no array or row has a negative weight, or a larger one than its clients' updates can give it."""
        for name, weights in partial.weights().items():
            if not (np.isfinite(weights).all() and (weights >= 0).all() and (weights <= MAX_ENTRY * 2.0**53).all()):
                raise BadUpdate(f"weights of array {name!r} must be from 0 to {MAX_ENTRY:g} times those of updates")

    def _declared(self, found: Groups, who: str) -> Mapping[str, Mapping[str, Array | None]]:
        """Return the arrays that must be there, by group; refuse groups and arrays that are missing or not declared."""
        declared: Mapping[str, Mapping[str, Array | None]]
        if self.contents == "accumulator" or (isinstance(self.contents, str) and self.model is None):
            return {}
        model: Arrays = self.model or {}
        if not isinstance(self.contents, str):
            declared = {group: dict.fromkeys(names) for group, names in self.contents.items()}
        elif self.contents == "model":
            declared = {MODEL: model}
        else:
            sent = found.get(MODEL, {})
            declared = {MODEL: {name: model[name] for name in sent if name in model}}
            if WEIGHTS in found:
                declared = {**declared, WEIGHTS: dict.fromkeys(name for name in found[WEIGHTS] if name in sent)}
        groups = found.keys() | declared.keys()
        odd = {group for group in groups if set(found.get(group, {})) != set(declared.get(group, {}))}
        if odd or not found.keys() <= declared.keys():
            raise BadUpdate(f"{who}: groups {sorted(odd)[:4]} do not have exactly the exchange's arrays")
        return declared


def within(array: Array, parts: int) -> bool:
    """Return whether this many sums like this one can be added in its dtype without overflow.

    Numbers whose squares can be added are so small that any number of sums can: that is the check that `is_finite`
    makes, and only arrays that fail it are looked at again.
    """
    if array.dtype.kind != "f":
        return True
    flat = array.reshape(-1)
    if math.isfinite(float(np.vdot(flat, flat))):
        return True
    return bool((np.abs(flat) <= np.finfo(array.dtype).max / max(1, parts)).all())


def _dtype(name: object) -> DType | None:
    try:
        return np.dtype(name) if isinstance(name, str) else None
    except TypeError:
        return None

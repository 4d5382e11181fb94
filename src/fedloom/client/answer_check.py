"""Checks what a client returns where it is produced, so that what cannot be encoded is that client's failure."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping

import numpy as np

from fedloom.core import frames
from fedloom.core.errors import BadUpdate
from fedloom.core.messages import MAX_INFO, MAX_METRICS, MAX_NAME, MAX_PAYLOAD_BYTES
from fedloom.core.records import ClientReport, Mean, Metrics, Record, Update
from fedloom.core.text import shown

MAX_EXAMPLES = 2**63 - 1
"""Limit of the examples of an update."""
MAX_DEPTH = 100
"""Limit of nested lists and dicts in an info; JSON readers recurse."""


def check_answer(update: object, made_by: str) -> Update:
    """Return an update as it can be sent: counts as int, metrics as `Mean` of floats.

    Every kind of job passes through this, in every runtime, so that an update is valid everywhere or nowhere.

    Args:
        update: the object returned.
        made_by: the kind of job, for the message.

    Raises:
        BadUpdate: it is not an `Update`, or one of its parts cannot be sent; the message says which, what was expected
            and what was found.
    """
    if not isinstance(update, Update):
        raise BadUpdate(f"{made_by!r} returned {shown(update)}; expected a fedloom.core.records.Update")
    num_examples, metrics = _count(update.num_examples, made_by), _metrics(update.metrics, made_by)
    _check_size(_check_groups(update.groups, made_by), "arrays", made_by)
    _check_info(update.info, made_by)
    if update.state is not None:
        _check_state(update.state, made_by)
    if num_examples is update.num_examples and metrics is update.metrics:
        return update
    return Update(
        num_examples=num_examples,
        groups=update.groups,
        metrics=metrics,
        info=update.info,
        state=update.state,
        traces=update.traces,
    )


def check_report(report: ClientReport, info_size: int, made_by: str) -> ClientReport:
    """Return a report that a message has room for.

    Args:
        report: the client's.
        info_size: characters of its info as JSON.
        made_by: the kind of job, for the message.

    Raises:
        BadUpdate: it has too many metrics, or too much info.
    """
    if len(report.metrics) > MAX_METRICS:
        raise BadUpdate(f"metrics of {made_by!r}: expected at most {MAX_METRICS}, got {len(report.metrics)}")
    if info_size > MAX_INFO:
        raise BadUpdate(
            f"info of {made_by!r}: expected at most {MAX_INFO} characters as JSON, got {info_size}. Return numbers in "
            "bulk as arrays of a group, or in the client's state"
        )
    return report


def _count(value: object, made_by: str) -> int:
    try:
        count = -1 if isinstance(value, bool | np.bool_) else operator.index(value)  # type: ignore[arg-type]  # tried
    except TypeError:
        count = -1
    if not 0 <= count <= MAX_EXAMPLES:
        raise BadUpdate(
            f"num_examples of {made_by!r}: expected an integer of at least 0, got {shown(value)}. It is the number of "
            "examples the client used"
        )
    return count


def _metrics(metrics: object, made_by: str) -> Metrics:
    """Return the metrics with plain floats; the same object if they are."""
    if not isinstance(metrics, Mapping):
        raise BadUpdate(f"metrics of {made_by!r}: expected a dict of Mean by name, got {shown(metrics)}")
    checked = {_name(name, made_by): _mean(name, mean, made_by) for name, mean in metrics.items()}
    return metrics if all(mean is metrics[name] for name, mean in checked.items()) else checked


def _name(name: object, made_by: str) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise BadUpdate(
            f"metrics of {made_by!r}: expected names of 1 to {MAX_NAME} printable characters, got {shown(name)}"
        )
    return name


def _mean(name: str, mean: object, made_by: str) -> Mean:
    try:
        if not isinstance(mean, Mean):
            raise BadUpdate(f"expected Mean(sum, weight), got {shown(mean)}")
        try:
            total, weight = float(mean.sum), float(mean.weight)
        except (TypeError, ValueError, OverflowError) as exc:
            raise BadUpdate(f"expected two numbers, got {shown(mean)}") from exc
        if not 0 <= weight < math.inf:
            raise BadUpdate(f"expected a finite weight of at least 0, got {shown(mean)}")
    except BadUpdate as exc:
        raise BadUpdate(f"metric {name!r} of {made_by!r}: {exc}") from exc.__cause__
    return mean if type(mean.sum) is float and type(mean.weight) is float else Mean(total, weight)


def _check_groups(groups: object, made_by: str) -> int:
    """Refuse what is not NumPy arrays by group and name; returns the bytes of their data."""
    if not isinstance(groups, Mapping):
        raise BadUpdate(f"groups of {made_by!r}: expected a dict of arrays by group, got {shown(groups)}")
    num_bytes = 0
    for group, arrays in groups.items():
        if not isinstance(arrays, Mapping):
            raise BadUpdate(f"group {group!r} of {made_by!r}: expected a dict of arrays by name, got {shown(arrays)}")
        if not _is_utf8(group):
            raise BadUpdate(f"group of {made_by!r}: {_not_utf8(group)}")
        for name, array in arrays.items():
            if not _is_utf8(name):
                raise BadUpdate(f"array of group {group!r} of {made_by!r}: {_not_utf8(name)}")
            if type(array) is not np.ndarray:
                _check_array(array, f"array {name!r} of group {group!r} of {made_by!r}")
            num_bytes += array.nbytes
    return num_bytes


def _check_size(num_bytes: int, what: str, made_by: str) -> None:
    if num_bytes > MAX_PAYLOAD_BYTES:
        raise BadUpdate(f"{what} of {made_by!r}: expected at most {MAX_PAYLOAD_BYTES} bytes, got {num_bytes}")


def _check_array(array: object, what: str) -> None:
    if not isinstance(array, np.ndarray | np.generic):
        hint = " (.detach().cpu().numpy())" if type(array).__module__.partition(".")[0] == "torch" else ""
        raise BadUpdate(f"{what}: expected a NumPy array, got {shown(array)}. Return NumPy arrays{hint}")
    if isinstance(array, np.ma.MaskedArray):
        raise BadUpdate(
            f"{what}: expected a plain NumPy array, got a masked one, whose mask is not sent. Return "
            "array.filled(value)"
        )


def _is_utf8(name: object) -> bool:
    if not isinstance(name, str):
        return False
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(name: object) -> str:
    """Return what is wrong with a name that is not text of UTF-8."""
    if isinstance(name, str):
        return f"the text {shown(name)} is not UTF-8"
    return f"expected a name as text, got {shown(name)}"


def _check_info(info: object, made_by: str, part: str = "") -> None:
    """Refuse what JSON cannot encode or would change: it makes text of other keys."""
    if not isinstance(info, Mapping):
        raise BadUpdate(f"info of {made_by!r}{part}: expected a dict of JSON values, got {shown(info)}")
    if not info:
        return
    what = f"info of {made_by!r}{part}"
    for key, value in info.items():
        _check_key(key, what)
        _check_json(value, f"{key!r} in {what}", MAX_DEPTH)


def _check_key(key: object, what: str) -> None:
    if not isinstance(key, str):
        raise BadUpdate(f"{what}: expected keys as text, got {shown(key)}")
    if not _is_utf8(key):
        raise BadUpdate(f"a key in {what}: {_not_utf8(key)}")


def _check_json(value: object, what: str, depth: int) -> None:
    match value:
        case str():
            if not _is_utf8(value):
                raise BadUpdate(f"{what}: {_not_utf8(value)}")
        case None | bool() | int() | float():
            pass
        case Mapping() | list() | tuple() if not depth:
            raise BadUpdate(f"{what}: expected at most {MAX_DEPTH} nested lists and dicts, got more, or one in itself")
        case Mapping():
            for key, inner in value.items():
                _check_key(key, what)
                _check_json(inner, what, depth - 1)
        case list() | tuple():
            for inner in value:
                _check_json(inner, what, depth - 1)
        case _:
            raise BadUpdate(
                f"{what}: expected JSON values (text, numbers, lists, dicts), got {shown(value)}. Convert NumPy values "
                "with .item() or .tolist()"
            )


def _check_state(state: object, made_by: str) -> None:
    if not isinstance(state, Record):
        raise BadUpdate(f"state of {made_by!r}: expected a Record, got {shown(state)}")
    _check_size(_check_groups(state.groups, f"{made_by} state"), "state", made_by)
    _check_info(state.info, made_by, " state")
    frames.frame_size(state)

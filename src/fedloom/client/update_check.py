"""Checks updates where they are made: one without its exchange's declared content is its client's failure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from fedloom.core.accumulators.senders import WEIGHTS
from fedloom.core.errors import BadUpdate
from fedloom.core.messages import Group
from fedloom.core.protocols import Inputs
from fedloom.core.records import MODEL, Array, Arrays, Update


def check_update(update: Update, group: Group, client: int, inputs: Callable[[], Inputs]) -> None:
    """Refuse a trained update that does not contain the arrays its exchange declares (`Exchange.updates`).

    Args:
        update: as it leaves the client.
        group: the client's.
        client: for the message.
        inputs: the exchange's; read only if it declares the arrays of its input `model`.

    Raises:
        BadUpdate: an array is missing, is not declared, or (if `model` or `subset` is declared) has another shape
            or dtype; the message
            names client, group and array, what was found and what was expected.
    """
    declared = group.updates
    if declared == "accumulator":
        return
    who = f"client {client}, round {group.key.round}"
    if not isinstance(declared, str):
        _check_names(update.groups, declared, who)
        return
    expected = _model(inputs(), who)
    if declared == "subset":
        found = _known(update, expected, who)
    else:
        _check_names(update.groups, {MODEL: expected}, who)
        found = update.groups[MODEL]
    _check_shapes(found, expected, who)


def _model(inputs: Inputs, who: str) -> Arrays:
    """Return the arrays of the global model an exchange sends."""
    model = inputs.get(MODEL)
    if model is None:
        raise BadUpdate(
            f"{who}: expected an update with the arrays of input {MODEL!r}, but its exchange sends no such input; "
            f"it sends {_listed(inputs)}. Declare its updates' content in `Exchange.updates`"
        )
    return model.groups.get(MODEL, {})


def _known(update: Update, expected: Arrays, who: str) -> Arrays:
    """Return the arrays of an update that may have part of the model's, with or without weights."""
    strange = update.groups.keys() - {MODEL, WEIGHTS}
    if strange:
        raise BadUpdate(
            f"{who}: the update has the groups {_listed(update.groups)}, its exchange declares {MODEL!r} and, for "
            f"weights of its arrays, {WEIGHTS!r}. {_ADVICE}"
        )
    found = update.groups.get(MODEL, {})
    if found.keys() - expected.keys():
        raise BadUpdate(
            f"{who}: group {MODEL!r} of the update has {_listed(found.keys() - expected.keys())}, which the global "
            f"model does not have. {_ADVICE}"
        )
    return found


def _check_names(found: Mapping[str, Arrays], expected: Mapping[str, Collection[str]], who: str) -> None:
    if found.keys() != expected.keys():
        raise BadUpdate(
            f"{who}: the update has the groups {_listed(found)}, its exchange declares {_listed(expected)}. {_ADVICE}"
        )
    for group, arrays in found.items():
        declared = expected[group]
        if len(arrays) != len(declared) or not all(map(arrays.__contains__, declared)):
            missing, strange = set(expected[group]) - arrays.keys(), arrays.keys() - set(expected[group])
            reported = [f"lacks {_listed(missing)}"] if missing else []
            reported += [f"has {_listed(strange)}, which is not declared"] if strange else []
            raise BadUpdate(f"{who}: group {group!r} of the update {' and '.join(reported)}. {_ADVICE}")


def _check_shapes(found: Arrays, expected: Mapping[str, Array], who: str) -> None:
    for name, array in found.items():
        if array.shape != expected[name].shape:
            raise BadUpdate(
                f"{who}: array {name!r} of group {MODEL!r} has shape {array.shape}, the global model has "
                f"{expected[name].shape}. Updates must have the global model's shapes; check what `train` returns"
            )
        if array.dtype != expected[name].dtype:
            raise BadUpdate(
                f"{who}: array {name!r} of group {MODEL!r} has dtype {array.dtype}, the global model has "
                f"{expected[name].dtype}. Updates must have the global model's dtypes; have `train` return "
                f"array.astype(np.{expected[name].dtype.name})"
            )


_ADVICE = "Check what `train` and the rules return; a strategy with other updates declares them in `Exchange.updates`"
_SHOWN = 4
"""Limit of names in a message."""


def _listed(names: Collection[str]) -> str:
    """Return some names, for a message."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(map(repr, ordered[:_SHOWN])) + more if ordered else "none"

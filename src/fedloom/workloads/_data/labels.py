"""Classes as numbers from 0, whatever a source calls them: text, integers, ids, one-hot rows."""

from __future__ import annotations

import contextlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.workloads._data.raw import Label, Labels

_MANY = 50
"""Classes from which on a data set with fewer than two examples for each is rejected: they are ids, or measurements."""
_FEW = 10
"""Classes from which on numbers with fractions, and labels that no two examples share, are rejected."""
_SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbered:
    """The classes of a data set."""

    train: Array
    """Class of each training example, (n,), int64, from 0."""
    test: Array
    names: tuple[str, ...]
    """Their names, in the order of their numbers."""
    remarks: tuple[str, ...] = ()
    """Remarks, in words."""


def number_labels(
    train: Labels,
    test: Labels,
    where: str,
    *,
    names: Sequence[str] = (),
    classes: Sequence[Label] | None = None,
    fewest: int = 2,
) -> Numbered:
    """Number the classes of both splits.

    Args:
        train: labels of the training examples: text, integers, floats without fractions, or one-hot rows.
        test: labels of the held-out ones.
        where: the source's path, for messages.
        names: names of the classes if labels are already their numbers; otherwise empty.
        classes: the classes in the order of their numbers; None numbers those found, in sorted order (or as `names`).
        fewest: classes that have to be found, if neither names nor classes are given.

    Raises:
        DataMissing: a label is missing, of no class, of several, or there are fewer than two classes.
    """
    sides = [_values(side, f"{where}: {which}") for which, side in (("training labels", train), ("test labels", test))]
    remarks: tuple[str, ...] = ("labels are one-hot, read as classes",) if any(hot for _, hot in sides) else ()
    values = [found for found, _ in sides]
    if names:
        values = [[_named(value, names, where) for value in side] for side in values]
    ordered: list[Label] = list(classes if classes is not None else names or _ordered({*values[0], *values[1]}, where))
    texts = [class_name(value) for value in ordered]
    number = {text: index for index, text in enumerate(texts)}
    if classes is None and not names:
        _check_count(len(texts), len(values[0]) + len(values[1]), texts, where, fewest)
    train_numbers, test_numbers = (_numbers(side, number, where) for side in values)
    if classes is None and not names:
        remarks += tuple(doubts(texts))
    return Numbered(train=train_numbers, test=test_numbers, names=tuple(texts), remarks=remarks)


_MISSING = ("", "na", "n/a", "nan", "null", "none", "nil", "-", "?", "#n/a", "missing", "unknown")
"""What programs write where there is no value."""


def doubts(names: Sequence[str]) -> list[str]:
    """Return what may be wrong with classes found in data, in words: one class written twice, or no class at all."""
    alike: dict[object, list[str]] = {}
    for name in names:
        alike.setdefault(_likeness(name), []).append(name)
    found = [
        f"classes {_listed(each)} may be one class, written in several ways" for each in alike.values() if each[1:]
    ]
    missing = [name for name in names if name.casefold() in _MISSING]
    return found + ([f"classes {_listed(missing)} may be examples without label"] if missing else [])


def _likeness(name: str) -> object:
    """Return the common form of classes a person would call the same: the number, or the text without case."""
    try:
        return int(name)
    except ValueError:
        with contextlib.suppress(ValueError):
            return float(name)
        return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def is_visible(text: str) -> bool:
    """Return whether a text has more than blanks and invisible characters, such as zero-width spaces."""
    return any(unicodedata.category(each) not in ("Cf", "Cc", "Zs", "Zl", "Zp") for each in text)


def is_unicode(text: str) -> bool:
    """Return whether a text can be written: halves of a surrogate pair, as broken JSON has them, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def class_name(value: Label) -> str:
    """Return a class as text: without surrounding blanks, in Unicode's NFC, so that it is the same on every system."""
    return unicodedata.normalize("NFC", str(value).strip())


def _values(labels: Labels, where: str) -> tuple[list[Label], bool]:
    """Return labels as text or integers, and whether they were one-hot."""
    if isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu":
        return labels.tolist(), False
    rows: list[object] = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    if rows and isinstance(rows[0], list | tuple):
        single = [row[0] for row in rows if isinstance(row, list | tuple) and len(row) == 1]
        if len(single) < len(rows):
            return _from_one_hot(rows, where), True
        rows = single
    return [_value(label, index, where) for index, label in enumerate(rows)], False


def _value(label: object, index: int, where: str) -> Label:
    if isinstance(label, float | np.floating):
        if math.isnan(label):
            raise DataMissing(f"{where}: example {index} has no label (NaN). Remove it, or label it")
        if not float(label).is_integer():
            raise DataMissing(
                f"{where}: example {index} has the label {label:g}, expected a class: text or an integer. Is it a "
                "measurement? Classification needs classes"
            )
        return int(label)
    if isinstance(label, bytes):  # text in an archive of arrays
        label = label.decode("utf-8", "surrogateescape")
    if isinstance(label, str) and not is_unicode(label):
        raise DataMissing(f"{where}: example {index} has the label {_short(label)}, which is no Unicode. Correct it")
    if isinstance(label, str) and is_visible(label):
        return class_name(label)
    if isinstance(label, bool | np.bool_):
        return str(bool(label))
    if isinstance(label, int | np.integer):
        return int(label)
    if label is None or isinstance(label, str):
        raise DataMissing(f"{where}: example {index} has no label ({label!r}). Remove it, or label it")
    raise DataMissing(
        f"{where}: example {index} has the label {_short(label)}, expected one class: text or an integer. Examples "
        "with several classes (multi-label) are not known here"
    )


def _from_one_hot(rows: Sequence[object], where: str) -> list[Label]:
    """Return the class of each one-hot row."""
    try:
        table = np.asarray(rows, np.float64)
    except (TypeError, ValueError):
        table = np.zeros(0)
    if table.ndim == 2 and np.isin(table, (0.0, 1.0)).all() and (table.sum(1) == 1.0).all():
        return [int(label) for label in table.argmax(1)]
    index = next(
        (i for i, row in enumerate(rows) if table.ndim != 2 or table[i].sum() != 1.0 or table[i].max() != 1.0), 0
    )
    raise DataMissing(
        f"{where}: example {index} has the label {_short(rows[index])}, expected one class: text, an integer or a "
        "one-hot row. Examples with several classes (multi-label) are not known here"
    )


def _named(value: Label, names: Sequence[str], where: str) -> str:
    if isinstance(value, str) or not 0 <= value < len(names):
        raise DataMissing(
            f"{where}: a label is {value!r}, expected 0 to {len(names) - 1} ({_listed(names)}). A negative one means "
            "an example without label: remove these"
        )
    return names[value]


def _ordered(values: set[Label], where: str) -> list[Label]:
    """Return the classes found, sorted."""
    texts = [value for value in values if isinstance(value, str)]
    integers = [value for value in values if isinstance(value, int)]
    if texts and integers:
        raise DataMissing(f"{where}: labels are text ({texts[0]!r}) and integers ({integers[0]}); expected one kind")
    if integers and min(integers) < 0:
        raise DataMissing(
            f"{where}: a label is {min(integers)}. If it means an example without label, remove these; if it is a "
            f"class, set workload.data.classes = {_listed(sorted(integers))}"
        )
    return [*sorted(texts), *sorted(integers)]


def _check_count(found: int, examples: int, texts: Sequence[str], where: str, fewest: int) -> None:
    if found < fewest:
        raise DataMissing(
            f"{where}: all {examples:,} examples have the class {_listed(texts) or 'none'}; expected at least two "
            "classes. Where other sites have others, set workload.data.classes to all of them"
        )
    fractions = [text for text in texts if _is_fraction(text)]
    if len(fractions) == found and found > _FEW:
        raise DataMissing(
            f"{where}: labels are {found:,} numbers with fractions ({_listed(fractions)}), expected classes: text or "
            "integers. Are they measurements? Name the column of the classes, or set workload.data.classes"
        )
    if (found > _MANY and 2 * found > examples) or (found > _FEW and found == examples):
        raise DataMissing(
            f"{where}: {found:,} classes in {examples:,} examples ({_listed(texts)}). Are these ids or measurements? "
            "Name the column of the classes, or set workload.data.classes"
        )


def _is_fraction(text: str) -> bool:
    try:
        return not float(text).is_integer()
    except (ValueError, OverflowError):
        return False


def _numbers(values: Sequence[Label], number: Mapping[str, int], where: str) -> Array:
    try:
        return np.array([number[class_name(value)] for value in values], np.int64)
    except KeyError as exc:
        raise DataMissing(
            f"{where}: the label {exc.args[0]!r} is none of the classes {_listed(list(number))}. Add it to "
            "workload.data.classes, or remove its examples"
        ) from exc


def _listed(values: Sequence[object]) -> str:
    more = f", … ({len(values):,} in all)" if len(values) > _SHOWN else ""
    return "[" + ", ".join(map(repr, values[:_SHOWN])) + more + "]"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"

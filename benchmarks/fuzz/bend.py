"""Breaking a message: strange values in its fields, or changes of its bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor

_TEXTS = (
    "", "x", "x" * 64, "x" * 65, "x" * 300, "x" * 5000, "\0", "a\0b", "a\nb", "..", "../../etc/passwd", "/tmp/x", "~",
    "[" * 5000, '{"a":' * 2000, "{}", "NaN", "é" * 50, "é" * 5000, "😀" * 3000, "\u202eabc", "e\u0301", "0" * 64,
    "node", "user", "admin", "x' or 1=1 --", "%s%n", "-1", "1e999",
)  # fmt: skip
_NUMBERS: dict[int, Sequence[Any]] = {
    FieldDescriptor.TYPE_BOOL: (True, False),
    FieldDescriptor.TYPE_DOUBLE: (float("nan"), float("inf"), -float("inf"), -1.0, -0.0, 0.0, 1e308, 5e-324, 2592001.0),
    FieldDescriptor.TYPE_INT64: (0, 1, -1, 2**31, 2**63 - 1, -(2**63)),
    FieldDescriptor.TYPE_UINT64: (0, 1, 2**20, 2**34, 2**63, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 1, 2, 100, 10_000, 10_001, 2**31, 2**32 - 1),
}
_JSON: Sequence[Any] = (
    *_TEXTS, "\ud800", {"\ud800": "\udfff"}, None, True, 0, 1, -1, 2**31, 2**32, 2**53, 2**63, 2**64, 10**400, 0.5,
    1e308, float("nan"), float("inf"), [], [1], {}, {"name": "x"}, {"name": "../x.py"}, {"labels": {"a": "\0"}},
    "x" * 100_000,
)  # fmt: skip
"""Values JSON can carry; half a character among them."""


def bend(message: Any, rng: np.random.Generator) -> None:
    """Give one field, at any depth, a value nobody would send: the message stays readable."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = fields[int(rng.integers(len(fields)))]
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _bend_map(value, field.message_type.fields_by_name, rng)
        return
    if field.message_type is not None:
        inner = (value[int(rng.integers(len(value)))] if len(value) else value.add()) if field.is_repeated else value
        if field.is_repeated and rng.random() < 0.3:
            value.extend([inner] * int(rng.integers(1, 40)))
        elif rng.random() < 0.1:
            message.ClearField(field.name)
        else:
            inner.SetInParent()
            bend(inner, rng)
        return
    is_json = field.name.endswith("_json") and rng.random() < 0.6
    odd = _bend_json(value, rng) if is_json else _odd(field.type, value, rng)
    if field.is_repeated:
        many = 1000 if not isinstance(odd, str) or len(odd) < 100 else 5
        value.extend([odd] * int(rng.choice([1, 2, many], p=[0.5, 0.4, 0.1])))
    else:
        setattr(message, field.name, odd)


def _bend_map(value: Any, fields: Any, rng: np.random.Generator) -> None:
    """Strange keys and values; sometimes a thousand of them."""
    of_messages = fields["value"].message_type is not None
    key = _odd(fields["key"].type, "", rng)
    if of_messages:
        bend(value[key], rng)
    elif rng.random() < 0.2:
        for number in range(int(rng.choice([16, 17, 1000]))):
            value[f"{key[:70]}{number}"] = "v"
    else:
        value[key] = _odd(fields["value"].type, "", rng)


def _bend_json(text: str, rng: np.random.Generator) -> str:
    """JSON text that stays JSON, with a strange value, at any depth, in place of one or beside the others."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):  # bent before
        return "{}"
    table = whole
    while isinstance(table, dict) and table:
        key = list(table)[int(rng.integers(len(table)))]
        if not isinstance(table[key], dict) or rng.random() < 0.3:
            strange = _JSON[int(rng.integers(len(_JSON)))]
            table[key if rng.random() < 0.9 else str(strange)[:100]] = strange
            break
        table = table[key]
    return json.dumps(whole)


def _odd(kind: int, value: Any, rng: np.random.Generator) -> Any:
    """A strange value of a field's type."""
    strange: Sequence[Any]
    if kind == FieldDescriptor.TYPE_STRING:
        whole = value if isinstance(value, str) else ""
        strange = (*_TEXTS, f"{whole}x", whole[: len(whole) // 2], f"{whole}\n", f" {whole}", whole * 20)
    elif kind == FieldDescriptor.TYPE_BYTES:
        strange = (mutate(value, [value], rng) if isinstance(value, bytes) and value else b"x", b"", rng.bytes(50))
    else:
        strange = _NUMBERS[kind]
    return strange[int(rng.integers(len(strange)))]


def mutate(sound: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """One to four changes of a message's bytes."""
    data = bytearray(sound)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(data) + 1))
        match int(rng.integers(7)):
            case 0 if at < len(data):
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at : at + int(rng.integers(1, 40))]
            case 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 20)))
            case 3:
                del data[at:]
            case 4:
                other = others[int(rng.integers(len(others)))]
                data[at:] = other[int(rng.integers(len(other) + 1)) :]
            case 5:  # the longest number a field can hold, the shortest, NaN
                number = [b"\xff" * 9 + b"\x01", b"\x00", b"\x00\x00\x00\x00\x00\x00\xf8\x7f"]
                data[at : at + 1] = number[int(rng.integers(3))]
            case _:
                data[at:at] = b"[" * int(rng.integers(1, 5000))
    return bytes(data)

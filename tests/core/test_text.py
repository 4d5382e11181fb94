from __future__ import annotations

import pytest

from fedloom.core.text import did_you_mean, dotted, nearest

KNOWN = ("fedavg", "fedprox", "sfedca")


@pytest.mark.parametrize(
    ("name", "near", "asked"),
    [("fedporx", "fedprox", "did you mean 'fedprox'? "), ("FEDAVG!", None, ""), ("fedavg", "fedavg", None)],
)
def test_the_nearest_name_is_asked_for_and_none_where_none_is_near(
    name: str, near: str | None, asked: str | None
) -> None:
    assert nearest(name, iter(KNOWN)) == near
    if asked is not None:
        assert did_you_mean(name, KNOWN) == asked


def test_a_lower_cutoff_finds_names_that_are_less_alike() -> None:
    """`difflib`'s ratio is twice the matching letters over all letters: 2 * 3 / (3 + 8) = 0.55."""
    assert nearest("rat", ["rate_max"]) is None
    assert nearest("rat", ["rate_max"], cutoff=0.5) == "rate_max"


@pytest.mark.parametrize(
    ("name", "near"),
    [("lr", "learning_rate"), ("bs", "batch_size"), ("num_clients", "clients"), ("ms", None), ("x", None)],
)
def test_initials_and_counts_stand_for_names(name: str, near: str | None) -> None:
    known = ["learning_rate", "batch_size", "clients", "min_sites", "max_seconds"]
    assert nearest(name, known) == near, "initials of two names stand for neither"


def test_tables_are_flattened_to_dotted_keys_in_order() -> None:
    table: dict[str, object] = {"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": {}, "g": {"h": {}}, "i": None}
    flat = dotted(table)
    assert flat == {"a.b.c": 1, "a.d": [{"e": 2}], "f": {}, "g.h": {}, "i": None}
    assert list(flat) == ["a.b.c", "a.d", "f", "g.h", "i"]
    assert dotted(table, keep_empty=False) == {"a.b.c": 1, "a.d": [{"e": 2}], "i": None}

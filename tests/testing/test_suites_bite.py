"""Each suite passes on a sound part, and fails on one that breaks a promise, in the test about that promise."""

from __future__ import annotations

from typing import Any

import broken_client_parts  # noqa: F401  # fills CASES
import broken_server_parts  # noqa: F401
import pytest
from suites_of_parts import CASES, SOUND, OfAccumulator, OfMeasure, OfRule, OfSelection, OfStrategy, OfWorkload

from fedloom.core.errors import FedloomError


def of(suite: type[Any], part: type[Any] | None = None) -> Any:
    made = suite()
    if part is not None:
        made.part = part
    return made


@pytest.mark.parametrize("suite", SOUND, ids=lambda suite: suite.__name__)
def test_a_sound_part_passes_every_test(suite: type[Any]) -> None:
    for name in dir(suite):
        if name.startswith("test_"):
            getattr(of(suite), name)()


@pytest.mark.parametrize(("suite", "test", "part"), CASES, ids=[f"{s.__name__}-{p.__name__}-{t}" for s, t, p in CASES])
def test_a_broken_part_fails(suite: type[Any], test: str, part: type[Any]) -> None:
    with pytest.raises((AssertionError, FedloomError, LookupError, TypeError, ValueError)) as caught:
        getattr(of(suite, part), test)()
    assert str(caught.value)


def test_nearly_every_test_of_a_suite_is_seen_to_fail() -> None:
    """Those left out say that a part is explained, or are of stores and channels, whose parts are long to break."""
    seen = {(suite, test) for suite, test, _ in CASES}
    for suite in (OfStrategy, OfRule, OfSelection, OfMeasure, OfWorkload, OfAccumulator):
        tests = {name for name in dir(suite) if name.startswith("test_") and name != "test_it_explains_itself"}
        assert tests <= {test for each, test in seen if each is suite}, suite

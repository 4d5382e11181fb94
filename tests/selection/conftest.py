"""Fixtures of the selections' tests: reports made by hand, and a chi-square test."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from selecting import Build, Fits, Reports

from fedloom.core import registry
from fedloom.core.plugins import build_selection
from fedloom.core.protocols import Selection
from fedloom.core.records import ClientReport, Mean


@pytest.fixture
def reports() -> Reports:
    """Reports of clients with losses, numbers of examples, seconds, and one value per client under any name."""

    def make(
        clients: Sequence[int],
        losses: Sequence[float] | None = None,
        examples: Sequence[int] | None = None,
        seconds: Sequence[float] | None = None,
        **info: Sequence[object],
    ) -> list[ClientReport]:
        return [
            ClientReport(
                client=client,
                num_examples=examples[index] if examples is not None else 10,
                seconds=seconds[index] if seconds is not None else 1.0,
                metrics={"loss": Mean(losses[index] * 10, 10)} if losses is not None else {},
                info={name: values[index] for name, values in info.items()},
            )
            for index, client in enumerate(clients)
        ]

    return make


@pytest.fixture
def build() -> Build:
    """Makes a selection from its name and settings, as a run does."""

    def make(name: str, **settings: object) -> Selection[Any]:
        config = registry.part("selection", name, "config").Config.model_validate({"name": name, **settings})
        return build_selection(config)

    return make


@pytest.fixture
def fits() -> Fits:
    """Whether counts are what their expectations say, by chi-square within four standard deviations."""

    def check(counts: Sequence[float], expected: Sequence[float] | np.ndarray) -> bool:
        seen, hoped = np.asarray(counts, float), np.asarray(expected, float)
        freedom = len(seen) - 1
        return bool(((seen - hoped) ** 2 / hoped).sum() < freedom + 4 * np.sqrt(2 * freedom))

    return check

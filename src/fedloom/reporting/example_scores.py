"""Contributions of single held-out examples to a run's numbers: the sampling error of a study's intervals."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExampleScores:
    """The contribution of each held-out example to a number, which is the mean of these."""

    values: tuple[int, ...]
    """1 for an example counted as right, 0 for another; -1 to 1 where the number is a difference of two models."""
    examples: str
    """Names the set of examples: runs with the same name are compared example by example."""

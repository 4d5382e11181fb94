"""What the generative families contribute to studies: columns for the numbers of `report.py`."""

from __future__ import annotations

from fedloom.reporting.study_part import NumberColumn, StudyPart

_COLUMNS = (
    ("bits_per_dim", "bits/dim", 3),
    ("frechet", "Fréchet", 3),
    ("kernel", "kernel", 4),
    ("inception", "inception", 2),
    ("covered", "classes", 1),
    ("nearer", "nearer", 2),
    ("samples_per_second", "samples/s", 0),
    ("parameters", "weights", 0),
    ("training_seconds", "training, s", 0),
)


def build_study() -> StudyPart:
    """Contribute the table's columns; an arm is a member, whose numbers have no name behind them."""
    return StudyPart(
        columns=tuple(NumberColumn(number=number, title=title, digits=digits) for number, title, digits in _COLUMNS),
        ratios=frozenset({"samples_per_second", "training_seconds", "parameters"}),
    )

"""What MRI unlearning contributes to studies: columns for the numbers of `report.py`."""

from __future__ import annotations

from fedloom.reporting.study_part import NumberColumn, StudyPart

_COLUMNS = (
    ("bta_db", "BTA dB", 2),
    ("kta_db", "KTA dB", 2),
    ("ua_db", "UA dB", 2),
    ("gap_db", "gap dB", 2),
    ("gap_left", "gap left", 2),
    ("bta_lost_db", "BTA lost dB", 2),
    ("invented", "invented", 3),
    ("membership", "membership", 2),
    ("distance", "to oracle", 3),
    ("ks", "ks", 2),
)


def build_study() -> StudyPart:
    """Contribute the columns; an arm is a procedure, whose numbers have no name behind them."""
    return StudyPart(
        columns=tuple(
            NumberColumn(number=number, title=title, digits=digits, interval=True) for number, title, digits in _COLUMNS
        )
    )

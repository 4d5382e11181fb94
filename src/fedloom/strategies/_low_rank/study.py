"""Contributions of the low-rank strategies to studies: columns for the numbers of their reports.

Report code is loaded on demand, because a strategy's module names this function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedloom.reporting.study_part import StudyPart


def build_study() -> StudyPart:
    """Return columns for the saving and the cost of adapters."""
    from fedloom.reporting.study_part import NumberColumn, StudyPart

    return StudyPart(
        columns=(
            NumberColumn(number="saving", title="saving in values up, against whole models", digits=4),
            NumberColumn(number="saving_bound", title="at most, 1 \N{MINUS SIGN} T_i/T"),
            NumberColumn(number="rank_rounds", title="sum of ranks", digits=0),
            NumberColumn(number="aggregation_error", title="aggregation error"),
            NumberColumn(number="drift", title="drift in whole rounds"),
        ),
        ratios=frozenset({"rank_rounds"}),
    )

"""What the low-rank strategies contribute to studies: columns for the numbers of their reports.

Report code is loaded when a study asks, for a strategy's module names this function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedloom.reporting.study_part import StudyPart


def build_study() -> StudyPart:
    """Contribute what adapters save and what they cost."""
    from fedloom.reporting.study_part import NumberColumn, StudyPart

    return StudyPart(
        columns=(
            NumberColumn(number="saving", title="saved of whole models' values up", digits=4),
            NumberColumn(number="saving_bound", title="at most, 1 \N{MINUS SIGN} T_i/T"),
            NumberColumn(number="rank_rounds", title="sum of ranks", digits=0),
            NumberColumn(number="aggregation_error", title="aggregation error"),
            NumberColumn(number="drift", title="drift in whole rounds"),
        ),
        ratios=frozenset({"rank_rounds"}),
    )

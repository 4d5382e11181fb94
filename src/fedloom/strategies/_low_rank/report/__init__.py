"""The low-rank strategies' part of a run's report, loaded when a report is made; a strategy's module names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedloom.reporting.plugins import Contribution
    from fedloom.reporting.run_folder import RunFolder


def build_report(run: RunFolder) -> Contribution:
    """Return section and numbers; none before the first round."""
    from fedloom.strategies._low_rank.report.section import contribution

    return contribution(run)

"""The sections a run's own strategy and workload bring."""

from __future__ import annotations

from fedloom.reporting.markup import Markup, join
from fedloom.reporting.plugins import contributions
from fedloom.reporting.run_folder import RunFolder


def own(run: RunFolder) -> Markup:
    """Return all of them, in order; empty if there are none."""
    return join([contribution.sections for contribution in contributions(run)])

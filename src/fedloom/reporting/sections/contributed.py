"""The sections that the plug-ins of a run contribute."""

from __future__ import annotations

from fedloom.reporting.markup import Markup, join
from fedloom.reporting.plugins import contributions
from fedloom.reporting.run_folder import RunFolder


def contributed(run: RunFolder, *, with_code: bool = False) -> Markup:
    """Return the sections of all plug-ins, in order; empty if there are none. `with_code`: see `contributions`."""
    return join([contribution.sections for contribution in contributions(run, with_code=with_code)])

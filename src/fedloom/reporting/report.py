"""A run's report: one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path

from fedloom.core.run_files import REPORT
from fedloom.reporting.page import page, write_page
from fedloom.reporting.run_folder import RunFolder
from fedloom.reporting.sections.contributed import contributed
from fedloom.reporting.sections.costs import nodes, time, traffic
from fedloom.reporting.sections.failures import failures
from fedloom.reporting.sections.heading import heading
from fedloom.reporting.sections.learning import learning
from fedloom.reporting.sections.origin import data, reproduction, settings
from fedloom.reporting.sections.participation import participation
from fedloom.reporting.sections.partition import partition
from fedloom.reporting.sections.sites import sites

_SECTIONS = (
    heading,
    learning,
    sites,
    contributed,
    participation,
    partition,
    traffic,
    time,
    nodes,
    failures,
    data,
    settings,
    reproduction,
)


def render_report(run: RunFolder) -> str:
    """Return the report as an HTML document, for any run: unfinished or without rounds, too."""
    return page(f"{run.name}: {run.run_id}", *(shown for part in _SECTIONS if (shown := part(run)) is not None))


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run's folder, in place of an older one.

    Returns:
        The report's path.

    Raises:
        UsageError: the folder is not a run's, or a file in it is damaged.
        StorageFull: the disk is full; an older report is untouched.
    """
    run = RunFolder.read(run_dir)
    return write_page(run.path / REPORT, render_report(run))

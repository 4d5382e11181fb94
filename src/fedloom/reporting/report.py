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
from fedloom.reporting.sections.sites import client_metrics, sites

_FIRST = (heading, learning, sites, client_metrics)
_LAST = (
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


def render_report(run: RunFolder, *, with_code: bool = False) -> str:
    """Return the report as an HTML document, for any run: unfinished or without rounds, too.

    Args:
        run: the run.
        with_code: as for `reporting.plugins.contributions`.
    """
    own = contributed(run, with_code=with_code)
    parts = [*(part(run) for part in _FIRST), own, *(part(run) for part in _LAST)]
    return page(f"{run.name}: {run.run_id}", *(shown for shown in parts if shown is not None))


def write_report(run_dir: str | Path, *, with_code: bool = False) -> Path:
    """Write `report.html` into a run's folder, in place of an older one.

    Args:
        run_dir: the run's folder.
        with_code: as for `reporting.plugins.contributions`.

    Returns:
        The report's path.

    Raises:
        UsageError: the folder is not a run's, or a file in it is damaged.
        StorageFull: the disk is full; an older report is untouched.
    """
    run = RunFolder.read(run_dir)
    return write_page(run.path / REPORT, render_report(run, with_code=with_code))

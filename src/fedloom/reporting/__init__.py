"""Reports, comparisons and terminal output from run folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedloom.reporting.console import ConsoleSink
    from fedloom.reporting.report import write_report

__all__ = ["ConsoleSink", "write_report"]


def __getattr__(name: str) -> object:
    """Import the public names when they are first used: the command line's help needs none of them."""
    if name == "ConsoleSink":
        from fedloom.reporting.console import ConsoleSink

        return ConsoleSink
    if name == "write_report":
        from fedloom.reporting.report import write_report

        return write_report
    raise AttributeError(f"module 'fedloom.reporting' has no attribute {name!r}")

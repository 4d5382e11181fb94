"""The report's section on what was sent and saved; see `_low_rank.report`."""

from fedloom.strategies._low_rank.report import build_report

__all__ = ["build_report"]

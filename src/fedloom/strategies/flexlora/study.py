"""Contributions of the method to studies; see `_low_rank.study`."""

from fedloom.strategies._low_rank.study import build_study

__all__ = ["build_study"]

"""Where the tests' own plug-ins lie, and the workload of `fedloom.testing` as a file."""

from __future__ import annotations

from pathlib import Path

from fedloom.testing import linear

SUPPORT = Path(__file__).parent
LINEAR = Path(linear.__file__)

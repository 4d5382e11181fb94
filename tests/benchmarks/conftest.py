"""Makes `tests/support` and the folder `benchmarks` importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))
import with_benchmarks  # noqa: F401

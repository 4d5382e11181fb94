"""Makes the folder `benchmarks` importable."""

import with_benchmarks  # noqa: F401

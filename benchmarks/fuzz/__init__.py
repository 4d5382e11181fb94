"""Every message of every service, broken in every way, and what came of it: `python -m benchmarks.fuzz`."""

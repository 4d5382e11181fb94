"""Compare the base class `TorchWorkload` with a workload written by hand, in pairs of runs."""

"""What the base class `TorchWorkload` costs beside a workload that is written by hand, in pairs of runs."""

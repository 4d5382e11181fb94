"""Limits of a node's policy that apply to the agent's whole process."""

from __future__ import annotations

import os
import resource

from fedloom.client.policy import Limits


def apply_limits(limits: Limits) -> None:
    """Apply the limits to this process, and disable data hubs; before the libraries concerned are loaded."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(limits.threads)
    if limits.memory_mb is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limits.memory_mb * 10**6, limits.memory_mb * 10**6))

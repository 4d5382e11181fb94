"""FedProx, the client half: the gradient of the proximal term."""

from __future__ import annotations

from fedloom.strategies._proximal.rule import ProximalTerm


def build_rule() -> ProximalTerm:
    """Return the client half of FedProx; it has no settings, `mu` comes with each job."""
    return ProximalTerm()

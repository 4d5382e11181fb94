"""Client states stored on the node, where all simulated nodes of a machine share a folder."""

from __future__ import annotations

from pathlib import Path

from fedloom.client.client_stores import NodeStore, default_folder


def simulation_states() -> Path:
    """Return the folder all simulated nodes of this machine share: a client may train on any of them."""
    return default_folder("simulation")


def forget_states(run_id: str) -> None:
    """Remove the states of a simulated run's clients; its nodes end before they learn that the run is over."""
    NodeStore(simulation_states()).forget(run_id)

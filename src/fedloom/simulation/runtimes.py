"""The interface of a runtime, and the choice of one. It starts agents and replaces dead ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from fedloom.core.config import Experiment
from fedloom.core.extras import needed_by
from fedloom.core.machine import default_workers
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.rounds.run_services import RuntimeInfo
from fedloom.simulation.ray_address import ray_address
from fedloom.simulation.ray_privacy import set_up_variables


class Runtime(Protocol):
    """Agents on some machines."""

    def host(self) -> str:
        """Prepare, and return the address of this machine at which the agents will find the server."""

    def start(self, coordinator: Coordinator, address: str, token: str) -> None:
        """Start the agents; they connect asynchronously."""

    def place(self) -> RuntimeInfo:
        """Return the agents' location, for people."""

    def pump(self) -> None:
        """Do work in the calling thread while the server waits. Only the inline runtime has any."""

    def stop(self) -> None:
        """End every agent. May be called twice."""


def make_runtime(experiment: Experiment) -> Runtime:
    """Return the runtime of the experiment's settings. Imports Ray only if it is used."""
    settings = experiment.runtime
    if settings.name == "inline":
        from fedloom.simulation.inline import InlineRuntime

        one_is_too_many = experiment.round.quorum_fraction == 1.0 and not experiment.strategy.decides_about_failures()
        return InlineRuntime(debug=one_is_too_many)
    if settings.name == "process":
        from fedloom.simulation.process import ProcessRuntime

        workers = settings.workers or default_workers()
        return ProcessRuntime(workers, preload=experiment.workload.name, objects=experiment.workload.objects_key())
    joins = not ray_address(settings.ray_address, os.environ).is_local
    os.environ.update(set_up_variables(os.environ, Path.home(), joins=joins))
    with needed_by("runtime 'ray' (or use --runtime process)"):
        from fedloom.simulation.ray_runtime import RayRuntime

    return RayRuntime(settings, experiment.workload.objects_key())

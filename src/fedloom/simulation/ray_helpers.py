"""Helpers as Ray actors, for workers that are actors themselves; Ray ends them with the worker that started them."""

from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Callable
from typing import Any

import ray

from fedloom.client.helper_processes.factory import ONE_CORE, FactoryRef
from fedloom.core.errors import ClientFailed, NoCapacity
from fedloom.core.protocols import HelperHandle, Resources
from fedloom.simulation.workers import worker_environment


class RayHelpers:
    """Starts helpers where the cluster has capacity for them."""

    def start(
        self, factory: Callable[..., object], *arguments: object, resources: Resources = ONE_CORE
    ) -> HelperHandle:
        """Start an actor with the resources and the environment of a worker."""
        ref = FactoryRef.of(factory)
        _check_room(ref, resources)
        actor = (
            ray.remote(_Helper)
            .options(
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                max_restarts=0,
                runtime_env={"env_vars": dict(worker_environment())},
            )
            .remote()
        )
        handle = RayHelper(actor, ref.name)
        try:
            handle.make(ref, arguments)
        except BaseException:
            handle.stop()
            raise
        return handle


class RayHelper:
    """A helper's actor, as the worker that started it calls it.

    Args:
        actor: the actor.
        name: of the factory, for messages.
    """

    def __init__(self, actor: Any, name: str) -> None:
        self._actor, self._name = actor, name

    def make(self, factory: FactoryRef, arguments: tuple[object, ...]) -> None:
        """Make the helper's object in the actor."""
        self._get(self._actor.make.remote(factory.module, factory.file, factory.name, list(sys.path), arguments))

    def call(self, method: str, *arguments: object) -> object:
        return self._get(self._actor.call.remote(method, arguments))

    def stop(self) -> None:
        ray.kill(self._actor, no_restart=True)

    def _get(self, pending: Any) -> object:
        try:
            ok, result = ray.get(pending)
        except ray.exceptions.RayError as exc:
            raise ClientFailed(f"helper {self._name}: its actor has ended ({type(exc).__name__}: {exc})") from exc
        if not ok:
            raise ClientFailed(f"helper {self._name}:\n{result}")
        return copy.deepcopy(result)  # what Ray hands out is read-only


class _Helper:
    """The actor: makes the helper's object and calls it."""

    def make(
        self, module: str, file: str | None, name: str, path: list[str], arguments: tuple[object, ...]
    ) -> tuple[bool, object]:
        sys.path.extend(entry for entry in path if entry not in sys.path)
        try:
            self._made = FactoryRef(module, file, name).load()(*copy.deepcopy(arguments))
        except Exception:
            return False, traceback.format_exc()
        return True, None

    def call(self, method: str, arguments: tuple[object, ...]) -> tuple[bool, object]:
        try:
            return True, getattr(self._made, method)(*copy.deepcopy(arguments))
        except Exception:
            return False, traceback.format_exc()


def _check_room(factory: FactoryRef, resources: Resources) -> None:
    """Reject a helper that the cluster has no capacity for: Ray itself would wait forever.

    Raises:
        NoCapacity: fewer CPUs or GPUs are free.
    """
    free = ray.available_resources()
    for what, wanted in (("CPU", resources.cpus), ("GPU", resources.gpus)):
        if free.get(what, 0.0) < wanted:
            raise NoCapacity(
                f"helper {factory.name} needs {wanted:g} {what}, but the Ray cluster has {free.get(what, 0.0):g} free. "
                "Run fewer --workers, or request less in Resources"
            )

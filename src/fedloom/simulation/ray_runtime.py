"""Agents as Ray actors: on this machine's own Ray, or anywhere on a cluster. The only module that imports ray."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any

from fedloom.core.config import RuntimeSettings
from fedloom.core.errors import NoCapacity, ServerUnreachable
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.rounds.session import Place
from fedloom.simulation.workers import Replacements, worker_environment

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray


class _Worker:
    """An actor whose one long call is an agent's life."""

    def run(self, node: str, address: str, token: str) -> None:
        from fedloom.simulation.worker import work

        work(node, address, token)


class RayRuntime:
    """One actor for each worker, placed by the CPUs and GPUs it asks for, replaced when it dies.

    Args:
        settings: workers, resources for each, and the cluster's address (None starts Ray here).
    """

    def __init__(self, settings: RuntimeSettings) -> None:
        self._settings = settings
        self._ours = False
        self._where = ""
        self._workers = 0
        self._calls: dict[Any, tuple[str, Any]] = {}
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    def host(self) -> str:
        """Start or join Ray; its agents find the server on this node's address.

        Raises:
            ServerUnreachable: no Ray cluster answers at the address given.
            NoCapacity: the cluster lacks the CPUs or GPUs asked for.
        """
        settings = self._settings
        if not ray.is_initialized():
            self._ours = True
            try:
                _knock(settings.ray_address)
                ray.init(
                    address=settings.ray_address,
                    num_cpus=self._local_cpus(),
                    include_dashboard=None if settings.ray_address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except OSError as exc:  # ConnectionError among them
                raise ServerUnreachable(
                    f"no Ray cluster answers at {settings.ray_address!r}: {exc}. Start one with `ray start --head`, or "
                    "leave --ray-address out to start Ray on this machine"
                ) from exc
        self._place_workers()
        node_ip = ray.util.get_node_ip_address()
        if settings.ray_address or not self._ours:
            self._where = f"Ray cluster at {ray.get_runtime_context().gcs_address}"
            return str(node_ip)
        self._where = f"Ray {ray.__version__} on this machine"
        return "127.0.0.1"

    def start(self, coordinator: Coordinator, address: str, token: str) -> None:
        self._address, self._token = address, token
        self._replacements = Replacements(coordinator, self._spawn)
        for index in range(self._workers):
            self._spawn(f"ray-{index + 1}")
        self._watcher = threading.Thread(target=self._watch, name="fedloom-ray", daemon=True)
        self._watcher.start()

    def place(self) -> Place:
        return Place(runtime="ray", workers=self._workers, where=self._where)

    def pump(self) -> None:
        """Nothing: the work is done elsewhere."""

    def stop(self) -> None:
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        for _, actor in self._calls.values():
            ray.kill(actor, no_restart=True)
        self._calls.clear()
        if self._ours and ray.is_initialized():
            ray.shutdown()

    def _local_cpus(self) -> int | None:
        """A Ray of our own is as large as it must be, so that more workers than cores are allowed when asked for."""
        settings = self._settings
        if settings.ray_address is not None or settings.workers is None:
            return None
        return max(os.cpu_count() or 1, int(-(-settings.workers * settings.cpus_per_worker // 1)))

    def _place_workers(self) -> None:
        """Settle how many workers there are, and that there is room for them."""
        settings, total = self._settings, ray.cluster_resources()
        room = int(total.get("CPU", 0.0) / settings.cpus_per_worker)
        if settings.gpus_per_worker:
            room = min(room, int(total.get("GPU", 0.0) / settings.gpus_per_worker))
        self._workers = settings.workers or room
        if not 0 < self._workers <= room:
            free = ray.available_resources()
            wanted = f"{settings.cpus_per_worker:g} CPU" + (
                f" and {settings.gpus_per_worker:g} GPU" if settings.gpus_per_worker else ""
            )
            raise NoCapacity(
                f"{settings.workers or 'any number of'} workers of {wanted} each do not fit the Ray cluster: it has "
                f"{total.get('CPU', 0):g} CPU and {total.get('GPU', 0):g} GPU, of which {free.get('CPU', 0):g} and "
                f"{free.get('GPU', 0):g} are free. Ask for fewer --workers, or set runtime.cpus_per_worker and "
                "runtime.gpus_per_worker"
            )

    def _spawn(self, node: str) -> None:
        actor_class = ray.remote(_Worker).options(
            num_cpus=self._settings.cpus_per_worker,
            num_gpus=self._settings.gpus_per_worker,
            max_restarts=0,
            runtime_env={"env_vars": dict(worker_environment())},
        )
        actor = actor_class.remote()
        self._calls[actor.run.remote(node, self._address, self._token)] = (node, actor)

    def _watch(self) -> None:
        """Replace actors that end before the runtime is stopped."""
        while self._calls and not self._stopping.is_set():
            ended, _ = ray.wait(list(self._calls), num_returns=1, timeout=0.5)
            for call in ended:
                if self._stopping.is_set():
                    return
                node, _ = self._calls.pop(call)
                self._replacements.ended(node, _reason(call))


def _knock(address: str | None) -> None:
    """Fail within seconds where nobody listens; Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit() and "//" not in host:
        socket.create_connection((host, int(port)), timeout=5.0).close()


def _reason(call: Any) -> str:
    try:
        ray.get(call)
    except Exception as exc:
        return f"{type(exc).__name__}: {str(exc).strip().splitlines()[0] if str(exc) else 'no details'}"
    return "its agent left"

"""Agents as Ray actors: on this machine's own Ray, or anywhere on a cluster. The only module that imports ray."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

from fedloom.client.leftovers import descendants, kill, restore_exit_statuses
from fedloom.core.config import RuntimeSettings
from fedloom.core.errors import NoCapacity, ServerUnreachable, UsageError
from fedloom.core.machine import default_workers
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.rounds.run_services import RuntimeInfo
from fedloom.simulation.packing import pack
from fedloom.simulation.ray_address import AUTO, LOCAL, VARIABLE, RayAddress, knock, ray_address
from fedloom.simulation.ray_head import RayHead, patience_s
from fedloom.simulation.ray_log import keep_logs, log_tail
from fedloom.simulation.ray_privacy import MODE, OWN_TOKEN, TOKEN, make_folder, remove_folder, set_up_variables
from fedloom.simulation.workers import Replacements, worker_environment

os.environ.update(set_up_variables(os.environ, Path.home(), joins=not ray_address(None, os.environ).is_local))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray._private import services  # ray.init's own search for a cluster; Ray has no public name for it
from ray._raylet import (  # type: ignore[attr-defined]  # Ray's stub file lacks them
    AuthenticationMode,
    GcsClient,
    get_authentication_mode,
)

_END_S = 3.0
"""Seconds that agents may take to end by themselves once their run is over."""
_ADOPTS = "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper"
"""Ray's variable: its raylet becomes the parent of what a worker that dies leaves behind, and ends it."""


class _Worker:
    """An actor whose one long call is an agent's life."""

    def run(self, node: str, address: str, token: str, objects: bytes) -> None:
        from fedloom.client.leftovers import Leftovers, adopt_orphans, restore_exit_statuses
        from fedloom.simulation.packing import unpack
        from fedloom.simulation.ray_helpers import RayHelpers
        from fedloom.simulation.worker import work

        adopt_orphans()
        restore_exit_statuses()
        if objects:
            unpack(objects)
        work(node, address, token, RayHelpers(), Leftovers())


class RayRuntime:
    """One actor for each worker, placed by the CPUs and GPUs it requests, replaced when it dies.

    Args:
        settings: workers, resources for each, and the cluster's address (if it is None, RAY_ADDRESS; without either a
            new Ray is started here, even if other clusters run on this machine).
        objects: key of the run's Python objects; empty if it has none.
    """

    def __init__(self, settings: RuntimeSettings, objects: str = "") -> None:
        self._settings = settings
        self._packed = pack(objects) if objects else b""
        self._argument: object = b""
        """The packed objects, as every actor's argument: in Ray's object store."""
        self._ours = False
        self._folder: Path | None = None
        """Of a Ray that was started here."""
        self._logs = ""
        """Folder of Ray's logs, as a node of the cluster has it."""
        self._failed = False
        """Whether Ray itself has failed, so that its logs are copied."""
        self._location = ""
        self._workers = 0
        self._calls: dict[Any, tuple[str, Any]] = {}
        self._ending: set[str] = set()
        """Workers that are being ended because they hang."""
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    def host(self) -> str:
        """Start or join Ray; its agents find the server on this node's address.

        Raises:
            ServerUnreachable: no Ray cluster at the address given can be joined.
            NoCapacity: the cluster lacks the CPUs or GPUs requested.
            UsageError: the address is malformed, or Ray cannot be started here.
        """
        target = self._connect()
        self._logs = _logs_folder()
        self._place_workers()
        note = f" ({VARIABLE})" if target is not None and target.source == VARIABLE else ""
        if target is not None and target.is_local:
            self._location = f"Ray {ray.__version__} on this machine{note}"
            return "127.0.0.1"
        self._location = f"Ray cluster at {ray.get_runtime_context().gcs_address}{note}"
        return str(ray.util.get_node_ip_address())

    def start(self, coordinator: Coordinator, address: str, token: str) -> None:
        self._address, self._token = address, token
        self._coordinator, self._replacements = coordinator, Replacements(coordinator, self._spawn)
        self._head = RayHead(_head_address(), patience_s(os.environ))
        self._argument = ray.put(self._packed) if self._packed else b""
        coordinator.on_stuck, coordinator.explain_absence = self._end_stuck, self._absence
        coordinator.on_silent = self._replacements.end_if_stopped
        for index in range(self._workers):
            self._spawn(f"ray-{index + 1}")
        self._watcher = threading.Thread(target=self._watch, name="fedloom-ray", daemon=True)
        self._watcher.start()

    def place(self) -> RuntimeInfo:
        return RuntimeInfo(runtime="ray", workers=self._workers, where=self._location)

    def pump(self) -> None:
        """Do nothing: the work is done elsewhere."""

    def stop(self) -> None:
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        if self._calls:  # agents that end by themselves end what their clients have started
            ray.wait(list(self._calls), num_returns=len(self._calls), timeout=_END_S)
        for _, actor in self._calls.values():
            ray.kill(actor, no_restart=True)
        self._calls.clear()
        if self._ours and ray.is_initialized():
            left = _of_raylet() if self._folder is not None else set()
            ray.shutdown()
            for pid in left:
                kill(pid)
        if self._folder is not None:
            self._forget_folder(self._folder)
            self._folder = None

    def _forget_folder(self, folder: Path) -> None:
        """Remove the files of a Ray that was started here; if Ray has failed, all but its logs."""
        if not (self._failed and keep_logs(folder)):
            remove_folder(folder)

    def _connect(self) -> RayAddress | None:
        """Start or join Ray; None if this process has done so already: that is used, and stays."""
        if ray.is_initialized():
            _check_same(self._settings.ray_address)
            return None
        self._ours = True
        target = ray_address(self._settings.ray_address, os.environ)
        if target.is_local:
            self._start_local()
        else:
            _check_own_token()
            _join(target)
        return target

    def _start_local(self) -> None:
        """Start Ray here, as large as requested, so that more workers than cores are allowed.

        Its calls need a token, its files are in a folder of this user.
        """
        _check_token_mode()
        settings, cpus = self._settings, default_workers()
        if settings.workers is not None:
            cpus = max(cpus, int(-(-settings.workers * settings.cpus_per_worker // 1)))
        os.environ.setdefault(_ADOPTS, "true")
        try:
            self._folder = make_folder(os.environ)
            _init(LOCAL, cpus, folder=str(self._folder))
        except Exception as exc:  # whatever Ray raises is Ray's failure
            self._failed = True
            log = log_tail(self._folder) if self._folder is not None else ""
            if self._folder is not None:
                self._forget_folder(self._folder)
            raise UsageError(
                f"Ray cannot be started on this machine: {type(exc).__name__}: {exc}. Its files are in "
                "RAY_TMPDIR, else TMPDIR, else /tmp: name a writable folder with a short path there, or use --runtime "
                f"process{log}"
            ) from exc

    def _place_workers(self) -> None:
        """Determine the number of workers, and check that there is capacity for them."""
        settings, total = self._settings, ray.cluster_resources()
        room = int(total.get("CPU", 0.0) / settings.cpus_per_worker)
        if settings.gpus_per_worker:
            room = min(room, int(total.get("GPU", 0.0) / settings.gpus_per_worker))
        self._workers = settings.workers or min(room, self._free()) or room
        if not 0 < self._workers <= room:
            free = ray.available_resources()
            wanted = f"{settings.cpus_per_worker:g} CPU" + (
                f" and {settings.gpus_per_worker:g} GPU" if settings.gpus_per_worker else ""
            )
            raise NoCapacity(
                f"{settings.workers or 'any number of'} workers of {wanted} each do not fit the Ray cluster: it has "
                f"{total.get('CPU', 0):g} CPU and {total.get('GPU', 0):g} GPU, of which {free.get('CPU', 0):g} and "
                f"{free.get('GPU', 0):g} are free. Use fewer --workers, or set runtime.cpus_per_worker and "
                "runtime.gpus_per_worker"
            )

    def _free(self) -> int:
        """Return how many workers fit next to the cluster's other work."""
        free, settings = ray.available_resources(), self._settings
        count = int(free.get("CPU", 0.0) / settings.cpus_per_worker)
        return min(count, int(free.get("GPU", 0.0) / settings.gpus_per_worker)) if settings.gpus_per_worker else count

    def _absence(self) -> str:
        """Return Ray's available resources, in words, for a run that no worker has connected to."""
        if trouble := self._head.trouble():  # nothing else may be asked: Ray would wait for its head
            return f"Ray has started none of the {self._workers} workers: {trouble}. {self._where_logs()}"
        try:
            total, free = ray.cluster_resources(), ray.available_resources()
        except Exception as exc:
            return f"Ray does not answer: {type(exc).__name__}: {exc}. {self._where_logs()}"
        wanted = self._settings.cpus_per_worker
        have = (
            f"none of the {self._workers} workers has started ({self._location}: {total.get('CPU', 0):g} CPU, "
            f"{free.get('CPU', 0):g} of them free; each worker needs {wanted:g}). "
        )
        if free.get("CPU", 0.0) < wanted:
            return have + (
                "Other jobs use the CPUs (`ray status` and `ray list actors` show them): resume the run when some "
                "are free, use another cluster, or omit the address to start Ray on this machine"
            )
        return f"{have}They may not reach this machine at {self._address}, or fail to start. {self._where_logs()}"

    def _where_logs(self) -> str:
        """Return where Ray's logs are, as a sentence; empty if unknown."""
        return f"Ray's logs: {self._logs}" if self._logs else ""

    def _spawn(self, node: str) -> None:
        actor_class = ray.remote(_Worker).options(
            num_cpus=self._settings.cpus_per_worker,
            num_gpus=self._settings.gpus_per_worker,
            max_restarts=0,
            runtime_env={"env_vars": dict(worker_environment())},
        )
        actor = actor_class.remote()
        self._calls[actor.run.remote(node, self._address, self._token, self._argument)] = (node, actor)

    def _end_stuck(self, node: str) -> None:
        """End an actor that does not respond; another takes its name."""
        actor = next((actor for name, actor in list(self._calls.values()) if name == node), None)
        if actor is not None and not self._stopping.is_set() and node not in self._ending:
            self._ending.add(node)
            self._replacements.stopping(node)
            ray.kill(actor, no_restart=True)

    def _watch(self) -> None:
        """Replace actors that end before the runtime is stopped."""
        while self._calls and not self._stopping.is_set():
            if gone := self._head.look():
                self._failed = True
                self._coordinator.give_up(f"{gone}. Ray would end this program soon. {self._where_logs()}")
                return
            ended, _ = ray.wait(list(self._calls), num_returns=1, timeout=0.5)
            for call in ended:
                if self._stopping.is_set():
                    return
                node, _ = self._calls.pop(call)
                self._ending.discard(node)
                self._replacements.ended(node, _reason(call) + (log_tail(self._folder) if self._folder else ""))
                self._failed = self._failed or bool(self._coordinator.fatal_reason)


def _join(target: RayAddress) -> None:
    """Connect to a running cluster.

    Raises:
        ServerUnreachable: nothing responds there (detected in less than a minute), or Ray cannot join it.
    """
    address = target.address
    try:
        if address == AUTO:
            address = _found_here()
        if not address.startswith("ray://"):
            knock(address)
            GcsClient(address=address)  # something may listen that is not Ray: ray.init would retry for minutes
        _init(address, None)
    except Exception as exc:  # a dead cluster, another version, a wrong token: whatever Ray raises is Ray's failure
        named = address if address == target.address else f"{target.address} ({address} here)"
        drop = f"unset {VARIABLE}" if target.source == VARIABLE else "omit --ray-address"
        reason = " ".join(str(exc).split()).rstrip(".")
        remedy = (
            "Use the cluster's versions of Ray and Python here"
            if "Version mismatch" in reason
            else "Start one with `ray start --head`"
        )
        raise ServerUnreachable(
            f"cannot join a Ray cluster at {named}, given by {target.given_by}: {type(exc).__name__}: {reason}. "
            f"{remedy}, or {drop} to start Ray on this machine"
        ) from exc


def _head_address() -> str:
    """Return the address of the joined cluster's head; empty through Ray Client, which speaks for this process."""
    return "" if ray.util.client.ray.is_connected() else str(ray.get_runtime_context().gcs_address)


def _logs_folder() -> str:
    """Return the folder in which each node of the joined cluster has Ray's logs; empty if this process cannot know."""
    node = ray._private.worker._global_node
    return "" if node is None else str(node.get_logs_dir_path())


def _of_raylet() -> set[int]:
    """Return the processes below the raylet that was started here: workers, and what those have left behind."""
    node = ray._private.worker._global_node
    infos = [] if node is None else node.all_processes.get("raylet", [])
    return set[int]().union(*(descendants(info.process.pid) for info in infos))


def _found_here() -> str:
    """Return the cluster `auto` stands for on this machine, found as ray.init does.

    Raises:
        ConnectionError: none runs here and no file names one.
    """
    found = services.canonicalize_bootstrap_address(AUTO)
    if found is None:
        raise ConnectionError("no Ray runs on this machine")
    return str(found)


def _check_same(wanted: str | None) -> None:
    """Refuse a cluster's address that differs from the one this process has joined already."""
    joined = _head_address()
    if wanted in (None, AUTO, LOCAL) or not joined or str(wanted).rpartition(":")[2] == joined.rpartition(":")[2]:
        return
    raise UsageError(
        f"runtime.ray_address: {wanted!r}, but this process has already joined Ray at {joined}, by ray.init or an "
        "earlier run. Omit the setting to use that one, or call ray.shutdown() before the run"
    )


def _check_own_token() -> None:
    """Refuse to join a cluster from a process whose own Ray requires a token, which no other cluster has."""
    if os.environ.get(OWN_TOKEN) and get_authentication_mode() != AuthenticationMode.DISABLED:
        raise UsageError(
            "this process has started its own Ray, with a token that no other cluster has: join a cluster from "
            f"another process (with {MODE} and {TOKEN} where the cluster has a token)"
        )


def _check_token_mode() -> None:
    """Reject a Ray whose calls would need no token: Ray was imported before this module could require one."""
    if get_authentication_mode() == AuthenticationMode.DISABLED:
        raise UsageError(
            "Ray was imported before fedloom, with its token authentication off: anyone who reaches its ports "
            "could run code in it. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN before `import ray`, or use "
            "--runtime process"
        )


def _init(address: str, cpus: int | None, *, folder: str | None = None) -> None:
    ray.init(
        address=address,
        num_cpus=cpus,
        include_dashboard=False if address == LOCAL else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
    )
    restore_exit_statuses()  # `ray.init` has made the system forget how this program's children end


def _reason(call: Any) -> str:
    try:
        ray.get(call)
    except Exception as exc:
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        causes = [line for line in lines[1:] if line.startswith(("The actor", "The worker", "Worker exit", "The node"))]
        return f"Ray says {type(exc).__name__}: {' '.join([*lines[:1], *causes[:3]]) or 'no details'}"
    return "its agent disconnected"

"""The agent as a program: what `fedloom client` does."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from fedloom.client.agent import Agent
from fedloom.client.data_view import raise_descriptor_limit
from fedloom.client.enroll import Renewer
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.client.guard import Guard
from fedloom.client.helper_processes.process import ProcessHelpers
from fedloom.client.leftovers import Leftovers, adopt_orphans
from fedloom.client.memory import MemoryLimits
from fedloom.client.node_values import Value, own_values
from fedloom.client.policy import Policy
from fedloom.client.process_limits import apply_limits
from fedloom.client.proxy import checked
from fedloom.client.rules_text import rules_in_force
from fedloom.client.setup import NodeSetup
from fedloom.client.usage import Usage
from fedloom.core import files
from fedloom.core.errors import Forbidden, RunFailed, UsageError
from fedloom.core.identity import Identity

_log = logging.getLogger(__name__)

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_client(
    server: str,
    *,
    name: str | None = None,
    token: str = "",
    proxy: str = "",
    node_values: Mapping[str, Value] = MappingProxyType({}),
    give_up_s: float | None = None,
) -> None:
    """Run an agent of a server without members until the server ends the session, or SIGTERM or Ctrl-C arrives.

    Args:
        server: `host:port`.
        name: the node's lasting name; the host's name by default. Names must differ between agents of one server.
        token: the server's shared secret; empty if it has none.
        proxy: URL of the HTTP proxy to the server; empty takes the environment's, `none` is none.
        node_values: the node's own values for hosted apps.
        give_up_s: seconds without a server after which to end; None retries forever, with growing pauses.

    Raises:
        ServerUnreachable: no server for `give_up_s` seconds.
        Unauthenticated: the token is wrong.
        RunFailed: the server sent this node away for good, such as because another one has its name.
    """
    files.restrict_new_files()
    for variable in _THREADS:  # sums must not depend on the number of threads; one agent to a core
        os.environ.setdefault(variable, "1")
    adopt_orphans()
    node = name or platform.node() or "client"
    setup = NodeSetup(helpers=ProcessHelpers(), leftovers=Leftovers(), node_values=node_values)
    _run(Agent(GrpcChannel(server, token, proxy=checked(proxy)), node, setup, give_up_s=give_up_s), server)


def run_member(
    folder: Path,
    policy_file: Path | None = None,
    *,
    proxy: str = "",
    node_values: Mapping[str, Value] = MappingProxyType({}),
    give_up_s: float | None = None,
) -> None:
    """Run the node of an identity's folder, under its own policy, renewing its certificate.

    Args:
        folder: of the identity.
        policy_file: the node's policy; by default `policy.toml` in the folder. A missing file allows nothing.
        proxy: URL of the HTTP proxy to the server, for this session; empty takes the identity's.
        node_values: the node's own values for hosted apps, for this session, over those of its folder.
        give_up_s: as for `run_client`.

    Raises:
        UsageError: no identity, one that others can read, or a policy that others can write or that is unreadable.
        Unauthenticated: the node was revoked, or its certificate has expired.
        and what `run_client` raises.
    """
    files.restrict_new_files()
    folder, policy_file = folder.absolute(), policy_file.absolute() if policy_file is not None else None
    identity = Identity.load(folder)
    identity = replace(identity, proxy=checked(proxy) or identity.proxy)
    if identity.role != "node":
        raise Forbidden(f"{folder} is the identity of {identity.name!r}, a {identity.role}; expected a node's")
    file = policy_file or folder / "policy.toml"
    if file.exists():
        files.require_unwritable_by_others(file, "the policy")
    policy = Policy.load(file)
    for rule in rules_in_force(policy):
        _log.info("node %s: %s", identity.name, rule, extra={"node": identity.name})
    _warn(policy, identity.name, file)
    apply_limits(policy.limits)
    adopt_orphans()
    usage, renewer = Usage(folder / "usage.json"), Renewer(identity)
    channel = GrpcChannel(identity.address, identity=lambda: renewer.identity, count=usage.add)
    setup = NodeSetup(
        guard=Guard(policy, usage, private=(folder, file), views=folder / "views"),
        memory=MemoryLimits.of(policy.limits),
        helpers=ProcessHelpers(),
        leftovers=Leftovers(),
        node_values=own_values(folder, node_values),
        states=folder / "client-states",
    )
    agent = Agent(channel, identity.name, setup, give_up_s=give_up_s)
    raise_descriptor_limit()
    shutil.rmtree(folder / "views", ignore_errors=True)  # of a process that was killed
    _work_in(folder / "work")
    renewer.start()
    with contextlib.ExitStack() as stack:
        stack.callback(usage.save)
        stack.callback(renewer.stop)
        _run(agent, identity.address)


def _work_in(folder: Path) -> None:
    """Change to an empty folder of the agent's own, so that relative paths lead to no files."""
    if cache := os.environ.get("FEDLOOM_CACHE"):
        os.environ["FEDLOOM_CACHE"] = str(Path(cache).absolute())
    if folder.is_symlink():
        raise UsageError(f"{folder} is a link; expected a folder, which the agent creates. Remove the link")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    os.chdir(folder)


def _warn(policy: Policy, node: str, file: Path) -> None:
    """Warn of policy settings with which no server can use this node."""
    about = {"node": node}
    if not policy.workloads:
        _log.warning(
            "node %s will refuse all work: %s allows no workload. List those it may run, such as "
            "[workloads.image_classification], and restart it",
            node,
            file,
            extra=about,
        )
    for name, allowed in policy.workloads.items():
        if allowed.data is not None and not allowed.data.is_dir():
            _log.warning(
                "workload %s: its data folder %s (in %s) does not exist; work that needs it is refused until it does",
                name,
                file,
                allowed.data,
                extra=about,
            )


def _run(agent: Agent, server: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    _log.info("node %s: connecting to %s", agent.node, server, extra={"node": agent.node})
    agent.run()
    if agent.farewell:
        raise RunFailed(f"the server at {server} disconnected node {agent.node!r}: {agent.farewell}")

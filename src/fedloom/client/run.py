"""One run on an agent: its experiment, its workload, and the workload's services."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Self

import numpy as np

from fedloom.client.client_stores import ClientStore
from fedloom.client.data_view import DataView
from fedloom.client.disclosure import disclosed
from fedloom.client.guard import Guard
from fedloom.client.helper_processes.limit import RunHelpers
from fedloom.client.node_code import NodeCode, located
from fedloom.client.node_values import Value, inserted
from fedloom.core.config import Experiment
from fedloom.core.data_schema import check_schema, data_schema
from fedloom.core.errors import PolicyRefused
from fedloom.core.messages import RunSpec
from fedloom.core.plugins import AnyWorkload, build_workload
from fedloom.core.protocols import (
    Action,
    HasActions,
    KeepsClientState,
    Shard,
    TrainsGroups,
    UsesHelpers,
    WorkloadInfo,
)
from fedloom.core.records import Arrays, Update
from fedloom.core.user_folders import working_folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Abilities:
    """The abilities of a run's workload besides training and evaluation."""

    actions: Mapping[str, Action]
    """Custom actions, by kind of job."""
    keeps_state: KeepsClientState[Shard] | None
    trains_groups: TrainsGroups[Shard] | None

    @classmethod
    def of(cls, workload: object) -> Self:
        """Return a workload's abilities."""
        return cls(
            actions=workload.actions if isinstance(workload, HasActions) else {},
            keeps_state=workload if isinstance(workload, KeepsClientState) else None,
            trains_groups=workload if isinstance(workload, TrainsGroups) else None,
        )


class Run:
    """An experiment on this agent, its workload loaded when first needed.

    Args:
        spec: as the server announced it.
        guard: the node's policy; None without one.
        helpers: for the workload, if it uses any.
        stores: keep the state of clients, by the experiment's `round.state_home`.
        node_values: the node's own values for hosted apps.
    """

    def __init__(
        self,
        spec: RunSpec,
        guard: Guard | None,
        helpers: RunHelpers,
        stores: dict[str, ClientStore],
        node_values: Mapping[str, Value] = MappingProxyType({}),
    ) -> None:
        self._node_values = node_values
        self._spec, self._guard, self._helpers, self._stores = spec, guard, helpers, stores
        self._view: DataView | None = None
        self._warned: set[str] = set()
        self._notices: list[str] = []
        self._agrees = not spec.data

    @functools.cached_property
    def experiment(self) -> Experiment:
        """Return the experiment, parsed with the plug-ins installed here.

        Raises:
            PolicyRefused: the node's policy does not allow it.
            and what `Experiment.parse` raises, which fails the clients, not the agent.
        """
        values = self._spec.experiment
        if self._guard is None:
            here = working_folder()
            own = located(values, NodeCode((str(here),), here, stored_too=True))
            return Experiment.parse(inserted(own, self._node_values))
        self._view = self._guard.open_view()
        try:
            return Experiment.parse(inserted(self._guard.admit_run(self._spec, self._view), self._node_values))
        except BaseException:
            self._close_view()
            raise

    @functools.cached_property
    def workload(self) -> AnyWorkload:
        """Return the workload, with the means to start helpers if it uses any."""
        workload = build_workload(self.experiment.workload, self.experiment.at_site())
        if isinstance(workload, UsesHelpers):
            workload.use_helpers(self._helpers)
        return workload

    def learn(self, spec: RunSpec) -> None:
        """Update the run's specification with additions of the server, or settings the sites have agreed on."""
        if spec.experiment != self._spec.experiment:
            self._spec = replace(self._spec, experiment=spec.experiment)
            for name in ("experiment", "workload", "abilities", "of_sites", "clients", "weighs_by_examples"):
                self.__dict__.pop(name, None)
            self._close_view()
        if spec.data and spec.data != self._spec.data:
            self._spec, self._agrees = replace(self._spec, data=spec.data), False

    def check_data(self) -> None:
        """Check, once, that the data here agrees with that of the node that made the initial model.

        Raises:
            DataDiffers: it does not; working on would mix up classes.
        """
        if not self._agrees:
            check_schema(self._spec.data, self.workload.describe().data, self._spec.run_id)
            self._agrees = True

    @functools.cached_property
    def abilities(self) -> Abilities:
        """Return the workload's abilities, found once: a check against a protocol is too slow for every job."""
        return Abilities.of(self.workload)

    @functools.cached_property
    def of_sites(self) -> bool:
        """Return whether each client is an enrolled node with its own data."""
        return self.experiment.of_sites

    @functools.cached_property
    def clients(self) -> ClientStore:
        """Return the store of the run's client states."""
        return self._stores[self.experiment.state_home]

    @functools.cached_property
    def weighs_by_examples(self) -> bool:
        """Return whether an update weighs as much as its examples."""
        return self.experiment.weighs_by_examples

    def disclosed(self, info: WorkloadInfo) -> WorkloadInfo:
        """Return a description of the workload as the node's policy lets it leave.

        Raises:
            PolicyRefused: there are more classes than a node discloses.
        """
        info = replace(info, data={**info.data, "schema": data_schema(info.data, self._spec.run_id)})
        if self._guard is None:
            return info
        allowed = self._guard.workload_policy(self.experiment.workload.name)
        shown = disclosed(info, () if allowed is None else allowed.classes, self._spec.run_id)
        return self._guard.policy.withhold.described(shown)

    def filtered(self, update: Update, model: Callable[[], Arrays | None]) -> Update:
        """Return an update as the node's policy lets it leave.

        Raises:
            PolicyRefused: the policy has filters, and this update cannot be filtered.
        """
        if self._guard is None:
            return update
        policy = self._guard.policy
        if policy.filters.any:
            update = policy.filters.apply(update, model(), np.random.default_rng())
        return policy.withhold.update(update)

    def admit_evaluation(self) -> None:
        """Refuse to evaluate a model where the node's policy forbids it.

        Raises:
            PolicyRefused: it does.
        """
        if self._guard is not None:
            self._guard.admit_evaluation(str(self._spec.experiment["workload"]["name"]))

    @property
    def shares_local_model(self) -> bool:
        """Return whether a model trained on this node's data alone may leave; not without a policy that says so."""
        return self._guard is not None and self._guard.policy.share_local_model

    def admit_sharing(self) -> None:
        """Refuse to send a model trained on this node's data alone where the node's policy does not allow it.

        Raises:
            PolicyRefused: it does not.
        """
        if not self.shares_local_model:
            raise PolicyRefused("the node's policy shares no model trained on its data alone", kind="data")

    def admit_examples(self, client: int, shard: Shard) -> None:
        """Refuse work on a client with fewer examples than the node's policy says.

        Raises:
            PolicyRefused: it has fewer.
        """
        if self._guard is not None and self._guard.policy.limits.min_examples:
            self._guard.admit_examples(client, shard.num_examples)

    def warn_once(self, about: str, message: str, cause: BaseException) -> None:
        """Log a warning and put it among the run's notices, unless this run has warned about the same before.

        Args:
            about: what is the same.
            message: for the user of the run.
            cause: its text may quote data, so it leaves the node only if the node's policy allows it.
        """
        if about in self._warned:
            return
        self._warned.add(about)
        whole = f"{message}: {type(cause).__name__}: {cause}"
        _log.warning("%s", whole, extra={"run": self._spec.run_id})
        details = self._guard is None or self._guard.policy.tracebacks
        self._notices.append(whole if details else f"{message}; the node's log has the reason")

    def take_notices(self) -> tuple[str, ...]:
        """Return the notices since the last call."""
        taken, self._notices = tuple(self._notices), []
        return taken

    def close(self) -> None:
        """End the workload's helpers, and close the view of the data."""
        self._helpers.close()
        self._close_view()

    def _close_view(self) -> None:
        if self._view is not None:
            self._view.close()
            self._view = None

"""Enforces a node's policy: refuses runs, groups and evaluations that its owner has not allowed.

Names outside the policy's lists are refused before anything is imported, and a workload reads only paths below the
folder its owner gave it (`client.own_settings`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import pydantic

from fedloom.client.approval import Approver
from fedloom.client.availability import Availability
from fedloom.client.data_paths import in_view
from fedloom.client.data_view import DataView, file_ids, handles_folder
from fedloom.client.node_code import NodeCode
from fedloom.client.own_settings import OwnSettings
from fedloom.client.policy import Policy, WorkloadPolicy
from fedloom.client.usage import Usage
from fedloom.core.accumulators import BUILTIN
from fedloom.core.code_names import CodeName
from fedloom.core.config import plugin_schema
from fedloom.core.errors import ConfigError, PolicyRefused
from fedloom.core.kinds import SECTIONS, Kind
from fedloom.core.messages import Group, RunSpec
from fedloom.core.records import Info, JsonObject
from fedloom.core.registry import PartRef, is_path


class Guard:
    """Enforces a policy.

    Args:
        policy: the permissions.
        usage: today's traffic.
        now: the node's clock, local time.
        private: folders and files that are never data: the node's identity, its policy.
        views: folder for the runs' views of the data (`client.data_view`); None gives runs the paths themselves.
    """

    def __init__(
        self,
        policy: Policy,
        usage: Usage,
        now: Callable[[], datetime] = datetime.now,
        *,
        private: Sequence[Path] = (),
        views: Path | None = None,
    ) -> None:
        self.policy, self._views = policy, views
        self._numbers = itertools.count()
        self._private = [path.resolve() for path in private]
        started_in = Path.cwd()
        self._code = NodeCode(policy.code, started_in)
        self._workload_files = {
            name: NodeCode([name], started_in) for name in policy.workloads if is_path(name) or CodeName.parse(name)
        }
        self._own = OwnSettings(self._code, self._private)
        self._availability = Availability(policy.limits, usage, now)
        self._approver = Approver(policy.approval)

    def open_view(self) -> DataView | None:
        """Return a new view for a run, which closes it; None if runs get the paths themselves."""
        if self._views is None or not handles_folder().is_dir():
            return None
        return DataView(self._views / str(next(self._numbers)), file_ids(self._private))

    def admit_run(self, spec: RunSpec, view: DataView | None = None) -> JsonObject:
        """Return a run's experiment with the node's own folders inserted; nothing it names has been imported.

        Args:
            spec: as the server announced it.
            view: as for `admit_experiment`.

        Raises:
            PolicyRefused: the policy is against the run or its submitter, or it is not approved.
        """
        workload = _name(spec.experiment.get("workload"), "workload")
        self.admit_submitter(spec.submitter_name, spec.submitter_role, workload)
        own = self.admit_experiment(spec.experiment, view)
        self._approver.admit(spec)
        return own

    def admit_experiment(self, experiment: Info, view: DataView | None = None) -> JsonObject:
        """Return the experiment with the node's own folders inserted; nothing it names has been imported.

        Args:
            experiment: as the server sent it.
            view: paths in it stand for those of the data; None inserts these.

        Raises:
            PolicyRefused: it names a workload, code or a path that is not allowed here.
        """
        for section, kind in SECTIONS.items():
            given = experiment.get(section)
            if kind is Kind.WORKLOAD or (given is None and not kind.required and kind.default is None):
                continue
            self._admit_part(PartRef(kind, _name(given, section), section))
        workload = _name(experiment.get("workload"), "workload")
        allowed = self.workload_policy(workload)
        if allowed is None:
            listed = ", ".join(sorted(name.rpartition("/")[2] for name in self.policy.workloads)) or "none"
            raise PolicyRefused(f"workload {workload[:200]!r} is not allowed here (allowed: {listed})", kind="workload")
        self._admit_cohort(experiment)
        self._admit_withheld(experiment)
        settings = experiment["workload"]
        table = {"name": settings} if isinstance(settings, str) else settings
        own = self._own.insert(workload, table, allowed)
        return {**experiment, "workload": own if view is None else in_view(own, workload, allowed.data, view)}

    def workload_policy(self, name: str) -> WorkloadPolicy | None:
        """Return the permissions of a workload, by its name or by its file's name and SHA-256; None if it has none.

        Raises:
            PolicyRefused: a path came with the name.
        """
        code = CodeName.parse(name)
        if code is None:
            return None if is_path(name) else self.policy.workloads.get(name)
        for key, file in self._workload_files.items():
            if file.path_of(code.content) is not None:
                file.find(code, "workload")
                return self.policy.workloads[key]
        return None

    def admit_submitter(self, name: str, role: str, workload: str = "") -> None:
        """Check whether the node accepts runs of a member; the server names the submitter of a run.

        Args:
            name, role: of the submitter.
            workload: the run's; empty for any.

        Raises:
            PolicyRefused: it does not.
        """
        allowed = self.workload_policy(workload) if workload else None
        for each, what in ((self.policy, "runs"), (allowed, f"runs of workload {workload[:80]!r} by")):
            if each is None:
                continue
            if (each.roles is not None and role not in each.roles) or (
                each.submitters is not None and name not in each.submitters
            ):
                of = f"{what} {name[:80]!r}" if each is allowed else f"runs of {name[:80]!r}"
                raise PolicyRefused(f"{of} ({role[:20] or 'no role'}) are not accepted here", kind="submitter")

    def admit_evaluation(self, workload: str) -> None:
        """Check whether models may be evaluated on the node's validation data.

        Raises:
            PolicyRefused: they may not.
        """
        allowed = self.workload_policy(workload)
        if allowed is not None and not allowed.evaluation:
            raise PolicyRefused("the node's policy forbids evaluation of models on its data", kind="data")

    def admit_examples(self, client: int, num_examples: int) -> None:
        """Check whether a client has enough examples for results on them to leave the node.

        Raises:
            PolicyRefused: it has fewer than the policy's minimum.
        """
        floor = self.policy.limits.min_examples
        if num_examples < floor:
            raise PolicyRefused(
                f"client {client} has fewer examples than the {floor} that the node's policy requires", kind="data"
            )

    def admit_group(self, group: Group) -> None:
        """Check whether the group's plug-ins are allowed, and whether the node may work now.

        Raises:
            PolicyRefused: they are not, or it may not.
        """
        if group.accumulator not in BUILTIN:
            self._admit_part(PartRef(Kind.STRATEGY, group.accumulator, "accumulator"))
        for rule in group.rules:
            self._admit_part(PartRef(Kind.STRATEGY, rule, "rule"))
        if group.measure is not None:
            self._admit_part(PartRef(Kind.SELECTION, group.measure, "measure"))
            if self.policy.withhold.any:  # a server may name another measure than that of the run's selection
                self.policy.withhold.admit_measure(
                    plugin_schema(Kind.SELECTION, group.measure).measured_facts(), group.measure
                )
        self._admit_company(group)
        self._availability.admit_day(group.key)
        self.admit_now(sum(ref.size for ref in (*group.inputs.values(), *group.states.values()) if not ref.inline))
        self._availability.begin(group.key)

    def admit_now(self, coming: int = 0) -> None:
        """Check whether the node may work now, with `coming` more bytes of traffic.

        Raises:
            PolicyRefused: it may not.
        """
        self._availability.admit(coming)

    def _admit_cohort(self, experiment: Info) -> None:
        """Refuse a run whose cohort is smaller than the policy's minimum."""
        floor, size = self.policy.limits.min_cohort, _stated_cohort(experiment)
        if size < floor:
            raise PolicyRefused(f"the run's cohort has {size} clients, expected at least {floor}", kind="data")

    def _admit_withheld(self, experiment: Info) -> None:
        """Refuse a run that needs what the node withholds."""
        if not self.policy.withhold.any:
            return
        given = experiment.get("selection")
        name = _name(given, "selection") if given is not None else str(Kind.SELECTION.default)
        table = {**given, "name": name} if isinstance(given, Mapping) else {"name": name}
        needs = frozenset[str]()
        with contextlib.suppress(pydantic.ValidationError, ConfigError):  # said when the experiment is parsed
            needs = plugin_schema(Kind.SELECTION, name).model_validate(table).needs_of_clients()
        self.policy.withhold.admit(needs, name, experiment)

    def _admit_company(self, group: Group) -> None:
        """Refuse an exchange with no other client, where the policy is against those."""
        kinds = {job.kind for job in group.jobs}
        if self.policy.limits.alone or kinds <= {"init", "describe"} or group.clients > len(group.jobs):
            return
        raise PolicyRefused(
            f"the server states {group.clients or 'no number of'} clients of this exchange, of which {len(group.jobs)} "
            "would be done here: the node takes part only with others (limits.alone)",
            kind="alone",
        )

    def _admit_part(self, ref: PartRef) -> None:
        """Refuse a part that is neither installed here nor allowed as code."""
        if (code := CodeName.parse(ref.name)) is not None:
            self._code.find(code, ref.part)
        elif not self._code.lists_module(ref.name) and not ref.installed:
            raise PolicyRefused(
                f"{ref.part} {ref.name[:80]!r} is neither installed here with fedloom or a plug-in, nor a module that "
                "the node's policy allows as code. Files are named by name and SHA-256, as `fedloom submit` sends them",
                kind="code",
            )


def _stated_cohort(experiment: Info) -> int:
    """Return how many clients a round of a run has at least, by its experiment."""
    cohort, clients, table = experiment.get("cohort"), experiment.get("clients"), experiment.get("round")
    if isinstance(cohort, int):
        return cohort
    if isinstance(clients, int):
        return clients
    sites = table.get("min_sites") if isinstance(table, Mapping) else None
    if isinstance(sites, int):
        return sites
    return len(clients) if isinstance(clients, list | tuple) else 1


def _name(section: object, what: str) -> str:
    name = section.get("name") if isinstance(section, Mapping) else section
    if not isinstance(name, str) or not name:
        raise PolicyRefused(f"the experiment names no {what}", kind="code")
    return name

"""An exchange as a run submits it to the fleet: everything that decides assignment and validity in one value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from fedloom.core.code_names import CodeName
from fedloom.core.config import Experiment
from fedloom.core.errors import BadMessage
from fedloom.core.messages import GroupResult, RunSpec
from fedloom.core.records import ClientFailure, Exchange, Info, Job, Record
from fedloom.core.registry import is_path
from fedloom.server.fleet.vetting import SumTerms, Vet


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """Facts about a run that the server needs. Nodes get only `spec`."""

    spec: RunSpec
    """The run as sent to nodes."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Nodes with all these labels serve the run."""
    max_attempts: int = 3
    """Limit of nodes a group is assigned to, one after another, when the process working on it died."""
    group_size: int = 1
    """Clients per group."""
    min_nodes: int = 1
    """Nodes with the labels that must be connected before work is given out."""
    keeps_states: bool = True
    """Whether the server stores clients' states; False if each stays on its node."""
    workload_has_states: bool = True
    """Whether the workload's clients may have a state; False where its settings say that they have none."""
    by_examples: bool = True
    """Whether the update of a client that trains weighs as much as its examples."""
    code_names: bool = False
    """Whether nodes get code that is a file by name and SHA-256, and not by its path here."""

    def on_wire(self, part: str) -> str:
        """Return how nodes get the name of a plug-in's part."""
        return str(CodeName.of(Path(part))) if self.code_names and is_path(part) else part

    def fits(self, labels: Mapping[str, str]) -> bool:
        """Return whether a node with these labels serves the run."""
        return all(labels.get(key) == value for key, value in self.labels.items())

    def takes_states(self, exchange: Exchange) -> bool:
        """Return whether clients may send a state: their workload, or a rule of the exchange, may have one."""
        return self.keeps_states and (self.workload_has_states or bool(exchange.rules))

    @property
    def run_id(self) -> str:
        """Return the run's id."""
        return self.spec.run_id

    def agreed(self, experiment: Experiment) -> RunFacts:
        """Return the facts with the settings that the sites have agreed on."""
        spec = replace(self.spec, experiment=experiment.for_nodes(code_names=self.code_names))
        return replace(self, spec=spec, by_examples=experiment.weighs_by_examples)

    def with_data(self, schema: Info) -> RunFacts:
        """Return the facts with those that every node's data must agree with."""
        return replace(self, spec=replace(self.spec, data=schema))

    @classmethod
    def of(
        cls,
        run_id: str,
        experiment: Experiment,
        submitter: tuple[str, str] = ("", ""),
        *,
        code_names: bool = False,
    ) -> RunFacts:
        """Return the facts of an experiment's run, and the name and role of its submitter.

        Raises:
            ConfigError: code that nodes are to find by its digest is not here.
        """
        name, role = submitter
        return cls(
            spec=RunSpec(
                run_id=run_id,
                experiment=experiment.for_nodes(code_names=code_names),
                submitter_name=name,
                submitter_role=role,
            ),
            labels=experiment.fleet.labels,
            max_attempts=experiment.round.max_attempts,
            group_size=experiment.group_size,
            min_nodes=experiment.fleet.min_nodes,
            keeps_states=experiment.state_home == "server",
            workload_has_states=experiment.workload.clients_have_state(),
            by_examples=experiment.weighs_by_examples,
            code_names=code_names,
        )


class ExchangeKey(NamedTuple):
    """Unique name of an exchange: the prefix of its groups' keys."""

    run_id: str
    round: int
    exchange: int
    """Index of the exchange within its round, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedGroup:
    """Jobs whose updates are aggregated together, by one node."""

    jobs: tuple[Job, ...]
    work: float
    """Estimated work, in any unit: the longest groups are assigned first."""
    states: Mapping[int, Record] = field(default_factory=dict)
    """Stored states of the clients, by client."""
    prefer: str = ""
    """The node that has cached the group's inputs; another one gets it only when that node is gone."""
    only: str = ""
    """The only node for the group, whose own client it is."""
    member: str = ""
    """Id of the member that this node has to be; empty for any."""
    keeps_states: bool = True
    """Whether clients may send a state to be stored."""

    def check(self, result: GroupResult) -> None:
        """Reject a result that is not about exactly the group's clients, each once.

        Raises:
            BadMessage: clients are missing, repeated or others; a state is not allowed; or the sum is missing.
        """
        assigned = sorted(job.client for job in self.jobs)
        found = sorted([report.client for report in result.reports] + [failure.client for failure in result.failures])
        if assigned != found:
            raise BadMessage(f"group {result.key}: expected clients {assigned}, the result has {found}")
        strangers = sorted(set(result.states) - {report.client for report in result.reports})
        if strangers:
            raise BadMessage(f"group {result.key}: states of clients {strangers}, which have not reported")
        if result.states and not self.keeps_states:
            raise BadMessage(
                f"group {result.key}: got states of clients {sorted(result.states)}, but none was asked for: the "
                "workload and the exchange's rules have none, or each stays on its node (round.state_home = 'node')"
            )
        if result.total is None and result.reports:
            raise BadMessage(f"group {result.key}: {len(result.reports)} clients reported, but no accumulator")

    def trouble(self, result: GroupResult) -> ClientFailure | None:
        """Return the failure of a group that is the node's more than its clients': another node may be able to do it.

        That is one before any client's turn (the workload, its data or the rule could not be loaded there), and any at
        the initial model, which is no client's.
        """
        if result.reports or not result.failures:
            return None
        anybody = all(job.kind == "init" for job in self.jobs)
        return result.failures[0] if anybody or all(failure.stage == "load" for failure in result.failures) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedExchange:
    """Work for the fleet."""

    run: RunFacts
    round: int
    index: int
    """Index of the exchange within its round, from 0."""
    exchange: Exchange
    groups: tuple[PlannedGroup, ...]
    """All groups; a result's group is its index here."""
    reserve: Collection[int] = ()
    """Indices of the groups not pushed until they are released."""
    answered: Collection[int] = ()
    """Indices of the groups whose results the run already has; they are not assigned."""
    vet: Vet | None = None
    """Checks the sums of nodes on other machines."""
    terms: SumTerms | None = None
    """Requirements on those sums besides being finite."""
    run_acknowledges: bool = False
    """Whether results are acknowledged only when the run calls `Coordinator.acknowledge`, after storing them
    safely."""

    @property
    def key(self) -> ExchangeKey:
        """Return the exchange's name."""
        return ExchangeKey(self.run.run_id, self.round, self.index)

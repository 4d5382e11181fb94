"""Decides who the clients of a run are, and which node does whose work: for virtual clients and for sites."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from fedloom.core.config import Experiment
from fedloom.core.protocols import Roster, WorkloadInfo
from fedloom.core.records import Exchange, Job
from fedloom.server.rounds.run_services import RosterSource


class Clients(ABC):
    """The clients of one run. Clients that join get the next numbers; none loses its number."""

    @abstractmethod
    def begin(self, first: int) -> None:
        """Determine the clients, before round `first` of this session.

        Raises:
            DataDiffers: clients' data do not fit together.
            QuorumNotReached: no node can be a client.
            Interrupted: the run was stopped meanwhile.
        """

    @abstractmethod
    def open(self, round: int) -> Roster:
        """Return the roster of a round that begins.

        Raises:
            Interrupted: the run was stopped while it waited for clients.
        """

    @abstractmethod
    def roster(self) -> Roster:
        """Return the roster as it is."""

    @abstractmethod
    def describe(self, info: WorkloadInfo) -> WorkloadInfo:
        """Return a workload's description with the facts known of each client."""

    def counts_alike(self) -> bool:
        """Return whether clients count the same, because some withhold their number of examples."""
        return False

    def sharing(self) -> frozenset[int]:
        """Return the sites whose models may be evaluated at other sites, by their own statement."""
        return frozenset()

    @abstractmethod
    def initial(self, exchange: Exchange) -> Iterator[Exchange]:
        """Yield the exchange that makes the initial model, once for each choice of nodes that are to try it."""

    @abstractmethod
    def pin(self, exchange: Exchange) -> Exchange:
        """Return an exchange with each client's job bound to the node that may do it."""

    @abstractmethod
    def evaluation(self, round: int, inputs: tuple[str, ...]) -> Exchange:
        """Return the exchange, without its payloads, that evaluates the global model on held-out data.

        Args:
            round: its number.
            inputs: names of the inputs to read.
        """


class VirtualClients(Clients):
    """A number of clients whose data every node has, so that any node can train any client.

    Args:
        experiment: the run's.
        source: returns the current roster, given the one declared.
    """

    def __init__(self, experiment: Experiment, source: RosterSource) -> None:
        self._experiment, self._source = experiment, source
        self._info = WorkloadInfo(data={})

    def begin(self, first: int) -> None:
        pass

    def open(self, round: int) -> Roster:
        return self.roster()

    def roster(self) -> Roster:
        info = self._info
        return self._source(Roster(self._experiment.num_clients, info.client_sizes, info.label_counts))

    def describe(self, info: WorkloadInfo) -> WorkloadInfo:
        self._info = info
        return info

    def initial(self, exchange: Exchange) -> Iterator[Exchange]:
        yield exchange

    def pin(self, exchange: Exchange) -> Exchange:
        return exchange

    def evaluation(self, round: int, inputs: tuple[str, ...]) -> Exchange:
        parts = self._experiment.evaluation.parts
        jobs = (
            Job(round=round, client=part, kind="held_out", inputs=inputs, knobs={"parts": parts}, of_client=False)
            for part in range(parts)
        )
        return Exchange(jobs=tuple(jobs), accumulator="metrics")

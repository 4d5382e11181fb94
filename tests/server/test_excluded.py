"""Clients that never take part: selections and monitors choose among the others as if there were no others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.protocols import Monitor, MonitorReading, MonitorRequest, Probe, Roster, Selection
from fedloom.core.records import ClientReport, Info
from fedloom.selection.uniform.selection import Uniform
from fedloom.server.rounds.choices import replay_run
from fedloom.server.rounds.excluding import monitor_without_clients, without_clients

ROSTER = Roster(6, sizes=(10, 11, 12, 13, 14, 15), label_counts=[[k] for k in range(6)], offline=frozenset({1, 4}))


@dataclass(frozen=True)
class Seen:
    """All that a selection was given."""

    calls: tuple[object, ...] = ()


class Recorder(Selection[Seen]):
    """Chooses the last clients of the roster it sees, and writes down what it was given."""

    State = Seen

    def init(self, roster: Roster) -> Seen:
        return Seen((roster,))

    def probe(self, state: Seen, roster: Roster, size: int, rng: np.random.Generator) -> Probe:
        return Probe(candidates=tuple(range(size)), kind="evaluate")

    def choose(
        self, state: Seen, roster: Roster, size: int, rng: np.random.Generator, reports: Sequence[ClientReport] = ()
    ) -> tuple[int, ...]:
        return tuple(report.client for report in reports) or tuple(range(roster.population))[-size:]

    def observe(self, state: Seen, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Seen:
        return replace(state, calls=(*state.calls, [r.client for r in reports], [r.client for r in probed]))

    def missed(self, state: Seen, clients: Sequence[int]) -> Seen:
        return replace(state, calls=(*state.calls, list(clients)))


class Everyone(Monitor):
    """Observes all clients."""

    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        return MonitorRequest(clients=tuple(range(population)))

    def read(self, reports: Sequence[ClientReport], earlier: Sequence[Info]) -> MonitorReading:
        return MonitorReading(metrics={}, info={})


def _report(client: int) -> ClientReport:
    return ClientReport(client=client, num_examples=1, seconds=0.0)


def test_a_selection_sees_the_remaining_clients_without_gaps() -> None:
    rng, selection = np.random.default_rng(0), without_clients(Recorder(), {0, 4})
    state = selection.init(ROSTER)
    [seen] = state.calls
    assert seen == Roster(4, sizes=[11, 12, 13, 15], label_counts=[[1], [2], [3], [5]], offline=frozenset({0}))
    probe = selection.probe(state, ROSTER, 6, rng)
    assert probe is not None and probe.candidates == (1, 2, 3, 5), "all that remain, though six were wanted"
    assert selection.choose(state, ROSTER, 2, rng) == (3, 5)
    assert selection.choose(state, ROSTER, 6, rng) == (1, 2, 3, 5)
    assert selection.choose(state, ROSTER, 2, rng, [_report(5), _report(4)]) == (5,), "reports of the excluded are none"
    after = selection.missed(selection.observe(state, [_report(5), _report(2)], [_report(1)]), [3, 4])
    assert after.calls[1:] == ([3, 1], [0], [2])


def test_a_number_beyond_the_remaining_is_no_client() -> None:
    class Wrong(Recorder):
        def choose(self, *_: object) -> tuple[int, ...]:
            return (3, 0)

    chosen = without_clients(Wrong(), {3}).choose(Seen(), Roster(4), 2, np.random.default_rng(0))
    assert chosen == (-1, 0), "3 is the excluded client's number, which must not be read as a choice of it"


def test_a_monitor_observes_the_remaining_clients() -> None:
    rng = np.random.default_rng(0)
    assert monitor_without_clients(Everyone(), {1, 5}).request(6, rng).clients == (0, 2, 3, 4)


def test_nothing_changes_where_nobody_is_excluded() -> None:
    selection, monitor = Uniform(), Everyone()
    assert without_clients(selection, ()) is selection and monitor_without_clients(monitor, ()) is monitor


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clients": 6, "excluded": [6]}, "excluded: expected numbers of clients from 0 to 5, got 6"),
        ({"clients": 6, "excluded": ["site-1"]}, "expected numbers of clients from 0 to 5, got 'site-1'"),
        ({"clients": 2, "excluded": [0, 1]}, "all 2 clients are excluded"),
        ({"clients": "nodes", "excluded": [1]}, r"got 1 with clients = \"nodes\""),
        ({"clients": ["a", "b"], "excluded": ["a"]}, "got 'a' with clients"),
    ],
)
def test_impossible_exclusions_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment.parse({"rounds": 1, "strategy": "fedavg", "workload": "fedloom.testing.linear", **settings})


@pytest.mark.parametrize("selection", ["uniform", "data_size", "oort", "local_loss", "power_of_choice"])
def test_a_run_samples_the_remaining_clients_alone(
    linear: Callable[..., Experiment], tmp_path: Path, selection: str
) -> None:
    api.run(linear(rounds=3, cohort=4, clients=6, excluded=(0, 5), selection=selection), out=tmp_path / "run")
    replayed = replay_run(tmp_path / "run")
    assert [sorted(each.choice.cohort) for each in replayed] == [[1, 2, 3, 4]] * 3
    assert all(each.agrees for each in replayed)

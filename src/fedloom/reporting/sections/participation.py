"""Client participation: the clients sampled in each round, and missing updates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedloom.reporting.axes import Range, bins
from fedloom.reporting.grids import grid_picture
from fedloom.reporting.markup import Markup, tag
from fedloom.reporting.page import section
from fedloom.reporting.quantities import plural
from fedloom.reporting.run_folder import RunFolder

_MOST_ROWS = 64
_MOST_COLUMNS = 180


@dataclass(frozen=True, slots=True)
class Participation:
    """Counts of samplings and of missing updates, clients binned into rows and rounds into columns."""

    sampled: npt.NDArray[np.float64]
    """Shape (rows, columns)."""
    lost: npt.NDArray[np.float64]
    """Shape (rows, columns)."""
    times: npt.NDArray[np.int64]
    """Number of rounds each client was sampled in, shape (clients,)."""


def participation(run: RunFolder) -> Markup:
    """Return the picture, and its numbers in words."""
    if not run.rounds:
        return section("Participation", tag("p", "No client was sampled yet.", class_="empty"))
    counted = count(run)
    spoken = _words(run, counted.times)
    first, last = run.rounds[0].round, run.rounds[-1].round
    clients, rows = run.population, counted.sampled.shape[0]
    picture = grid_picture(
        "Selected clients by round",
        counted.sampled / max(counted.sampled.max(), 1.0),
        spoken=f"Clients by rounds. {spoken}",
        x_label="round",
        x=Range(low=first - 0.5, high=last + 0.5),
        y=Range(low=clients - 0.5, high=-0.5),  # client 0 on top
        y_names=_client_ticks(clients),
        marked=counted.lost / np.maximum(counted.sampled, 1.0),
        legend=[("selected", 0), ("selected, update missing", 4)] if counted.lost.any() else (),
        note=_binning(clients, rows, last - first + 1, counted.sampled.shape[1]),
    )
    return section("Participation", tag("p", spoken), tag("div", picture, class_="charts"))


def count(run: RunFolder) -> Participation:
    """Count samplings and missing updates of all rounds, binned."""
    first, last = run.rounds[0].round, run.rounds[-1].round
    clients = max(run.population, 1 + max((client for r in run.rounds for client in r.cohort), default=0))
    row_of = _bin_of(clients, _MOST_ROWS)
    column_of = _bin_of(last - first + 1, _MOST_COLUMNS)
    sampled = np.zeros((row_of[-1] + 1, column_of[-1] + 1))
    lost = np.zeros_like(sampled)
    times = np.zeros(clients, np.int64)
    for record in run.rounds:
        column = column_of[record.round - first]
        cohort = np.asarray(record.cohort, np.int64)
        np.add.at(sampled[:, column], row_of[cohort], 1.0)
        np.add.at(times, cohort, 1)
        missing = np.asarray(sorted({failure.client for failure in record.failures} & set(record.cohort)), np.int64)
        np.add.at(lost[:, column], row_of[missing], 1.0)
    return Participation(sampled, lost, times)


def _bin_of(length: int, most: int) -> npt.NDArray[np.int64]:
    return np.concatenate([np.full(stop - start, index) for index, (start, stop) in enumerate(bins(length, most))])


def _words(run: RunFolder, times: npt.NDArray[np.int64]) -> str:
    never = int((times == 0).sum())
    never_text = "every client at least once" if not never else f"{plural(never, 'client')} never"
    return (
        f"{plural(len(times), 'client')}, {plural(len(run.rounds), 'round')}: each client was selected "
        f"{times.mean():.1f} times on average ({times.min()} to {times.max()}); {never_text}.{_candidates(run)}"
    )


def _candidates(run: RunFolder) -> str:
    """Return how many candidates worked before the selection, and were not selected; empty if there was no probe."""
    measured = sum(len(record.candidates) for record in run.rounds)
    others = sum(len(set(record.candidates) - set(record.cohort)) for record in run.rounds)
    if not measured:
        return ""
    return (
        f" Selected among {plural(measured, 'candidate')}, {measured / len(run.rounds):.1f} per round; {others:,} of "
        "them worked and were not selected. The picture shows the selected ones."
    )


def _client_ticks(clients: int) -> list[tuple[float, str]]:
    return [(float(at), f"client {at:,}") for at in sorted({0, (clients - 1) // 2, clients - 1})]


def _binning(clients: int, rows: int, rounds: int, columns: int) -> str | None:
    if rows == clients and columns == rounds:
        return None
    return (
        f"A cell stands for about {plural(-(-clients // rows), 'client')} and "
        f"{plural(-(-rounds // columns), 'round')}; darker means sampled more often."
    )

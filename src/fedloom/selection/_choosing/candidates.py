"""Candidates: how many are measured, and how they are drawn.

m is the cohort's size, d the number of candidates, N the number of clients, n_k the examples of client k.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from fedloom.core.config import PluginSettings
from fedloom.core.errors import ConfigError, UsageError
from fedloom.core.protocols import Roster
from fedloom.selection._choosing.sampling import weighted

_SHOWN = 8
"""Limit of sites that a message names."""


class CandidateSettings(PluginSettings):
    """Settings of selections that measure d candidates and choose m of them."""

    candidates: Annotated[int, Field(ge=1)] | None = None
    """Clients measured in each round, d: at least the cohort, at most all clients. None takes `oversampling`."""
    oversampling: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 4.0
    """Candidates for each place in the cohort, d / m, if `candidates` is not set; rounded up, at most all N."""


def check_population(settings: CandidateSettings, roster: Roster) -> None:
    """Refuse more candidates than clients before a round is run.

    Raises:
        ConfigError: `candidates` is larger than the federation.
    """
    if settings.candidates is not None and settings.candidates > roster.population:
        raise ConfigError(
            f"selection.candidates: {settings.candidates} candidates, but the federation has only "
            f"clients = {roster.population}. Set at most {roster.population}"
        )


def number_of_candidates(settings: CandidateSettings, roster: Roster, size: int) -> int:
    """Return the number of clients to measure for a cohort of `size`: m <= d <= N.

    Raises:
        ConfigError: `candidates` is smaller than the cohort, or larger than the federation.
    """
    if settings.candidates is None:
        return max(size, min(roster.population, math.ceil(settings.oversampling * size)))
    check_population(settings, roster)
    if settings.candidates < size:
        raise ConfigError(
            f"selection.candidates: {settings.candidates} candidates for a cohort of {size}. "
            f"Set at least {size}, or set cohort to at most {settings.candidates}"
        )
    return settings.candidates


def draw_uniformly(roster: Roster, count: int, rng: np.random.Generator) -> tuple[int, ...]:
    """`count` distinct clients, every set and order as likely as any other; O(count).

    Selections that begin a round with this draw see the same candidates for the same seed, and with m = d the cohort
    is uniform selection's, order included.
    """
    return tuple(int(client) for client in rng.choice(roster.population, count, replace=False))


def draw_by_examples(roster: Roster, count: int, rng: np.random.Generator, who: str) -> tuple[int, ...]:
    """Draw `count` distinct clients, one by one with probability proportional to n_k among the remaining; O(N).

    Raises:
        UsageError: fewer than `count` clients have examples.
    """
    sizes = known_sizes(roster, who)
    if (holders := int(np.count_nonzero(sizes))) < count:
        raise UsageError(
            f"selection {who!r} draws {count} clients by their number of examples, but only {holders} of "
            f"{roster.population} have any. Choose fewer, or use selection 'uniform'"
        )
    with np.errstate(divide="ignore"):
        return tuple(int(client) for client in weighted(np.log(sizes), count, rng))


def known_sizes(roster: Roster, who: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Examples n_k of every client, float64 [N].

    Raises:
        UsageError: the workload declares no sizes.
    """
    if len(roster.sizes) != roster.population:
        raise UsageError(
            f"selection {who!r} needs the number of examples of each client, but the workload declares "
            f"{len(roster.sizes)} sizes for {roster.population} clients (WorkloadInfo.client_sizes)"
            f"{_of_sites(roster)}"
        )
    return np.asarray(roster.sizes, np.float64)


def known_labels(roster: Roster, who: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Examples of every client and class, n_k q_kc, float64 [N, C].

    Raises:
        UsageError: the workload declares no label counts.
    """
    if len(roster.label_counts) != roster.population:
        raise UsageError(
            f"selection {who!r} needs the label counts of each client, but the workload declares them for "
            f"{len(roster.label_counts)} of {roster.population} clients (WorkloadInfo.label_counts). "
            f"Use a classification workload, or a selection that needs no labels{_of_sites(roster)}"
        )
    return np.asarray(roster.label_counts, np.float64).reshape(roster.population, -1)


def _of_sites(roster: Roster) -> str:
    """Return a hint for clients that are sites."""
    return f". A site of {', '.join(roster.names[:_SHOWN])} may withhold its own" if roster.names else ""

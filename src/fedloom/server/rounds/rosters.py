"""Reads recorded rosters of sites: which site is which client in a round, and which are connected."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fedloom.core.history import RosterLine, SiteLine
from fedloom.core.protocols import Roster


def sites_in(lines: Sequence[RosterLine], round: int) -> list[SiteLine]:
    """Return the sites that are clients in a round, by number."""
    return sorted((site for line in lines if line.round <= round for site in line.joined), key=lambda one: one.client)


def online_in(lines: Sequence[RosterLine], round: int) -> list[int]:
    """Return the clients that are connected in a round: by the last line of the last round up to it that has one."""
    known = [line for line in lines if line.round <= round]
    newest = max((line.round for line in known), default=0)
    return next((line.online for line in reversed(known) if line.round == newest), [])


def roster_of(sites: Sequence[SiteLine], online: Collection[int]) -> Roster:
    """Return the roster that a selection sees; sizes and label counts are empty if a site does not report its own."""
    sizes = [site.size for site in sites if site.size is not None]
    counts = [site.label_counts for site in sites if site.label_counts is not None]
    return Roster(
        population=len(sites),
        sizes=sizes if len(sizes) == len(sites) else (),
        label_counts=counts if len(counts) == len(sites) else (),
        names=tuple(site.name for site in sites),
        offline=frozenset(range(len(sites))) - frozenset(online),
    )

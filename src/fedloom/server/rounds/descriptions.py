"""Collects the sites' descriptions of their data in one exchange, and makes the run's description of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedloom.core import run_files
from fedloom.core.accumulators import UpdateList
from fedloom.core.data_schema import SUMS, UNSIZED
from fedloom.core.history import SiteLine
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import Exchange, Info, Job, JsonObject
from fedloom.server.rounds.closing import ClosingTerms
from fedloom.server.rounds.counts import Collected
from fedloom.server.rounds.request import ExchangeRequest, Phase
from fedloom.server.rounds.rosters import roster_of

DESCRIBE = "describe"
"""Kind of a job that describes a site's data."""
_SUMMED = ("num_train", "num_test")
"""Facts of sites that are added up for the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A member that may become a client."""

    name: str
    member: str
    session: str = ""
    """Of its connection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """A member that has described its data."""

    name: str
    member: str
    info: WorkloadInfo

    @property
    def size(self) -> int | None:
        """Return its number of training examples; None if it does not report it."""
        return self.info.client_sizes[0] if len(self.info.client_sizes) == 1 else None

    @property
    def withholds_size(self) -> bool:
        """Return whether its reports count one example, whatever it has."""
        return self.info.data.get(UNSIZED) is True

    def line(self, client: int) -> SiteLine:
        """Return it as the client of a number."""
        counts = self.info.label_counts
        return SiteLine(
            client=client,
            name=self.name,
            member=self.member,
            size=self.size,
            label_counts=list(counts[0]) if len(counts) == 1 else None,
            data=dict(self.info.data),
        )


def descriptions_request(
    round: int, candidates: Sequence[Candidate], deadline_s: float | None, attempt: int = 0
) -> ExchangeRequest:
    """Return the exchange in which candidates describe their data; it needs one answer.

    Args:
        round: the round they would join in; 0 before the first.
        candidates: whom to ask.
        deadline_s: seconds after which those who have not answered are left out; None waits for everybody.
        attempt: how often candidates were asked before in this session.
    """
    jobs = tuple(
        Job(round=round, client=place, kind=DESCRIBE, inputs=(), node=one.name, member=one.member, of_client=False)
        for place, one in enumerate(candidates)
    )
    return ExchangeRequest(
        round=round,
        index=int(Phase.DESCRIBE) + attempt,
        exchange=Exchange(jobs=jobs, accumulator="separate", reassign=False),
        terms=ClosingTerms(quota=len(jobs), quorum_fraction=1 / len(jobs), deadline_s=deadline_s),
        group_size=1,
        emit_progress=False,
    )


def described_sites(candidates: Sequence[Candidate], collected: Collected) -> tuple[list[Described], Mapping[str, str]]:
    """Return the candidates that have described their data, in order, and why the others have not, by name."""
    found: list[Described] = []
    trouble = {candidates[failure.client].name: failure.words for failure in collected.counts.failures}
    updates = collected.total.updates if isinstance(collected.total, UpdateList) else []
    for place, update in updates:
        one = candidates[place]
        try:
            found.append(
                Described(name=one.name, member=one.member, info=run_files.workload_of(update.info["workload"]))
            )
        except (KeyError, ValueError) as exc:
            trouble[one.name] = f"sent no valid description of its data: {exc}"
    return sorted(found, key=lambda one: one.name), trouble


def run_info(info: WorkloadInfo, sites: Sequence[SiteLine]) -> WorkloadInfo:
    """Return a run's description: what its sites have in common, and each one by its own.

    Args:
        info: the description by the site that has made the initial model.
        sites: all of them, by number.
    """
    shared = {key: value for key, value in info.data.items() if all(site.data.get(key) == value for site in sites)}
    summed = {key: total for key in _SUMMED if (total := _sum([site.data.get(key) for site in sites])) is not None}
    named = {} if "name" in shared else {"name": f"data of {len(sites)} sites"}
    roster = roster_of(sites, ())
    return replace(
        info,
        data={**named, **shared, **summed, "sites": [_own_facts(site, shared) for site in sites]},
        client_sizes=roster.sizes,
        label_counts=roster.label_counts,
    )


def _own_facts(site: SiteLine, shared: Info) -> JsonObject:
    """Return what is a site's own."""
    own = {key: value for key, value in site.data.items() if key not in shared and key != SUMS}
    return {"client": site.client, "site": site.name, **own}


def _sum(values: Sequence[object]) -> int | None:
    """Return the sum of counts; None if one is missing."""
    counts = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    return sum(counts) if counts and len(counts) == len(values) else None

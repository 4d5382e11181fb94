"""Clients that are sites: enrolled nodes with data of their own, numbered for good."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedloom.core.config import Experiment
from fedloom.core.data_schema import SHARES, UNSIZED
from fedloom.core.errors import ClientFailed, QuorumNotReached, RunFailed, UsageError
from fedloom.core.events import Event, Notice
from fedloom.core.history import RosterLine, SiteLine
from fedloom.core.protocols import Roster, WorkloadInfo
from fedloom.core.records import Exchange, Job
from fedloom.core.text import clean
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.node_table import Presence
from fedloom.server.rounds.agreement import (
    CLASSES,
    agreed_settings,
    difference,
    reasons_of,
    uniform_weights,
    warnings_of,
)
from fedloom.server.rounds.clients import Clients
from fedloom.server.rounds.counts import Collected
from fedloom.server.rounds.descriptions import Candidate, Described, described_sites, descriptions_request, run_info
from fedloom.server.rounds.request import ExchangeRequest
from fedloom.server.rounds.rosters import online_in, roster_of, sites_in
from fedloom.server.store.run_store import RunStore

REJOIN_S = 30.0
"""Seconds a resumed run waits for the sites that were connected when it ended."""
ASK_AGAIN_S = 900.0
"""Seconds after which a site that could not be a client is tried again; one that reconnects is tried at once."""
_SHOWN = 5
_MAX_REASON = 2000
"""Characters of a site's reason."""
"""Names that a message lists at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteServices:
    """What the roster of sites needs of its run."""

    experiment: Experiment
    coordinator: Coordinator
    store: RunStore
    collect: Callable[[ExchangeRequest], Collected]
    """Runs an exchange."""
    wait: Callable[[Callable[[], str], float | None], None]
    """Waits until nothing is lacking, according to a function, or for a number of seconds."""
    agree: Callable[[Experiment], None]
    """Has nodes work with the settings the sites have agreed on."""
    emit: Callable[[Event], None]
    now: Callable[[], float]
    """Monotonic seconds."""


@dataclass(frozen=True, slots=True)
class _Refused:
    """Why a member cannot be a client."""

    reason: str
    session: str
    at_s: float


class Sites(Clients):
    """The roster of sites: who they are, by number, and which of them are connected.

    Every change is a line of `rosters.jsonl`, written before its round's groups are assigned; a resumed run reads its
    rosters there, up to the round that its last session was in.

    Args:
        services: the run's.
    """

    def __init__(self, services: SiteServices) -> None:
        self._services, self._experiment = services, services.experiment
        self._lines: list[RosterLine] = []
        self._sites: list[SiteLine] = []
        """By number; those of later rounds, which a resumed run knows, are not among them yet."""
        self._online: list[int] = []
        self._agreed: list[str] = []
        """Settings that hold for all, fixed when they were needed first."""
        self._refused: dict[str, _Refused] = {}
        """Why members cannot be clients of this run, by their ids."""
        self._asked = 0
        """How often members were asked for descriptions."""
        self._planned_to = 0
        """The last round whose roster an earlier session has written."""

    # Who they are

    def begin(self, first: int) -> None:
        self._lines = list(self._services.store.rosters())
        if self._lines:
            self._planned_to = max(first, *(line.round for line in self._lines))
            self._take(first - 1)
            return
        described: list[Described] = []
        while len(described) < max(self._experiment.min_sites, len(self._experiment.site_names)):
            self._services.wait(self._lacking_to_begin, None)
            described = self._described(0, self._candidates())
        for message in warnings_of(described):
            self._notice(message)
        settings = agreed_settings(self._experiment, described, self._services.store.run_id)
        self._agree(settings, described)
        if any(setting.startswith(f"{CLASSES}=") for setting in settings):  # their numbers of classes are others now
            members = {one.name for one in described}
            described = self._described(0, [one for one in self._candidates() if one.name in members])
        self._join(0, described, settings)

    def open(self, round: int) -> Roster:
        self._take(round)
        if round <= self._planned_to:
            self._await_return(round)
        while round > self._planned_to:
            self._services.wait(self._lacking, None)
            if candidates := self._candidates():
                self._admit(round, candidates)
            if len(self._connected()) >= self._experiment.min_sites:
                break
        connected = self._connected()
        if connected != self._online:
            self._write(RosterLine(round=round, online=connected))
        return self.roster()

    def _await_return(self, round: int) -> None:
        """Wait for the sites that an earlier session had in this round; if too few return, others may join."""
        planned = online_in(self._lines, round)
        self._services.wait(lambda: self._away(planned), REJOIN_S)
        if len(self._connected()) < self._experiment.min_sites:
            self._planned_to = 0

    def roster(self) -> Roster:
        return roster_of(self._sites, self._online)

    def counts_alike(self) -> bool:
        return any(site.data.get(UNSIZED) is True for site in self._sites)

    def sharing(self) -> frozenset[int]:
        return frozenset(site.client for site in self._sites if site.data.get(SHARES) is True)

    def describe(self, info: WorkloadInfo) -> WorkloadInfo:
        return run_info(info, self._sites)

    # Which node does whose work

    def pin(self, exchange: Exchange) -> Exchange:
        if not any(job.of_client or _is_part(job) for job in exchange.jobs):
            return exchange
        jobs = [self._bound(job) if job.of_client else job for job in exchange.jobs if not _is_part(job)]
        parts = [job for job in exchange.jobs if _is_part(job)]
        return replace(exchange, jobs=(*jobs, *self._whole(parts)), reassign=False)

    def evaluation(self, round: int, inputs: tuple[str, ...]) -> Exchange:
        knobs = {"part": 0, "parts": 1}
        jobs = (
            Job(round=round, client=site.client, kind="held_out", inputs=inputs, knobs=knobs, of_client=False,
                node=site.name, member=site.member)
            for site in map(self._sites.__getitem__, self._online)
        )  # fmt: skip
        return Exchange(jobs=tuple(jobs), accumulator="metrics", reassign=False)

    def initial(self, exchange: Exchange) -> Iterator[Exchange]:
        for client in self._online:
            site = self._sites[client]
            jobs = tuple(replace(job, node=site.name, member=site.member) for job in exchange.jobs)
            yield replace(exchange, jobs=jobs, reassign=False)

    def _bound(self, job: Job) -> Job:
        if not 0 <= job.client < len(self._sites):
            raise RunFailed(
                f"round {job.round}: found a job {job.kind!r} of client {job.client}, expected one of the "
                f"{len(self._sites)} sites of this run, numbered from 0. A plug-in whose jobs are parts of other work "
                "has to plan them with of_client=False and the knobs `part` and `parts`"
            )
        site = self._sites[job.client]
        return replace(job, node=site.name, member=site.member)

    def _whole(self, parts: Sequence[Job]) -> Iterator[Job]:
        """Yield, for work that is split into parts, one job for each connected site: the whole of its own data."""
        works = [job for job in parts if _part(job) == 0]
        for number, job in enumerate(works):
            for client in self._online:
                site = self._sites[client]
                yield replace(job, client=number * len(self._sites) + client, node=site.name, member=site.member,
                              knobs={**job.knobs, "part": 0, "parts": 1})  # fmt: skip

    # Joining

    def _admit(self, round: int, candidates: Sequence[Candidate]) -> None:
        """Make those members clients that can be; the others are left out of the run, with the reason in a notice."""
        try:
            described = self._described(round, candidates)
        except (ClientFailed, QuorumNotReached, UsageError) as exc:
            self._refuse({one.name: str(exc) for one in candidates}, candidates)
            return
        first = self._sites[0]
        found = {one.name: how for one in described if (how := difference(one.info.data, first.data))}
        self._refuse({name: f"it does not fit site {first.name!r}: {how}" for name, how in found.items()}, candidates)
        described = [one for one in described if one.name not in found]
        if not described:
            return
        settings = [each for each in uniform_weights(self._experiment, described) if each not in self._agreed]
        self._agree([*self._agreed, *settings], described)
        number = len(self._sites)
        self._join(round, described, settings)
        for site in self._sites[number:]:
            self._notice(f"round {round}: site {site.name!r} has joined the run as client {site.client}")

    def _described(self, round: int, candidates: Sequence[Candidate]) -> list[Described]:
        """Collect members' descriptions of their data; those that cannot describe it are left out."""
        request = descriptions_request(round, candidates, self._experiment.round.deadline_s, self._asked)
        self._asked += 1
        described, trouble = described_sites(candidates, self._services.collect(request))
        self._refuse(trouble, candidates)
        return described

    def _join(self, round: int, described: Iterable[Described], settings: Sequence[str] = ()) -> None:
        """Number members, and record them as clients from a round on."""
        joined = [one.line(number) for number, one in enumerate(described, len(self._sites))]
        online = [*self._online, *(site.client for site in joined)]
        self._write(RosterLine(round=round, joined=joined, online=online, settings=list(settings)))
        self._take(round)

    def _refuse(self, reasons: Mapping[str, str], candidates: Sequence[Candidate]) -> None:
        for one in candidates:
            if one.name in reasons:
                why = clean(reasons[one.name], _MAX_REASON)
                self._refused[one.member] = _Refused(f"{one.name}: {why}", one.session, self._services.now())
                self._notice(f"site {one.name!r} is no client of this run: {why}")

    def _agree(self, settings: Sequence[str], described: Sequence[Described] = ()) -> None:
        """Apply settings at nodes that lack them; new ones are announced if sites have just been described."""
        new = [setting for setting in settings if setting not in self._agreed]
        if not new:
            return
        self._agreed = list(settings)
        self._services.agree(self._experiment.override(settings))
        if described:
            self._notice(f"the sites have agreed on {', '.join(new)}{reasons_of(new, described)}")

    # Bookkeeping

    def _take(self, round: int) -> None:
        """Restore the sites that have become clients up to a round."""
        self._sites, self._online = sites_in(self._lines, round), online_in(self._lines, round)
        self._agree([setting for line in self._lines if line.round <= round for setting in line.settings])

    def _write(self, line: RosterLine) -> None:
        self._services.store.append_roster(line)
        self._lines.append(line)
        self._online = line.online

    def _present(self) -> dict[str, Presence]:
        """Return the connected nodes that could be clients, by name, sorted."""
        named, excluded = self._experiment.site_names, self._experiment.excluded
        found = self._services.coordinator.present(self._experiment.fleet.labels)
        return {name: found[name] for name in sorted(found) if (not named or name in named) and name not in excluded}

    def _candidates(self) -> list[Candidate]:
        """Return the connected members that are no clients yet, by name."""
        known = {site.member for line in self._lines for site in line.joined}
        return [
            Candidate(name=name, member=one.member, session=one.session)
            for name, one in self._present().items()
            if one.member not in known and not self._is_refused(one)
        ]

    def _is_refused(self, one: Presence) -> bool:
        """Return whether a member cannot be a client: as long as it has not connected anew, and for a while."""
        refused = self._refused.get(one.member)
        return (
            refused is not None and refused.session == one.session and self._services.now() - refused.at_s < ASK_AGAIN_S
        )

    def _connected(self) -> list[int]:
        present = self._present()
        here = {(name, one.member) for name, one in present.items()}
        return [site.client for site in self._sites if (site.name, site.member) in here]

    def _away(self, online: Iterable[int]) -> str:
        """Return which sites that were connected are not, in words."""
        away = sorted({self._sites[client].name for client in online} - {*map(self._name, self._connected())})
        return f"not all sites of the run have reconnected (missing: {_some(away)})" if away else ""

    def _name(self, client: int) -> str:
        return self._sites[client].name

    def _lacking_to_begin(self) -> str:
        """Return which sites a run lacks to begin, in words; empty for none."""
        missing = sorted(set(self._experiment.site_names) - set(self._usable()))
        if missing:
            return f"not all sites of `clients` are connected (missing: {_some(missing)}{self._of_refused()})"
        return self._lacking()

    def _lacking(self) -> str:
        """Return which sites a run lacks for its next round, in words; empty for none."""
        usable, least = self._usable(), self._experiment.min_sites
        if len(usable) >= least:
            return ""
        labels = "".join(f" with {key}={value}" for key, value in sorted(self._experiment.fleet.labels.items()))
        connected = _some(usable) or "none"
        return f"{least} sites{labels} are needed (round.min_sites) (connected: {connected}{self._of_refused()})"

    def _usable(self) -> list[str]:
        return [*map(self._name, self._connected()), *(one.name for one in self._candidates())]

    def _of_refused(self) -> str:
        reasons = [refused.reason for refused in self._refused.values()]
        return f"; no clients of it: {_some(reasons)}" if reasons else ""

    def _notice(self, message: str) -> None:
        self._services.emit(Notice(run_id=self._services.store.run_id, message=message))


def _is_part(job: Job) -> bool:
    """Return whether a job is a part of work on data, which any node could do if all had the same data."""
    return not job.of_client and not job.node and "parts" in job.knobs


def _part(job: Job) -> int:
    return int(job.knobs.get("part", job.client))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

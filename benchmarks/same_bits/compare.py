"""Makes the runs that are missing, two at a time, and judges each preset by them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Protocol

from benchmarks.same_bits.intended import Entry, Kind, Verdict, judge
from benchmarks.same_bits.outcome import Done, Failed, NoData, Outcome, differences
from benchmarks.same_bits.plan import RUNTIMES, Job, Lengths, in_order, job

AT_ONCE = 2
"""Runs at the same time."""
Outcomes = Mapping[str, Outcome]
"""Runtime -> outcome of one preset."""
Progress = Callable[[int, int, Job, Outcome], None]
"""Called from one thread as each run ends: how many have ended, of how many, which one, and how."""


class Runner(Protocol):
    """Makes runs with the files of one tree."""

    def run(self, job: Job) -> Outcome:
        """Make a run; called from several threads."""

    def stop(self) -> None:
        """End the runs that are being made; the comparison was interrupted."""


class Results(Protocol):
    """Results that are kept from an earlier comparison."""

    def get(self, job: Job) -> Done | None:
        """Return the result of a run, or None."""

    def put(self, job: Job, outcome: Done) -> None:
        """Keep the result of a run."""


def run_presets(runner: Runner, presets: Iterable[str], lengths: Lengths, progress: Progress) -> dict[str, Outcomes]:
    """Run presets under each runtime."""
    wanted = [job(preset, runtime, lengths) for preset in presets for runtime in RUNTIMES]
    return _by_preset(_run_jobs(runner, in_order(wanted, lengths), progress), wanted)


def run_base(
    runner: Runner, presets: Iterable[str], lengths: Lengths, kept: Results, progress: Progress
) -> dict[str, Outcomes]:
    """Run presets under each runtime, unless a result is kept; results are kept as they come."""

    def keep(done: int, total: int, each: Job, outcome: Outcome) -> None:
        if isinstance(outcome, Done):
            kept.put(each, outcome)
        progress(done, total, each, outcome)

    wanted = [job(preset, runtime, lengths) for preset in presets for runtime in RUNTIMES]
    known = {each: found for each in wanted if (found := kept.get(each)) is not None}
    missing = in_order([each for each in wanted if each not in known], lengths)
    return _by_preset({**known, **_run_jobs(runner, missing, keep)}, wanted)


def verdict(
    preset: str, base: Outcomes | None, here: Outcomes | None, entries: Sequence[Entry], short: bool
) -> Verdict:
    """Judge one preset.

    Args:
        preset: its name.
        base: what it gave in BASE; None where BASE lacks it.
        here: what it gives here; None where it is not here, or was not run since BASE found no data.
        entries: the intended differences that count.
        short: whether the preset was shortened.
    """
    if base is None:
        return Verdict(Kind.SKIPPED, ["BASE lacks it"])
    for outcome in base.values():
        if isinstance(outcome, NoData):
            return Verdict(Kind.SKIPPED, [f"no data: {outcome.message}"])
    own = [each for each in entries if each.preset == preset]
    if here is None:
        return judge(["the preset is gone"], own, shortened=False)
    broken = broken_lines(here)
    if broken:
        return Verdict(Kind.DIFFERS, broken)
    lines = [f"{runtime}: {line}" for runtime in RUNTIMES for line in differences(base[runtime], here[runtime])]
    return judge(lines, own, shortened=short)


def broken_lines(here: Outcomes) -> list[str]:
    """Tell what no entry excuses: a run that does not finish here, or runtimes that disagree."""
    lines = [
        f"{runtime}: {'no data here, but in BASE' if isinstance(outcome, NoData) else 'failed'}: {outcome.message}"
        for runtime, outcome in here.items()
        if isinstance(outcome, NoData | Failed)
    ]
    if lines:
        return lines
    first, *others = here
    return [f"{first} and {other} here: {line}" for other in others for line in differences(here[first], here[other])]


def _run_jobs(runner: Runner, jobs: Sequence[Job], progress: Progress) -> dict[Job, Outcome]:
    """Run jobs in order, `AT_ONCE` at a time; what a job needs comes before it in `jobs`."""
    futures: dict[Job, Future[Outcome]] = {}
    found: dict[Job, Outcome] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for each in jobs:
                needed = next((future for other, future in futures.items() if _is_needed(other, each)), None)
                futures[each] = pool.submit(_run_after, runner, each, needed)
            names = {future: each for each, future in futures.items()}
            for future in as_completed(names):
                found[names[future]] = future.result()
                progress(len(found), len(jobs), names[future], found[names[future]])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
            raise
    return found


def _is_needed(other: Job, job: Job) -> bool:
    return other.preset == job.length.needs and other.runtime == "inline"


def _run_after(runner: Runner, job: Job, needed: Future[Outcome] | None) -> Outcome:
    outcome = None if needed is None else needed.result()
    if isinstance(outcome, NoData | Failed):
        return type(outcome)(f"needs {job.length.needs}: {outcome.message}")
    return runner.run(job)


def _by_preset(outcomes: Mapping[Job, Outcome], wanted: Sequence[Job]) -> dict[str, Outcomes]:
    presets = dict.fromkeys(each.preset for each in wanted)
    return {name: {each.runtime: outcomes[each] for each in wanted if each.preset == name} for name in presets}

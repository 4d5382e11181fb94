"""What a comparison prints."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from benchmarks.same_bits.compare import Outcomes
from benchmarks.same_bits.intended import Entry, Kind, Verdict
from benchmarks.same_bits.outcome import Done, NoData, Outcome
from benchmarks.same_bits.plan import RUNTIMES, Job, Length, Lengths

MOST_LINES = 6
"""Lines printed for one preset."""


class Progress:
    """Prints a line for each run that ends, with the time since the comparison began."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line to stderr."""
        print(f"[{self.seconds():6.0f} s] {text}", file=sys.stderr, flush=True)

    def seconds(self) -> float:
        """Return the seconds since the comparison began."""
        return time.monotonic() - self._begin

    def of(self, tree: str) -> Callable[[int, int, Job, Outcome], None]:
        """Return what is called as each run of a tree ends."""

        def ended(done: int, total: int, job: Job, outcome: Outcome) -> None:
            self.say(f"{tree} {done}/{total}  {job.preset} {job.runtime} {job.length.describe()}  {_ending(outcome)}")

        return ended


def table(
    verdicts: Mapping[str, Verdict],
    base: Mapping[str, Outcomes],
    here: Mapping[str, Outcomes],
    lengths: Lengths,
) -> str:
    """Lay out a row for each preset: seconds of its runs in BASE and here, its verdict, and why."""
    width = max(map(len, verdicts), default=6)
    heads = [f"{runtime}:{tree}" for runtime in RUNTIMES for tree in ("base", "here")]
    rows = [f"{'preset':{width}}" + "".join(f"{head:>14}" for head in heads) + f"  {'result':14}  run as"]
    for preset, verdict in sorted(verdicts.items()):
        cells = [_seconds(tree.get(preset, {}).get(runtime)) for runtime in RUNTIMES for tree in (base, here)]
        length = lengths.get(preset, Length()).describe()
        rows.append(f"{preset:{width}}" + "".join(f"{cell:>14}" for cell in cells) + f"  {verdict.kind:14}  {length}")
        rows += [f"{'':{width}}  {line}" for line in verdict.lines[:MOST_LINES]]
        if len(verdict.lines) > MOST_LINES:
            rows.append(f"{'':{width}}  and {len(verdict.lines) - MOST_LINES} more")
    return "\n".join(rows)


def entries_text(entries: Sequence[Entry], commits: Collection[str], verdicts: Mapping[str, Verdict]) -> str:
    """List the intended differences: those that count, and how many others there are."""
    counting = [each for each in entries if each.commit in commits]
    lines = [f"intended differences in BASE..HEAD: {len(counting) or 'none'}"]
    for each in counting:
        mark = " (visible in full length only)" if each.full_length_only else ""
        unchecked = each.preset not in verdicts or verdicts[each.preset].kind is Kind.SKIPPED
        lines.append(f"  {each.preset}  {each.commit[:12]}{mark}: {each.reason}{'; not checked' if unchecked else ''}")
    if others := len(entries) - len(counting):
        lines.append(f"  {others} more, whose commits lie elsewhere, do not count")
    return "\n".join(lines)


def conclusion(verdicts: Mapping[str, Verdict], seconds: float) -> str:
    """Sum up: how many presets ended how, and the time it took."""
    counts = Counter(each.kind for each in verdicts.values())
    reported = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return f"{reported or 'nothing compared'}; {seconds:.0f} s"


def _seconds(outcome: Outcome | None) -> str:
    return f"{outcome.seconds:.1f} s" if isinstance(outcome, Done) else "-"


def _ending(outcome: Outcome) -> str:
    if isinstance(outcome, Done):
        return f"{outcome.seconds:.1f} s  {outcome.model_sha256[:12]}"
    return "no data" if isinstance(outcome, NoData) else f"failed: {outcome.message}"

"""`python -m benchmarks.same_bits --base COMMIT`: does every preset still give the bits it gave in an earlier commit?

The base is checked out into a git worktree. Every preset (shortened as `shortened.toml` says) is run there and here,
inline and with two processes; the digest of the final arrays, the final metrics and each round's numbers must be equal.
Intended differences are entries of `intended.toml`. Exit code: 0 all equal or intended, 1 not, 2 wrong input.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.same_bits.compare import Outcomes, run_base, run_presets, verdict
from benchmarks.same_bits.errors import WrongInput
from benchmarks.same_bits.intended import counting, read_entries
from benchmarks.same_bits.machine import fingerprint
from benchmarks.same_bits.outcome import NoData
from benchmarks.same_bits.plan import Length, Lengths, full, read_lengths
from benchmarks.same_bits.report import Progress, conclusion, entries_text, table
from benchmarks.same_bits.repository import Repository
from benchmarks.same_bits.store import open_store
from benchmarks.same_bits.tree import Tree, environment

ROOT = Path(__file__).parents[2]
DEFAULT_BASE = "9b91d72"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.same_bits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default=DEFAULT_BASE, help="commit to compare with (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="PRESET", help="these presets alone")
    parser.add_argument("--full", action="store_true", help="full length: hours for all presets, so best with --only")
    return parser.parse_args(arguments)


def compare(repository: Repository, base: str, only: Collection[str] | None, lengths: Lengths) -> int:
    """Compare the files here with a commit; returns the exit code."""
    commit, progress = repository.resolve(base), Progress()
    commits, entries = repository.commits_since(commit), read_entries(repository.resolve)
    state = repository.state()
    dirty = ", with uncommitted changes" if repository.is_dirty() else ""
    progress.say(f"base {commit[:12]}, here {repository.resolve('HEAD')[:12]}{dirty}")
    cache = repository.cache_folder()
    with tempfile.TemporaryDirectory(prefix="fedloom-same-bits-") as scratch:
        kept = frozenset(each.needs for each in lengths.values() if each.needs is not None)
        there = Tree("base", repository.checkout(commit, cache), Path(scratch) / "base", kept)
        here = Tree("here", repository.root, Path(scratch) / "here", kept)
        before, after = _presets(there, only), _presets(here, only)
        if only is not None and (unknown := set(only) - before - after):
            raise WrongInput(f"--only: no preset {', '.join(sorted(unknown))} in BASE or here")
        store = open_store(cache, commit, fingerprint(environment(here.root, here.scratch)))
        progress.say(f"results of the base are kept in {store.folder}")
        old = run_base(there, before, lengths, store, progress.of("base"))
        new = run_presets(here, (each for each in before & after if _has_data(old[each])), lengths, progress.of("here"))
    verdicts = {
        preset: verdict(preset, old.get(preset), new.get(preset), counting(entries, commits), _short(lengths, preset))
        for preset in before | after
    }
    print(table(verdicts, old, new, lengths))
    print(entries_text(entries, commits, verdicts))
    print(conclusion(verdicts, progress.seconds()))
    if repository.state() != state:
        print("files changed during the comparison, so it says nothing: repeat it")
        return 1
    return 0 if all(each.kind.passes for each in verdicts.values()) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        lengths = read_lengths()
        return compare(Repository(ROOT), options.base, options.only, full(lengths) if options.full else lengths)
    except WrongInput as exc:
        print(f"same-bits: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("same-bits: interrupted; the base's finished runs are kept", file=sys.stderr)
        return 130


def _presets(tree: Tree, only: Collection[str] | None) -> frozenset[str]:
    tree.check()
    return frozenset(each for each in tree.presets() if only is None or each in only)


def _has_data(outcomes: Outcomes) -> bool:
    return not any(isinstance(each, NoData) for each in outcomes.values())


def _short(lengths: Lengths, preset: str) -> bool:
    return bool(lengths.get(preset, Length()).settings)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the runs that are being made, too
    sys.exit(main())

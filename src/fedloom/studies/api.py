"""Run a study from Python: expand, run the rest, analyse, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedloom.core.errors import RunFailed
from fedloom.studies.definition_files import load, names
from fedloom.studies.grid import expand
from fedloom.studies.results import StudyResult, analyse, write_results
from fedloom.studies.runner import Watcher, run_all

STUDIES = Path("studies")
"""Default folder of studies."""
REPORT = "study.html"
_MOST_FAILURES = 5


class Silent:
    """Ignores all notifications."""

    def begin(self, total: int, done: int, jobs: int) -> None:
        """Do nothing."""

    def round(self, run: object, number: int, rounds: int) -> None:
        """Do nothing."""

    def end(self, run: object, ended: str, error: str, seconds: float) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def run(
    target: str | Path,
    *,
    out: Path | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> tuple[StudyResult, Path]:
    """Run the rest of a study and write its report.

    Args:
        target: a study's name or a TOML file.
        out: the study's folder, `studies/<name>` by default; its finished runs are reused.
        seeds: seeds per scenario instead of the definition's.
        jobs: runs at a time; None takes one for each core.
        only: patterns of `scenario/arm`; the report still covers the whole study.
        overrides: `KEY=VALUE` settings of every experiment; `study.KEY` ones of the definition.
        watcher: is notified of the progress.

    Returns:
        The results, and the report's path. Failed runs are in `results.failures`; they do not raise.

    Raises:
        UsageError: the definition is wrong, or `out` contains runs with other settings; nothing was started.
        Interrupted: Ctrl-C; the same call continues.
    """
    from fedloom.studies.report.page import write_study

    definition, settings = load(target, overrides)
    definition = definition if seeds is None else definition.with_seeds(seeds)
    whole = expand(definition, settings)
    out = out or STUDIES / definition.name
    ran = run_all(expand(definition, settings, only) if only else whole, out, jobs=jobs, watcher=watcher or Silent())
    result = analyse(definition, whole, out, failures=ran.failures, overrides=settings)
    write_results(result, out)
    return result, write_study(result, out / REPORT)


def require_all(result: StudyResult) -> None:
    """Raise if runs failed.

    Raises:
        RunFailed: names some of them and why.
    """
    if not result.failures:
        return
    shown = [f"  {key}: {error}" for key, error in list(result.failures.items())[:_MOST_FAILURES]]
    left_out = len(result.failures) - len(shown)
    raise RunFailed(
        f"{len(result.failures)} of {result.planned} runs failed; the report covers the others, and the same "
        "command retries these:\n" + "\n".join(shown) + (f"\n  … and {left_out} more" if left_out else "")
    )


__all__ = ["STUDIES", "Silent", "names", "require_all", "run"]

"""The table of models on the three tests, and its numbers. Imported when a report is made, never by a run."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedloom.core.records import Info
from fedloom.reporting.markup import table, tag
from fedloom.reporting.page import section
from fedloom.reporting.plugins import Contribution, PlainTable
from fedloom.reporting.quantities import NOTHING
from fedloom.reporting.run_folder import RunFolder
from fedloom.workloads.mri_unlearning.procedures import PROCEDURES, TRAINING

_TITLES: Mapping[str, str] = {
    "zero_filled": "zero-filled",
    **{name: each.title for name, each in (*TRAINING.items(), *PROCEDURES.items())},
}
_TESTS = ("bta", "kta", "ua")
_COLUMNS = (("invented", 3), ("membership", 2), ("distance", 3), ("ks", 2))
_HEAD = ("model", "BTA dB", "SSIM", "KTA dB", "SSIM", "UA dB", "SSIM", *(name for name, _ in _COLUMNS))
_GAP = 1.0
"""Knowledge gap, dB, below which unlearning cannot be judged."""


def build_report(run: RunFolder) -> Contribution:
    """Return the table of the last evaluation, and the numbers that a study compares."""
    evaluated = [record.evaluation for record in run.rounds if record.evaluation]
    names = [name for name in _TITLES if evaluated and f"bta_db_{name}" in evaluated[-1]]
    if not names:
        return Contribution()
    last: Info = evaluated[-1]
    rows = tuple(_cells(name, last) for name in names)
    return Contribution(
        sections=(section("Unlearning", tag("p", _words(last)), table(_HEAD, rows, caption="After the last round")),),
        numbers={**{key: float(value) for key, value in last.items()}, **derived(last)},
        headlines={_TITLES[name]: f"BTA {last[f'bta_db_{name}']:.2f} dB, KTA {_text(last, f'kta_db_{name}', 2)} dB"
                   for name in names},
        tables=(PlainTable(head=_HEAD, rows=rows),),
    )  # fmt: skip


def _cells(name: str, last: Info) -> tuple[str, ...]:
    quality = [
        _text(last, f"{test}_{kind}_{name}", digits) for test in _TESTS for kind, digits in (("db", 2), ("ssim", 3))
    ]
    return (_TITLES[name], *quality, *(_text(last, f"{key}_{name}", digits) for key, digits in _COLUMNS))


def derived(last: Info) -> dict[str, float]:
    """Return what is claimed of a run's last procedure, from the metrics of its last evaluation; NaN if unknown.

    `gap_db`: KTA of the original above the oracle's. `gap_left`: of it, the share by which the procedure's KTA differs
    from the oracle's, on either side. `kta_lost_db`, `bta_lost_db`: below the original. `oracle_gain_db`,
    `oracle_gain_ssim`: the oracle's BTA above zero-filled. `invented_more`: H above the original's, as a share of it.
    `ks_nearer`, `membership_nearer`, `distance_nearer`: how much nearer to the oracle's than the original's.
    """

    def value(key: str, model: str = "") -> float:
        return float(last.get(f"{key}_{model}" if model else key, math.nan))

    gap, signal = _gap(last), value("membership", "oracle")
    before = value("invented", "original")
    return {
        "gap_db": gap,
        "gap_left": abs(value("kta_db") - value("kta_db", "oracle")) / gap if gap > 0 else math.nan,
        "kta_lost_db": value("kta_db", "original") - value("kta_db"),
        "bta_lost_db": value("bta_db", "original") - value("bta_db"),
        "oracle_gain_db": value("bta_db", "oracle") - value("bta_db", "zero_filled"),
        "oracle_gain_ssim": value("bta_ssim", "oracle") - value("bta_ssim", "zero_filled"),
        "invented_more": value("invented") / before - 1.0 if before > 0 else math.nan,
        "ks_nearer": value("ks", "original") - value("ks"),
        "membership_nearer": abs(value("membership", "original") - signal) - abs(value("membership") - signal),
        "distance_nearer": value("distance", "original") - value("distance"),
    }


def _gap(last: Info) -> float:
    """Return KTA of the original above the oracle's, dB; NaN without either."""
    return float(last.get("kta_db_original", math.nan)) - float(last.get("kta_db_oracle", math.nan))


def _words(last: Info) -> str:
    gap = _gap(last)
    words = (
        "BTA: held-out slices to retain; KTA: held-out slices to forget; UA: slices to forget that were trained on. "
        "Ideal is to equal the oracle in all of them. Invented: error in what the scanner never measured. Membership: "
        "0.5 is no signal. Distance and ks: to the oracle, on the slices to forget."
    )
    if math.isfinite(gap) and gap < _GAP:
        words += (
            f" The original is {gap:.2f} dB above the oracle on slices to forget, less than {_GAP:g} dB: it knows too "
            "little more for unlearning to be judged. Train longer, or on more slices to forget."
        )
    return words


def _text(values: Info, key: str, digits: int) -> str:
    value = float(values.get(key, math.nan))
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING

"""Totals of clients' measurements of the compared models: rates from sums of parts, and the table of attacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedloom.core.records import Info

Rates = dict[str, dict[str, float]]
"""By model: `clean` and `robust` on test images, `validation` (robust, on images held back from training)."""


def rates(reported: Iterable[Info]) -> Rates:
    """Return each model's rates: the counts of its parts, summed and divided."""
    sums: dict[str, dict[str, dict[str, int]]] = {}
    for part in reported:
        model = sums.setdefault(part["model"], {})
        for name in ("test", "validation"):
            counts = model.setdefault(name, {"examples": 0, "clean": 0, "robust": 0})
            for key in counts:
                counts[key] += part[name][key]
    return {
        name: {
            "clean": _share(model["test"], "clean"),
            "robust": _share(model["test"], "robust"),
            "validation": _share(model["validation"], "robust"),
        }
        for name, model in sums.items()
    }


def table(reported: Iterable[Info]) -> Info:
    """Return each model's verdicts by attack, the parts' one after the other, and the seconds each attack took."""
    verdicts: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = {}
    for part in reported:
        model = verdicts.setdefault(part["model"], {})
        for attack, text in part["verdicts"].items():
            model[attack] = model.get(attack, "") + text
        for attack, took in part["seconds"].items():
            seconds[attack] = seconds.get(attack, 0.0) + took
    return {"verdicts": verdicts, "seconds": seconds}


def _share(counts: Mapping[str, int], key: str) -> float:
    """Return a fraction; 0 if nothing was measured, because a record's JSON has no NaN."""
    return counts[key] / counts["examples"] if counts["examples"] else 0.0

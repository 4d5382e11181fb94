"""Sums of clients' reports, and what follows from them: medians, gaps between versions, relative mass accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.records import Array, Info, JsonObject
from fedloom.workloads.geco.measures import median_of, relative
from fedloom.workloads.geco.monitor.config import MODEL_FREE

Counts = Array
"""Histograms of the versions, (V, 20), float64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """All clients' reports of a round, added up."""

    versions: tuple[str, ...]
    histograms: Mapping[str, Mapping[str, Counts]]
    """By network and explainer."""
    chance: Counts
    """Of the expected mass accuracy of a random explanation."""
    sentences: Array
    """Explained or not, by version, (V,)."""
    right: Mapping[str, Array]
    """Classified correctly by each network, by version; empty if classes are not versions."""
    values: Mapping[str, Mapping[str, tuple[float, ...]]]
    """Mass accuracies one by one, in the order of `scored`; NaN if undefined. Empty unless every client sent them."""
    chances: tuple[float, ...]
    scored: tuple[tuple[int, int], ...]
    """Pair and version of each."""
    examples: tuple[Info, ...]

    @classmethod
    def of(cls, reports: Sequence[Info]) -> Totals:
        """Add reports up; they are of the same networks and explainers."""
        first = reports[0]
        every = all("values" in each for each in reports)
        nets: Mapping[str, Mapping[str, object]] = first["histograms"]

        def chained(net: str, name: str) -> tuple[float, ...]:
            return tuple(_number(value) for each in reports for value in each["values"][net][name])

        return cls(
            versions=tuple(first["versions"]),
            histograms={
                net: {name: _summed([each["histograms"][net][name] for each in reports]) for name in names}
                for net, names in nets.items()
            },
            chance=_summed([each["chance"] for each in reports]),
            sentences=_summed([each["sentences"] for each in reports]),
            right={net: _summed([each["right"][net] for each in reports]) for net in first.get("right", {})},
            values={net: {name: chained(net, name) for name in names} for net, names in nets.items()} if every else {},
            chances=tuple(_number(value) for each in reports for value in each["chances"]) if every else (),
            scored=tuple((int(a), int(b)) for each in reports for a, b in each["scored"]) if every else (),
            examples=tuple(example for each in reports for example in each.get("examples", ())),
        )

    @property
    def num_scored(self) -> int:
        """Return the number of sentences that are scored."""
        return int(self.chance.sum())

    def median(self, net: str, explainer: str) -> float:
        """Return the median mass accuracy over sentences: of the values if they are known, else of the histogram."""
        if self.values:
            return _median(self.values[net][explainer])
        return median_of(self.histograms[net][explainer].sum(axis=0).tolist())

    @property
    def chance_median(self) -> float:
        """Return the median of a random explanation's expected mass accuracy."""
        return _median(self.chances) if self.chances else median_of(self.chance.sum(axis=0).tolist())

    def medians(self, net: str, explainer: str) -> tuple[float, ...]:
        """Return the median of each version, from its histogram."""
        return tuple(median_of(row.tolist()) for row in self.histograms[net][explainer])

    def gap(self, net: str, explainer: str) -> float:
        """Return the second version's median minus the first's; NaN if one has no sentence."""
        first, second, *_ = self.medians(net, explainer)
        return second - first

    def best(self, net: str) -> tuple[str, float]:
        """Return the explainer of the greatest median among those that use the network, or of all; NaN without one."""
        names = [name for name in self.histograms[net] if name not in MODEL_FREE] or list(self.histograms[net])
        found = [(self.median(net, name), name) for name in names]
        known = [each for each in found if math.isfinite(each[0])]
        value, name = max(known, key=lambda each: each[0]) if known else found[0]
        return name, value

    def info(self, earlier: Sequence[Info]) -> JsonObject:
        """Return them for the round's record; relative to the first record if there is one."""
        reference: Info = earlier[0]["nets"] if earlier else {}
        nets: dict[str, JsonObject] = {}
        for net, names in self.histograms.items():
            nets[net] = {}
            for name, counts in names.items():
                median = self.median(net, name)
                before = reference.get(net, {}).get(name, {}).get("median")
                found = {
                    "median": median,
                    "gap": self.gap(net, name),
                    "relative": relative(median, before) if before is not None else math.nan,
                }
                nets[net][name] = {
                    "histograms": counts.astype(int).tolist(),
                    **{key: value for key, value in found.items() if math.isfinite(value)},
                }
        info: JsonObject = {
            "versions": list(self.versions),
            "nets": nets,
            "chance": self.chance.astype(int).tolist(),
            "sentences": self.sentences.astype(int).tolist(),
            "scored": self.num_scored,
            "right": {net: found.astype(int).tolist() for net, found in self.right.items()},
        }
        if math.isfinite(self.chance_median):
            info["chance_median"] = self.chance_median
        if self.values:
            info["values"] = {
                net: {name: [None if math.isnan(v) else v for v in values] for name, values in each.items()}
                for net, each in self.values.items()
            }
            info["pairs"] = [list(each) for each in self.scored]
        if self.examples:
            info["examples"] = [dict(each) for each in self.examples]
        return info


def _summed(parts: Sequence[object]) -> Array:
    total: Array = np.sum([np.asarray(part, np.float64) for part in parts], axis=0)
    return total


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else math.nan

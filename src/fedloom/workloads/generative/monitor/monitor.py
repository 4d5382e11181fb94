"""The server half: adds the clients' sums, and takes the distances of the pooled sets from them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedloom.core.protocols import Monitor, MonitorReading, MonitorRequest
from fedloom.core.records import ClientReport, Info, JsonObject
from fedloom.workloads.generative.families import KINDS
from fedloom.workloads.generative.moments import Moments, frechet, kernel_distance, pooled
from fedloom.workloads.generative.monitor.config import Config

_EVEN = 0.2
"""A class is covered from this share of an even share of the samples."""
_TOO_NEAR = 0.2
"""Samples this much nearer to training images than held-out images are, look memorised."""


class SampleDistances(Monitor):
    """Distances of each member's samples from the clients' images, in features of the federation's own classifier.

    Added up, the clients' sums are those of the pooled images and samples, so the distances are the pooled ones
    exactly. They compare members of one run; they are no published FID or KID.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        """Return all clients, or as many as the settings say."""
        if population <= self._config.clients:
            return MonitorRequest(clients=tuple(range(population)))
        drawn = rng.choice(population, size=self._config.clients, replace=False)
        return MonitorRequest(clients=tuple(map(int, np.sort(drawn))))

    def read(self, reports: Sequence[ClientReport], earlier: Sequence[Info]) -> MonitorReading:
        found = [report.info for report in reports if report.num_examples and report.info]
        if not found:
            return MonitorReading(metrics={}, info={})
        own = _pooled([info["own"] for info in found])
        info: JsonObject = {"form": list(found[0]["form"]), "classes": found[0]["classes"], "clients": len(found)}
        held_out = [each["held_out"] for each in found if "held_out" in each]
        if held_out:
            info["floor"] = _finite(frechet(_pooled(held_out), own))
        test = _mean([each["test_distance"] for each in found if "test_distance" in each])
        info["test_distance"] = _finite(test)
        names = [name for name in found[0]["members"] if all(name in each["members"] for each in found)]
        members = {name: _member([each["members"][name] for each in found], own, test) for name in names}
        info["members"] = members
        return MonitorReading(metrics=_metrics(members), info=info, warnings=_warnings(members))


def _member(parts: Sequence[Info], own: Moments, test: float) -> JsonObject:
    """Return one member's line: distances, coverage, memorisation, speed; None for what is undefined."""
    moments, predicted = _pooled([part["moments"] for part in parts]), np.sum([part["predicted"] for part in parts], 0)
    shares, count = np.sum([part["shares"] for part in parts], 0), moments.count
    even = shares / count
    entropy = float((even[even > 0] * np.log(even[even > 0])).sum())
    information = sum(float(part["information"]) for part in parts) / count - entropy
    distance = _mean([part["distance"] for part in parts])
    covered = int((predicted >= _EVEN * count / len(predicted)).sum())
    return {
        "frechet": _finite(frechet(moments, own)),
        "kernel": _finite(kernel_distance(moments, own)),
        "inception": _finite(math.exp(information)),
        "covered": covered,
        "predicted": predicted.tolist(),
        "nearer": _finite(1.0 - distance / test if test > 0 else math.nan),
        "samples": count,
        "samples_per_second": count / max(sum(float(part["seconds"]) for part in parts), 1e-9),
        "parameters": int(parts[0]["parameters"]),
        "pictures": parts[0]["pictures"],
    }


def _metrics(members: Mapping[str, Info]) -> Mapping[str, float]:
    """Return `frechet_<member>` and `kernel_<member>`, and of each family's first member with its name."""
    metrics: dict[str, float] = {}
    for measure in ("frechet", "kernel"):
        values = {name: line[measure] for name, line in members.items() if line[measure] is not None}
        metrics |= {f"{measure}_{name}": float(value) for name, value in values.items()}
        for name, value in values.items():
            metrics.setdefault(f"{measure}_{KINDS[name].family}", float(value))
    return metrics


def _warnings(members: Mapping[str, Info]) -> Mapping[str, str]:
    found = {}
    for name, line in members.items():
        if line["nearer"] is not None and line["nearer"] > _TOO_NEAR and name not in ("histogram", "gaussian"):
            found[f"samples of {name} are close to training images"] = (
                f"on average {100 * line['nearer']:.0f} % nearer than held-out images are; they may be memorised"
            )
    return found


def _pooled(parts: Sequence[Info]) -> Moments:
    return pooled([Moments.from_json(part) for part in parts])


def _mean(pairs: Sequence[Sequence[float]]) -> float:
    """Return the mean of sums with their counts; NaN without any."""
    total, count = np.sum(pairs, 0) if pairs else (math.nan, 0.0)
    return float(total / count) if count else math.nan


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def build_monitor(config: Config) -> SampleDistances:
    """Return the server half a `Config` describes."""
    return SampleDistances(config)

"""The client half: firing rates before and after local training, and the credit of their difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedloom.core.errors import UsageError
from fedloom.core.protocols import Measure, Shard
from fedloom.core.records import MODEL, Info, Record, Update
from fedloom.core.seeds import generator
from fedloom.selection.firing_credit.rates import HasGroupFiringRates, require_rates
from fedloom.selection.firing_credit.rules import Norm, bound, credits


class FiringCreditMeasure(Measure):
    """Reports credit and gain.

    Δ is the trained model's mean rates minus the global model's, on all of the client's samples, both with the same
    encoder noise. The gain is Δ of the output layer, the credit its norm `knobs["norm"]`, or the mean over layers
    (`layered`) if `knobs["layers"]` is "all". With `knobs["measurement"]` "training" there are no extra passes: Δ is
    the last epoch's rates minus the first's, as observed in training.
    """

    def __call__(
        self, workload: object, model: Record, update: Update, shard: Shard, rng: np.random.Generator, knobs: Info
    ) -> Info:
        """Return `{"credit": float, "gain": [C floats]}`; the gain only if `knobs["gain"]` is set.

        Raises:
            UnsupportedFeature: the workload has no firing rates.
        """
        if knobs.get("measurement") == "training":
            first, last = _in_passing(workload, update, knobs["layers"])
            return _credited(first, last, knobs)
        noise, spiking = _Noise(rng), require_rates(workload, "firing_credit")
        layers, per_sample = knobs["layers"], knobs["norm"] == "per_sample"
        before, after = (
            spiking.firing_rates(arrays, shard, noise.stream(), layers=layers, per_sample=per_sample)
            for arrays in (model.groups[MODEL], update.groups[MODEL])
        )
        return _credited(before, after, knobs)

    def together(
        self,
        workload: object,
        model: Record,
        updates: Sequence[Update],
        shards: Sequence[Shard],
        rngs: Sequence[np.random.Generator],
        knobs: Sequence[Info],
    ) -> list[Info] | None:
        """Return the reports of a whole group at once; None if the workload does not support it."""
        in_passing = knobs[0].get("measurement") == "training"
        if not isinstance(workload, HasGroupFiringRates) or in_passing or any(each != knobs[0] for each in knobs):
            return None
        noises, program = [_Noise(rng) for rng in rngs], workload.firing_rates_group
        layers, per_sample = knobs[0]["layers"], knobs[0]["norm"] == "per_sample"
        before, after = (
            program(models, shards, [noise.stream() for noise in noises], layers=layers, per_sample=per_sample)
            for models in ([model.groups[MODEL]] * len(updates), [update.groups[MODEL] for update in updates])
        )
        return [_credited(*each) for each in zip(before, after, knobs, strict=True)]


def _in_passing(workload: object, update: Update, layers: str) -> list[dict[str, np.ndarray]]:
    """Return the rates of the first and of the last epoch, as observed in training.

    Raises:
        UsageError: the workload's training traces no rates.
    """
    if "first/output" not in update.traces:
        raise UsageError(
            f"selection 'firing_credit' with measurement = \"training\" reads rates traced by training, but workload "
            f"{type(workload).__name__!r} traces none. Use a spiking workload such as spiking_classification"
        )
    return [
        {
            name.removeprefix(part): rates
            for name, rates in update.traces.items()
            if name.startswith(part) and (layers == "all" or name == f"{part}output")
        }
        for part in ("first/", "last/")
    ]


class _Noise:
    """The encoder's randomness: the same stream for each pass."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._seed = int(rng.integers(2**63))

    def stream(self) -> np.random.Generator:
        return generator(self._seed, "encoder")


def _credited(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], knobs: Info) -> Info:
    norm: Norm = knobs["norm"]
    info: dict[str, object] = {"credit": layered(before, after, norm)}
    if knobs["gain"]:
        change = np.asarray(after["output"], np.float64) - np.asarray(before["output"], np.float64)
        info["gain"] = (change.mean(axis=0) if norm == "per_sample" else change).tolist()
    return info


def layered(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], norm: Norm) -> float:
    """Return the mean credit over layers, each scaled as if it were as wide as the output.

    With the output layer alone this is its credit. The scale, bound(C) / bound(H), keeps a wide hidden layer from
    drowning the others and the result within the output layer's bound; it is ours.

    Args:
        before: rates by layer, one of them "output"; [H] or, per sample, [n, H].
        after: the same layers, same shapes.
        norm: see `rules.credits`.
    """
    width = before["output"].shape[-1]
    scaled = [
        credits(rates, after[name], norm) * bound(norm, width) / bound(norm, rates.shape[-1])
        for name, rates in before.items()
    ]
    return float(np.mean(scaled))


def build_measure() -> FiringCreditMeasure:
    """Return the measure; its settings come with each job."""
    return FiringCreditMeasure()

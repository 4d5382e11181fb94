"""All scores of one set, from the models' outputs on it and on the source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.strategies.mano.monitor.score import POWER, batch_mean, norm, power_sum
from fedloom.strategies.mano.monitor.softrun import log_softmax, softmax, taylor
from fedloom.strategies.mano.workload import rivals
from fedloom.strategies.mano.workload.inference import ModelOutputs

POWERS = (2, 3, 5, 6, 7, 8)
"""Further values of p to score besides the paper's."""
ORDERS = (3, 4, 5)
"""Further orders of the truncated exponential besides the paper's."""
Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The rivals' knowledge of the source: labelled validation images, features, class frequencies."""

    features: rivals.Gaussian
    """Of the validation images."""
    temperature: float
    """By which logits are divided before ATC, COT and COTT."""
    marginal: Array
    """Share of each class among the training labels, (K,)."""
    confidence: float
    """ATC's threshold on the greatest share."""
    entropy: float
    """ATC's threshold on the negative entropy."""
    transport: float
    """COTT's threshold on minus the transport cost."""
    seed: int

    @classmethod
    def of(cls, outputs: ModelOutputs, labels: Array, marginal: Array, seed: int) -> Source:
        """Make it from the model's outputs on the labelled validation images."""
        correct, temperature = outputs.predictions == labels, rivals.temperature(outputs.logits, labels)
        logits = outputs.logits / temperature
        shares = softmax(logits)
        return cls(
            features=rivals.Gaussian.of(outputs.features),
            temperature=temperature,
            marginal=marginal,
            confidence=rivals.atc_threshold(rivals.confidence(shares), correct),
            entropy=rivals.atc_threshold(rivals.negative_entropy(logits), correct),
            transport=rivals.atc_threshold(-rivals.transport_costs(shares, labels), correct),
            seed=seed,
        )


def mano_scores(outputs: ModelOutputs) -> Scores:
    """MaNo in both branches, and its variants: `softmax_p2`, `taylor_o3`, without the row minimum, the mean of batches.

    `criterion` is Phi.
    """
    log_shares = log_softmax(outputs.logits)
    shares = {"softmax": np.exp(log_shares), "taylor": taylor(outputs.logits)}
    found = {"criterion": -float(log_shares.mean())}
    for branch, rows in shares.items():
        found[branch] = _norm(rows, POWER)
        found |= {f"{branch}_p{power}": _norm(rows, power) for power in POWERS}
    found |= {f"taylor_o{order}": _norm(taylor(outputs.logits, order=order), POWER) for order in ORDERS}
    found["taylor_plain"] = _norm(taylor(outputs.logits, row_min=False), POWER)
    found["softmax_batches"] = batch_mean(outputs.logits, "softmax")
    found["taylor_batches"] = batch_mean(outputs.logits, "taylor")
    return found


def rival_scores(outputs: ModelOutputs, second: ModelOutputs | None, source: Source, name: str) -> Scores:
    """Return the scores MaNo is compared with; `name` is the set's, for drawing its labels for COT."""
    shares, logits = softmax(outputs.logits), outputs.logits / source.temperature
    calibrated = softmax(logits)
    rng = generator(source.seed, "mano", "transport", name)
    costs = rivals.transport_costs(calibrated, rivals.sampled_labels(source.marginal, len(shares), rng))
    found = {
        "conf_score": float(rivals.confidence(shares).mean()),
        "entropy": float(rivals.negative_entropy(outputs.logits).mean()),
        "atc_mc": rivals.atc(rivals.confidence(calibrated), source.confidence),
        "atc_ne": rivals.atc(rivals.negative_entropy(logits), source.entropy),
        "frechet": rivals.frechet(outputs.features, source.features),
        "dispersion": rivals.dispersion(outputs.features, outputs.predictions, shares.shape[1]),
        "nuclear": rivals.nuclear(shares),
        "nuclear_taylor": rivals.nuclear(taylor(outputs.logits)),
        "mde": rivals.meta_energy(outputs.logits),
        "cot": 1.0 - float(costs.mean()),
        "cott": rivals.atc(-costs, source.transport),
    }
    if second is not None:
        found["agree_score"] = rivals.agreement(outputs.predictions, second.predictions)
    return found


def balance(outputs: ModelOutputs) -> float:
    """Return the entropy of the mean prediction over ln K: 1 for equally frequent classes, 0 for a single one."""
    mean = softmax(outputs.logits).mean(axis=0)
    return float(-(mean * np.log(np.maximum(mean, 1e-300))).sum() / np.log(len(mean)))


def _norm(shares: Array, power: int) -> float:
    return norm(power_sum(shares, power), len(shares), shares.shape[1], power)

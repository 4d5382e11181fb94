"""Federated AdaLoRA, the client half: the orthogonality penalty, and the importance of each component in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedloom.adapters.names import LORA_A, LORA_B, LORA_E
from fedloom.core.protocols import Tensors
from fedloom.core.records import Array, Info, Update
from fedloom.strategies._low_rank.rule import LowRankRule, Tensor

SCORES = "scores"
"""Group of the components' importance, (r,) float32 by layer."""


class Importance(LowRankRule):
    """Scores triplets (column of B, gate, row of A) as AdaLoRA does, over one client's local steps.

    Per entry w with gradient g: I = |w g|, Ī ← β₁ Ī + (1 - β₁) I, Ū ← β₂ Ū + (1 - β₂) |I - Ī|, and its score is Ī Ū.
    A component's score is that of its gate, plus the means over its column and over its row. Zhang et al. 2023,
    "AdaLoRA" (ICLR 2023, arXiv 2303.10512); the order of the updates is that of the PEFT package.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[str, str], int] = {}
        self._smooth: dict[int, Tensor] = {}
        self._uncertain: dict[int, Tensor] = {}

    def begin(self, trained: Sequence[tuple[str, str]], knobs: Info) -> None:
        factors = (LORA_A, LORA_B, LORA_E)
        self._places = {key: place for place, key in enumerate(trained) if key[0] in factors}

    def adjust_gradients(self, gradients: Tensors, parameters: Tensors, anchor: Tensors, knobs: Info) -> None:
        """Add the penalty's gradients and the proximal term, then take the importance of every entry."""
        super().adjust_gradients(gradients, parameters, anchor, knobs)
        matrices = [key for key in self._places if key[0] != LORA_E]
        for group, name in matrices if knobs["orthogonality"] else ():
            place = self._places[group, name]
            weight = knobs["orthogonality"] / len(matrices)
            gradients[place][...] += weight * _away_from_orthonormal(parameters[place], rows=group == LORA_A)
        for place in self._places.values():
            self._weigh(place, abs(parameters[place] * gradients[place]), knobs["beta1"], knobs["beta2"])

    def outgoing(self, update: Update, knobs: Info) -> Update:
        """Return the update with each component's score."""
        scores = {name: self._score(name, e.size) for name, e in update.groups[LORA_E].items()}
        return super().outgoing(replace(update, groups={**update.groups, SCORES: scores}), knobs)

    def _weigh(self, place: int, importance: Tensor, beta1: float, beta2: float) -> None:
        smooth = self._smooth.get(place, 0.0) * beta1 + (1 - beta1) * importance
        self._uncertain[place] = self._uncertain.get(place, 0.0) * beta2 + (1 - beta2) * abs(importance - smooth)
        self._smooth[place] = smooth

    def _score(self, name: str, rank: int) -> Array:
        if not self._smooth:
            return np.zeros(rank, np.float32)
        a, b, e = (self._entries(group, name) for group in (LORA_A, LORA_B, LORA_E))
        scores: Array = e + b.mean(axis=0) + a.mean(axis=1)
        return scores.astype(np.float32)

    def _entries(self, group: str, name: str) -> Array:
        place = self._places[group, name]
        return _as_array(self._smooth[place] * self._uncertain[place])


def _as_array(values: Tensor) -> Array:
    """Return a tensor or array as an array."""
    return np.asarray(values if isinstance(values, np.ndarray) else values.cpu())


def _away_from_orthonormal(matrix: Tensor, *, rows: bool) -> Tensor:
    """Return the gradient of ‖Q Qᵀ - I‖_F in Q (of ‖Qᵀ Q - I‖_F for columns): 2 (Q Qᵀ - I) Q / ‖Q Qᵀ - I‖_F."""
    q = matrix if rows else matrix.T
    apart = q @ q.T
    places = range(len(apart))
    apart[places, places] -= 1.0
    norm = (apart * apart).sum() ** 0.5
    gradient = 2.0 * (apart @ q) / norm if float(norm) > 0.0 else 0.0 * q
    return gradient if rows else gradient.T


def build_rule() -> Importance:
    """Return the client half of federated AdaLoRA."""
    return Importance()

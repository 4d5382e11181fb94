"""Criteria for leaving at a branch, from its frames' probabilities. p: (T, C), rows that add up to 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedloom.workloads.hubert_ee.config import CriterionSettings
from fedloom.workloads.hubert_ee.vocabulary import collapse


def entropy(logits: Tensor) -> float:
    """H = -1/(T C) sum_t sum_c p_tc ln p_tc, in nats: 0 for certain frames, ln(C)/C for uniform ones.

    Args:
        logits: of the frames that are no padding, (T, C).
    """
    logs = logits.double().log_softmax(-1)
    return float(-(logs.exp() * logs).sum() / logits.numel())


def confidence(logits: Tensor) -> float:
    """1/T sum_t max_c p_tc, from 1/C to 1."""
    return float(logits.double().softmax(-1).amax(-1).mean())


def greedy(logits: Tensor) -> str:
    """Return the text of the likeliest symbol of each frame."""
    return collapse(logits.argmax(-1).tolist())


class Criterion:
    """Decides branch by branch whether an utterance leaves; one object for each utterance."""

    def __init__(self, settings: CriterionSettings) -> None:
        self._settings = settings
        self._texts: list[str] = []

    def leaves(self, logits: Tensor) -> bool:
        """Return whether the utterance leaves at the branch with these logits, (T, C); branches come in order."""
        threshold = self._settings.threshold
        match self._settings.name:
            case "entropy":
                return entropy(logits) < threshold
            case "confidence":
                return confidence(logits) > threshold
            case _:
                self._texts.append(greedy(logits))
                count = max(1, round(threshold))
                return len(self._texts) >= count and len({*self._texts[-count:]}) == 1


def exit_of(branches: Sequence[Tensor], settings: CriterionSettings) -> int:
    """Return the place of the first branch an utterance leaves at; the number of branches for the final head."""
    criterion = Criterion(settings)
    for place, logits in enumerate(branches):
        if criterion.leaves(logits):
            return place
    return len(branches)


def uniform_entropy(symbols: int) -> float:
    """Return ln(C) / C, the greatest entropy."""
    return float(torch.log(torch.tensor(float(symbols), dtype=torch.float64)) / symbols)

"""What an utterance leaves by: scores of a branch's frames, and the rule that reads them. p: (T, C), rows sum to 1."""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.workloads.hubert_ee.exits import ENTROPY, Rule
from fedloom.workloads.hubert_ee.vocabulary import BLANK, collapse


def entropy(logits: Tensor) -> float:
    """H = -1/(T C) sum_t sum_c p_tc ln p_tc, in nats: 0 for certain frames, ln(C)/C for uniform ones.

    Args:
        logits: of the frames that are no padding, (T, C).
    """
    return scores(logits)[ENTROPY]


def confidence(logits: Tensor) -> float:
    """1/T sum_t max_c p_tc, from 1/C to 1."""
    return float(logits.double().softmax(-1).amax(-1).mean())


def scores(logits: Tensor) -> list[float]:
    """Return the numbers that rules read, in the order of `exits.SCORES`.

    Args:
        logits: of the frames that are no padding, (T, C); with none, those of uniform output.
    """
    if not len(logits):
        logits = logits.new_zeros(1, logits.shape[1])
    logs = logits.double().log_softmax(-1)
    p = logs.exp()
    each = -(p * logs).sum(-1) / logits.shape[-1]
    spoken = each[p.argmax(-1) != BLANK]
    return [
        float(each.mean()),
        float(p.amax(-1).mean()),
        float(spoken.mean()) if len(spoken) else float(each.max()),
        float(each.max()),
        len(spoken) / len(each),
    ]


def greedy(logits: Tensor) -> str:
    """Return the text of the likeliest symbol of each frame."""
    return collapse(logits.argmax(-1).tolist())


class Criterion:
    """Decides branch by branch whether an utterance leaves; one object for each utterance."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._texts: list[str] = []

    def leaves(self, logits: Tensor) -> bool:
        """Return whether the utterance leaves at the branch with these logits, (T, C); branches come in order."""
        self._texts.append(greedy(logits))
        agreeing = next((n for n, text in enumerate(reversed(self._texts)) if text != self._texts[-1]), None)
        count = len(self._texts) if agreeing is None else agreeing
        return self._rule.leaves(len(self._texts) - 1, scores(logits), count)


def uniform_entropy(symbols: int) -> float:
    """Return ln(C) / C, the greatest entropy."""
    return float(torch.log(torch.tensor(float(symbols), dtype=torch.float64)) / symbols)

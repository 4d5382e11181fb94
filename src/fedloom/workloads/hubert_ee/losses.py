"""Losses of exits: CTC over characters."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fedloom.workloads.hubert_ee.vocabulary import BLANK


def ctc(logits: Tensor, counts: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over utterances of -ln P(text) per symbol (Graves et al. 2006).

    Args:
        logits: (b, T, C).
        counts: frames that are no padding, (b,), int64.
        targets: number of symbols, symbols, zeros, (b, 1 + longest), int64.
    """
    logs = logits.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(logs, targets[:, 1:], counts, targets[:, 0], blank=BLANK, zero_infinity=True)


def total(exits: Sequence[Tensor], stage: str, weight: float) -> Tensor:
    """Return the loss of a stage from those of the exits, the final head's last.

    `joint`: L_final + weight * mean of the branches; `final`: L_final; `branches`: mean of the branches.
    """
    *branches, final = exits
    mean = sum(branches[1:], start=branches[0]) / len(branches)
    if stage == "joint":
        return final + weight * mean if weight else final
    return final if stage == "final" else mean

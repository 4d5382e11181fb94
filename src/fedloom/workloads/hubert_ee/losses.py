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


def total(exits: Sequence[Tensor], branches: int, weight: float | None) -> Tensor:
    """Return the loss of joint training, or of the branches alone, from the losses of exits.

    L_final + weight / B * sum of the branches'. Of fewer exits than there are it is the share of that which they
    contribute.

    Args:
        exits: losses of the first exits; with B + 1 of them the last one is the final head's.
        branches: B.
        weight: lambda; None for the mean of the branches alone, the final head left out.
    """
    own = exits[:branches]
    mean = sum(own[1:], start=own[0]) / branches
    if weight is None:
        return mean
    final = exits[branches] if len(exits) > branches else None
    if final is None:
        return weight * mean
    return final + weight * mean if weight else final

"""What a model minimises on a minibatch of slices to retain and to forget."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.workloads.mri_unlearning.acquisitions import Acquisitions
from fedloom.workloads.mri_unlearning.config import UnlearningSettings
from fedloom.workloads.mri_unlearning.losses import ssim
from fedloom.workloads.mri_unlearning.nets import cropped
from fedloom.workloads.mri_unlearning.procedures import Procedure


def rows_for(procedure: Procedure, rows: Array, source: Acquisitions, share: float, seed: int) -> Array:
    """Return the rows of a client that a procedure trains on; with a share of the retain slices, always the same."""
    kept, left = rows[~source.forget[rows]], rows[source.forget[rows]]
    if procedure.retained == "none":
        kept = kept[:0]
    elif procedure.retained == "share" and len(kept):
        count = max(1, round(share * len(kept)))
        kept = kept[np.sort(generator(seed, "mri retain", int(kept[0])).permutation(len(kept))[:count])]
    return np.concatenate([kept, left[:0] if procedure.forgotten == "none" else left])


class Objective:
    """The loss of a procedure: the mean over slices of s_i J_i, J = 1 - SSIM + weight L1.

    s = 1 on slices to retain and on plain or noisy ones to forget, -ascent_weight where the loss is maximised.

    Args:
        procedure: which.
        net: the network that is trained.
        source: the slices.
        settings: the procedures' numbers.
        l1_weight: weight of L1.
        forgets_all: whether every slice is one to forget, whatever its anatomy.
    """

    def __init__(
        self,
        procedure: Procedure,
        net: nn.Module,
        source: Acquisitions,
        settings: UnlearningSettings,
        l1_weight: float,
        forgets_all: bool = False,
    ) -> None:
        self._procedure, self._net, self._source = procedure, net, source
        self._settings, self._l1_weight, self._forgets_all = settings, l1_weight, forgets_all

    def __call__(self, rows: Tensor) -> Tensor:
        """Return a minibatch's loss; the mask, and the noise, are drawn from torch's global generator."""
        sample = self._source.drawn(rows)
        forget = torch.from_numpy(self._source.forget[rows.cpu().numpy()]).to(sample.target.device)
        forget = forget | self._forgets_all
        image = cropped(self._net(sample.measured, sample.mask, sample.centre), sample.target)
        target, kind = sample.target, self._procedure.forgotten
        if kind == "noisy":
            target = torch.where(forget[:, None, None], self._noisy(target, sample.ranges), target)
        found = slice_losses(image, target, sample.ranges, self._l1_weight)
        if kind != "ascent":
            return found.mean()
        loss = torch.where(forget, -self._settings.ascent_weight * found, found).mean()
        if self._settings.gamma and bool(forget.any()):
            size = torch.stack([each.abs().sum() for each in self._net.parameters()]).sum()
            loss = loss + self._settings.gamma * forget.float().mean() * size
        return loss

    def _noisy(self, target: Tensor, ranges: Tensor) -> Tensor:
        noise = torch.randn(target.shape).to(target.device)
        noise = noise.abs() if self._settings.absolute_noise else noise
        return target + self._settings.label_noise * ranges[:, None, None] * noise


def slice_losses(image: Tensor, target: Tensor, ranges: Tensor, l1_weight: float) -> Tensor:
    """Return J of each slice, (b,)."""
    return 1.0 - ssim(image, target, ranges) + l1_weight * (image - target).abs().mean((1, 2))

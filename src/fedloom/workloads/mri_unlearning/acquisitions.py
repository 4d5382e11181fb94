"""Acquired slices as rows: undersampled k-space in, the reference image out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.workloads._base.rows import Batch
from fedloom.workloads.mri_unlearning.config import MaskSettings
from fedloom.workloads.mri_unlearning.masks import centre_columns, make_mask
from fedloom.workloads.mri_unlearning.volume_set import Acquired


@dataclass(frozen=True, slots=True)
class Sample:
    """A minibatch: arguments of a network, and what it should reconstruct."""

    measured: Tensor
    """Masked k-space, (b, c, h, w), complex64."""
    mask: Tensor
    """Sampled columns, (w,), bool."""
    centre: Tensor
    """Fully sampled columns, (w,), bool."""
    target: Tensor
    """(b, h', w'), float32."""
    ranges: Tensor
    """Maximum of each slice's volume, (b,)."""


class Acquisitions:
    """Slices of volumes as rows, in order.

    Args:
        volumes: the source.
        anatomies: names of all anatomies.
        mask: how columns are sampled.
        device: of the work.

    Raises:
        ConfigError: the mask samples nothing of a volume, or its centre is too wide.
        DataMissing: there is no slice.
    """

    def __init__(
        self, volumes: Sequence[Acquired], anatomies: Sequence[str], mask: MaskSettings, device: torch.device
    ) -> None:
        if not volumes:
            raise DataMissing("workload.data: expected at least one volume, got none")
        self.volumes, self._mask, self._device = tuple(volumes), mask, device
        counts = [len(each.target) for each in volumes]
        self.volume_of = np.repeat(np.arange(len(volumes)), counts)
        """Number of each row's volume, (n,)."""
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self.labels = np.array([anatomies.index(volumes[v].anatomy) for v in self.volume_of.tolist()], np.int64)
        """Number of each row's anatomy, (n,)."""
        self.sites = np.array([volumes[v].site for v in self.volume_of.tolist()], np.int64)
        """Site of each row, (n,)."""
        self.forget: Array = np.asarray([volumes[v].forget for v in self.volume_of.tolist()])
        """Whether each row's influence is to be removed, (n,)."""
        for width in sorted({each.kspace.shape[-1] for each in volumes}):
            make_mask(mask, width, np.random.default_rng(0))

    def __len__(self) -> int:
        return len(self.volume_of)

    def batch(self, rows: Tensor) -> Batch:
        """Return fully sampled k-space (b, c, h, w) complex64 and references (b, h', w')."""
        chosen = self._chosen(rows)
        kspace = np.stack([self.volumes[volume].kspace[row] for volume, row in chosen])
        target = np.stack([self.volumes[volume].target[row] for volume, row in chosen])
        return (torch.from_numpy(kspace).to(self._device),), torch.from_numpy(target).to(self._device)

    def drawn(self, rows: Tensor) -> Sample:
        """Return rows under one new mask, drawn from torch's global generator."""
        return self._sample(rows, np.random.default_rng(int(torch.randint(2**62, (1,)))))

    def held_out(self, rows: Tensor) -> Sample:
        """Return rows of one volume under its own mask, which depends on the volume's name alone."""
        volume, _ = self._chosen(rows)[0]
        return self._sample(rows, generator(0, "mri mask", self.volumes[volume].name))

    def rows_of(self, volume: int) -> Array:
        """Return the rows of a volume, (n,), int64."""
        return np.arange(self._first[volume], self._first[volume + 1])

    def _sample(self, rows: Tensor, rng: np.random.Generator) -> Sample:
        (kspace,), target = self.batch(rows)
        width = kspace.shape[-1]
        mask = torch.from_numpy(make_mask(self._mask, width, rng)).to(self._device)
        centre = torch.zeros(width, dtype=torch.bool, device=self._device)
        centre[centre_columns(width, self._mask.centre_fraction)] = True
        tops = [float(self.volumes[volume].target.max()) for volume, _ in self._chosen(rows)]
        return Sample(kspace * mask, mask, centre, target, torch.tensor(tops, device=self._device))

    def _chosen(self, rows: Tensor) -> list[tuple[int, int]]:
        """Return the volume and slice of rows, which must have one shape."""
        numbers = rows.cpu().numpy()
        found = [(int(self.volume_of[row]), int(row - self._first[self.volume_of[row]])) for row in numbers]
        shapes = {self.volumes[volume].kspace.shape[1:] + self.volumes[volume].target.shape[1:] for volume, _ in found}
        if len(shapes) > 1:
            raise ConfigError(
                "workload.training.batch_size: volumes differ in coils or size, so their slices cannot share a "
                f"minibatch: (coils, h, w, h', w') {sorted(shapes)}. Set batch_size = 1"
            )
        return found

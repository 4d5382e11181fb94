"""Masked-cluster prediction (Hsu et al. 2021, "HuBERT", section II): k-means targets, masked spans, the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.core.records import Array
from fedloom.workloads.hubert_ee.config import PretrainingSettings
from fedloom.workloads.hubert_ee.front import BANDS, LogMel

_ITERATIONS, _FRAMES = 15, 20_000


class ClusterHead(nn.Module):
    """Logits of clusters, cos(A h, e_c) / tau: (b, T, width) to (b, T, clusters).

    Args:
        width: of a frame.
        clusters: number of clusters.
        temperature: tau.
    """

    def __init__(self, width: int, clusters: int, temperature: float) -> None:
        super().__init__()
        self.projection = nn.Linear(width, width)
        self.codes = nn.Parameter(torch.randn(clusters, width))
        self._temperature = temperature

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits."""
        directions = F.normalize(self.projection(hidden), dim=-1)
        return directions @ F.normalize(self.codes, dim=-1).T / self._temperature


class Targets:
    """The cluster of each frame: its two windows' log-mel bands, and the nearest centre.

    Args:
        centres: (clusters, 2 * BANDS), float32.
    """

    def __init__(self, centres: Array) -> None:
        self.centres = torch.from_numpy(centres)

    def of(self, bands: Tensor, frames: int) -> Tensor:
        """Return the clusters of log-mel bands (b, windows, BANDS), (b, frames), int64."""
        pairs = paired(bands, frames)
        centres = self.centres.to(pairs)
        return (centres.square().sum(1) - 2.0 * pairs @ centres.T).argmin(-1)


def paired(bands: Tensor, frames: int) -> Tensor:
    """Return windows 2t and 2t + 1 of each frame t, (b, frames, 2 * BANDS); windows that are missing are 0."""
    wanted = 2 * frames
    cut = F.pad(bands[:, :wanted], (0, 0, 0, max(0, wanted - bands.shape[1])))
    return cut.reshape(len(bands), frames, 2 * BANDS)


def spans(padding: Tensor, settings: PretrainingSettings, seeds: Sequence[int] | None = None) -> Tensor:
    """Draw masked spans, (b, T), true where masked; never at padding, and at least one in each utterance.

    Args:
        padding: true at padding, (b, T).
        settings: share of beginnings, and length of a span.
        seeds: of each utterance's draws, so that they do not depend on its minibatch; None draws from torch's global
            generator.
    """
    count, total = padding.shape
    inside = (~padding).sum(1).cpu().clamp(min=1)
    if seeds is None:
        drawn, first = torch.rand(count, total), torch.rand(count)
    else:
        drawn, first = torch.ones(count, total), torch.zeros(count)
        for row, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            first[row] = torch.rand((), generator=generator)
            drawn[row, : inside[row]] = torch.rand(int(inside[row]), generator=generator)
    begins = drawn < settings.share
    begins[torch.arange(count), (first * inside).long().clamp(max=total - 1)] = True
    covered = begins.clone()
    for shift in range(1, min(settings.span, total)):
        covered[:, shift:] |= begins[:, :-shift]
    return covered.to(padding.device) & ~padding


def cluster_centres(front: LogMel, waves: Array, lengths: Array, clusters: int, rng: np.random.Generator) -> Array:
    """Return the centres of k-means over frames of utterances, (clusters, 2 * BANDS), float32, by Lloyd's iterations.

    Args:
        front: makes log-mel bands.
        waves: samples, (n, longest), int16.
        lengths: samples of each, (n,).
        clusters: number of centres; fewer if there are fewer frames.
        rng: draws the utterances' order and the first centres.
    """
    found, total = list[Array](), 0
    for row in rng.permutation(len(waves)):
        length = int(lengths[row])
        wave = torch.from_numpy(np.array(waves[row, :length], np.float32) / 32768.0)[None]
        bands = front.bands(wave, torch.tensor([length]))
        found.append(paired(bands, bands.shape[1] // 2)[0].numpy())
        total += len(found[-1])
        if total >= _FRAMES:
            break
    x = np.concatenate(found).astype(np.float64)
    centres = x[rng.choice(len(x), min(clusters, len(x)), replace=False)]
    for _ in range(_ITERATIONS):
        nearest = (np.square(centres).sum(1) - 2.0 * x @ centres.T).argmin(1)
        for number in range(len(centres)):
            members = x[nearest == number]
            if len(members):
                centres[number] = members.mean(0)
    return centres.astype(np.float32)


def masked_loss(logits: Tensor, clusters: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy over masked frames, and how many of them are predicted right.

    Args:
        logits: (b, T, clusters).
        clusters: targets, (b, T), int64.
        mask: true at masked frames, (b, T); at least one.
    """
    chosen, wanted = logits[mask], clusters[mask]
    return F.cross_entropy(chosen, wanted), (chosen.argmax(-1) == wanted).sum()

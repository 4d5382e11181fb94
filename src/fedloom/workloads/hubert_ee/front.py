"""A log-mel front end in place of HuBERT's seven convolutions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.hubert_ee.config import RATE

_WINDOW, _HOP, _FFT = 400, 160, 512
BANDS = 40
_WARPS = (0.88, 0.91, 0.94, 0.97, 1.0, 1.03, 1.06, 1.09, 1.12)
"""Factors on frequencies in training; the middle one is none."""
_BAND_MASK, _FRAME_MASK = 6, 6
"""Greatest widths of masks in training: bands, and windows of 10 ms."""
_FLOOR = 1e-6


class LogMel(nn.Module):
    """Samples to frames: log-mel bands of 25 ms every 10 ms, normalised per utterance, a convolution of stride 2.

    Args:
        channels: of the convolution.
        augments: whether training warps and masks; draws from torch's global generator.
    """

    def __init__(self, channels: int, augments: bool = False) -> None:
        super().__init__()
        self.augments = augments
        self.conv = nn.Conv1d(BANDS, channels, 3, 2)
        self.bank: Tensor
        self.warps: Tensor
        self.window: Tensor
        self.register_buffer("bank", mel_bank(), persistent=False)
        self.register_buffer("warps", torch.stack([mel_warp(factor) for factor in _WARPS]), persistent=False)
        self.register_buffer("window", torch.hann_window(_WINDOW), persistent=False)

    def counts(self, lengths: Tensor) -> Tensor:
        """Return the number of frames of a number of samples."""
        windows = ((lengths - _WINDOW) // _HOP + 1).clamp(min=0)
        return ((windows - 3) // 2 + 1).clamp(min=0)

    def forward(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """Return the frames of samples (b, n), (b, channels, T); what is behind an utterance's end has no influence."""
        bands = self.bands(wave, lengths)
        if self.training and self.augments:
            bands = masked(bands)
        return F.gelu(self.conv(bands.transpose(1, 2)))

    def bands(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """Return log-mel bands, (b, windows, BANDS), of mean 0 and deviation 1 over each utterance, 0 at padding."""
        windows = wave.unfold(1, _WINDOW, _HOP) * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(windows, _FFT))
        logs = torch.log(spectrum.square().sum(-1) @ self.bank + _FLOOR)
        if self.training and self.augments:
            logs = logs @ self.warps[torch.randint(len(_WARPS), (len(wave),)).to(wave.device)]
        counts = ((lengths - _WINDOW) // _HOP + 1).clamp(min=1)
        inside = (torch.arange(logs.shape[1], device=wave.device) < counts[:, None])[..., None].to(logs.dtype)
        mean = (logs * inside).sum(1, keepdim=True) / counts[:, None, None]
        centred = (logs - mean) * inside
        deviation = (centred.square().sum(1, keepdim=True) / counts[:, None, None]).sqrt()
        return centred / (deviation + 1e-3)


def mel_bank() -> Tensor:
    """Return triangular filters on the mel scale, (_FFT / 2 + 1, BANDS)."""
    edges = torch.tensor([_edge(place) for place in range(BANDS + 2)])
    bins = torch.linspace(0.0, RATE / 2, _FFT // 2 + 1)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (centre - low).clamp(min=1e-3), (high - bins) / (high - centre).clamp(min=1e-3)
    return torch.minimum(rising, falling).clamp(min=0.0)


def mel_warp(factor: float) -> Tensor:
    """Return a matrix (BANDS, BANDS) that reads each band at `factor` times its frequency, between its neighbours."""
    matrix = torch.zeros(BANDS, BANDS)
    for band in range(BANDS):
        place = _mel(_edge(band + 1) * factor) / _mel(RATE / 2) * (BANDS + 1) - 1.0
        place = min(max(place, 0.0), BANDS - 1.0)
        low = min(int(place), BANDS - 2)
        matrix[low, band], matrix[low + 1, band] = low + 1 - place, place - low
    return matrix


def masked(bands: Tensor) -> Tensor:
    """Set a run of bands and a run of windows to 0, drawn for each utterance; (b, windows, BANDS)."""
    count, length, width = bands.shape
    kept_bands = _outside_run(count, width, _BAND_MASK)
    kept_frames = _outside_run(count, length, _FRAME_MASK)
    return bands * kept_bands[:, None, :].to(bands) * kept_frames[:, :, None].to(bands)


def _outside_run(count: int, size: int, greatest: int) -> Tensor:
    """Return 0 within a run of at most `greatest` places, otherwise 1, (count, size)."""
    run = torch.randint(greatest + 1, (count, 1))
    first = (torch.rand(count, 1) * (size - run).clamp(min=0)).long()
    places = torch.arange(size)[None]
    return 1.0 - ((places >= first) & (places < first + run)).float()


def _edge(place: int) -> float:
    """Return the frequency of an edge of the filters, 0 to BANDS + 1; Hz."""
    return float(700.0 * (10.0 ** (_mel(RATE / 2) * place / (BANDS + 1) / 2595.0) - 1.0))


def _mel(frequency: float) -> float:
    return 2595.0 * math.log10(1.0 + frequency / 700.0)

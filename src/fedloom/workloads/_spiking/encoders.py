"""Encoders: convert images to a network's input in each time step.

T time steps, b images in a batch, c channels, h by w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedloom.core.errors import ConfigError
from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.workloads._spiking.settings import Delta, Direct, Latency, Poisson


@dataclass(frozen=True, slots=True)
class Pixels:
    """Converts standardised images back to intensities."""

    mean: tuple[float, ...]
    """Training set's mean of each channel."""
    std: tuple[float, ...]
    """Training set's standard deviation of each channel."""
    low: float
    """Smallest value of the training set, before standardisation: intensity 0."""
    high: float
    """Largest value of the training set: intensity 1."""

    @classmethod
    def of(cls, images: Array, mean: list[float], std: list[float]) -> Pixels:
        """Build the encoder from the standardised training images (n, c, h, w) and their moments."""
        axes = (0, 2, 3)
        means, deviations = np.array(mean), np.array(std)
        low = (images.min(axes) * deviations + means).min()
        high = (images.max(axes) * deviations + means).max()
        return cls(tuple(mean), tuple(std), float(low), float(high))

    def intensity(self, images: Tensor) -> Tensor:
        """Convert standardised images (b, c, h, w) to intensities from 0 to 1, clipped."""
        span = max(self.high - self.low, 1e-12)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((images * std + (mean - self.low)) / span).clamp(0.0, 1.0)


class Encoder:
    """From images to the input of every step.

    Attributes:
        step_shape: channels, height, width of one step's input.
        spikes: whether its output is spikes (otherwise currents).
        noisy: whether it needs noise: uniform numbers in [0, 1), shape (b, *noise_shape).
        noise_shape: T, c, h, w.
    """

    def __init__(
        self, settings: Direct | Poisson | Latency | Delta, time_steps: int, shape: tuple[int, int, int], pixels: Pixels
    ) -> None:
        self._settings, self._time_steps, self._pixels = settings, time_steps, pixels
        self._encode = _ENCODERS[type(settings)]
        self.spikes = not isinstance(settings, Direct)
        self.noisy = isinstance(settings, Poisson)
        self.noise_shape = (time_steps, *shape)
        self.step_shape = shape
        if isinstance(settings, Delta):
            if shape[0] != time_steps:
                raise ConfigError(
                    f"workload.encoder: 'delta' reads an image's channels as successive frames, one for each of "
                    f"workload.time_steps = {time_steps} steps, but the data has {shape[0]} channels. Set time_steps "
                    f"to the number of frames, or another encoder for still images"
                )
            self.step_shape = (2 if settings.off_events else 1, *shape[1:])

    def __call__(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode a batch.

        Args:
            images: standardised images (b, c, h, w), float32.
            noise: for a noisy encoder, see `noise_shape`.

        Returns:
            Shape (T, b, *step_shape), or (1, b, *step_shape) for a current that does not change; float32.
        """
        return self._encode(self._settings, self._time_steps, self._pixels, images, noise)


def _direct(settings: Direct, time_steps: int, pixels: Pixels, images: Tensor, noise: Tensor | None) -> Tensor:
    values = pixels.intensity(images) if settings.values == "unit" else images
    return (values if settings.gain == 1.0 else values * settings.gain).unsqueeze(0)


def _poisson(settings: Poisson, time_steps: int, pixels: Pixels, images: Tensor, noise: Tensor | None) -> Tensor:
    if noise is None:
        raise ValueError("the Poisson encoder needs noise of shape (b, T, c, h, w), got None")
    probability = pixels.intensity(images) * settings.gain
    return (noise.transpose(0, 1) < probability).to(images.dtype)


def _latency(settings: Latency, time_steps: int, pixels: Pixels, images: Tensor, noise: Tensor | None) -> Tensor:
    intensity = pixels.intensity(images)
    due = ((1.0 - intensity) * (time_steps - 1)).round()
    steps = torch.arange(time_steps, device=images.device).view(-1, 1, 1, 1, 1)
    return ((due == steps) & (intensity > settings.floor)).to(images.dtype)


def _delta(settings: Delta, time_steps: int, pixels: Pixels, images: Tensor, noise: Tensor | None) -> Tensor:
    change = pixels.intensity(images).diff(dim=1, prepend=torch.zeros_like(images[:, :1])).transpose(0, 1)
    events = [change >= settings.threshold]
    if settings.off_events:
        events.append(change <= -settings.threshold)
    return torch.stack(events, 2).to(images.dtype)


_ENCODERS: dict[type, Callable[..., Tensor]] = {
    Direct: _direct,
    Poisson: _poisson,
    Latency: _latency,
    Delta: _delta,
}


def row_noise(seed: int, part: str, rows: Array, shape: tuple[int, ...]) -> Tensor:
    """Return noise per example, independent of its place in a batch.

    Args:
        seed: the same seed gives the same noise: what "before" and "after" must share.
        part: `train` or `test`: which rows are meant.
        rows: row numbers, shape (n,), int64.
        shape: shape of one example's noise.

    Returns:
        Uniform numbers in [0, 1), shape (n, *shape), float32.
    """
    noise = np.empty((len(rows), *shape), np.float32)
    for place, row in enumerate(rows.tolist()):
        generator(seed, "encoder", part, row).random(out=noise[place], dtype=np.float32)
    return torch.from_numpy(noise)

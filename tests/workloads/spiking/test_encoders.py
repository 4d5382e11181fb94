"""Encoders' exact outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedloom.core.errors import ConfigError
from fedloom.workloads._spiking.encoders import Encoder, Pixels, row_noise
from fedloom.workloads._spiking.settings import Delta, Direct, Latency, Poisson

AS_THEY_ARE = Pixels(mean=(0.0,), std=(1.0,), low=0.0, high=1.0)


def encode(settings: Any, steps: int, values: Any, noise: Any = None, pixels: Pixels = AS_THEY_ARE) -> Any:
    images = torch.tensor(values, dtype=torch.float32)
    channels, height, width = images.shape[1:]
    encoder = Encoder(settings, steps, (channels, height, width), pixels)
    out = encoder(images, None if noise is None else torch.tensor(noise, dtype=torch.float32))
    assert out.shape[1:] == (len(images), *encoder.step_shape)
    assert out.dtype == torch.float32
    return out


def test_direct_is_one_constant_step() -> None:
    assert encode(Direct(gain=2.0), 5, [[[[-0.5, 0.25]]]]).tolist() == [[[[[-1.0, 0.5]]]]]


def test_unit_values_undo_the_standardisation() -> None:
    raw = np.array([2.0, 4.0, 10.0])
    mean, std = raw.mean(), raw.std()
    standardised = ((raw - mean) / std).astype(np.float32).reshape(3, 1, 1, 1)
    pixels = Pixels.of(standardised, [mean], [std])
    np.testing.assert_allclose([pixels.low, pixels.high], [2.0, 10.0], rtol=1e-6)
    got = encode(Direct(values="unit"), 2, standardised, pixels=pixels).flatten()
    np.testing.assert_allclose(got, [0.0, 0.25, 1.0], atol=1e-6)


def test_values_outside_the_training_set_are_clipped() -> None:
    assert encode(Direct(values="unit"), 2, [[[[-0.5, 1.5]]]]).flatten().tolist() == [0.0, 1.0]


def test_poisson_spikes_where_the_noise_is_below_the_intensity() -> None:
    noise = [[[[[0.0, 0.49]]], [[[0.2, 0.51]]], [[[0.99, 0.5]]]]]  # (b, T, c, h, w)
    assert encode(Poisson(), 3, [[[[0.0, 0.5]]]], noise).flatten(1).tolist() == [[0, 1], [0, 0], [0, 0]]
    assert encode(Poisson(gain=2.0), 3, [[[[0.0, 0.5]]]], noise).flatten(1).tolist() == [[0, 1], [0, 1], [0, 1]]


def test_poisson_without_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="needs noise"):
        encode(Poisson(), 3, [[[[0.5]]]])


def test_latency_spikes_once_and_the_brighter_the_earlier() -> None:
    got = encode(Latency(), 5, [[[[1.0, 0.75, 0.5, 0.02, 0.005]]]]).flatten(1)
    assert got.T.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]


def test_delta_turns_changes_between_frames_into_events() -> None:
    frames = [[[[0.5]], [[0.25]], [[0.25]], [[1.0]]]]  # four frames of one pixel: +0.5, -0.25, 0, +0.75
    both = encode(Delta(threshold=0.25), 4, frames).flatten(1)
    assert both.tolist() == [[1, 0], [0, 1], [0, 0], [1, 0]]
    only_up = encode(Delta(threshold=0.25, off_events=False), 4, frames).flatten(1)
    assert only_up.tolist() == [[1], [0], [0], [1]]


def test_delta_refuses_still_images() -> None:
    with pytest.raises(ConfigError, match=r"time_steps = 4 steps, but the data has 1 channels"):
        Encoder(Delta(), 4, (1, 8, 8), AS_THEY_ARE)


def test_noise_belongs_to_the_row() -> None:
    rows = np.array([7, 3, 9])
    noise = row_noise(11, "train", rows, (2, 1, 3, 3))
    assert noise.shape == (3, 2, 1, 3, 3)
    assert noise.dtype == torch.float32
    assert torch.equal(row_noise(11, "train", rows[::-1], (2, 1, 3, 3)), noise.flip(0))
    assert not torch.equal(row_noise(12, "train", rows, (2, 1, 3, 3)), noise)
    assert not torch.equal(row_noise(11, "test", rows, (2, 1, 3, 3)), noise)
    assert 0.0 <= float(noise.min()) < float(noise.max()) < 1.0

"""The forward model: adjoints, full sampling, projections, and masks in fastMRI's definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedloom.core.errors import ConfigError
from fedloom.core.records import Array
from fedloom.workloads.mri_unlearning.config import MaskSettings
from fedloom.workloads.mri_unlearning.masks import centre_columns, make_mask, true_acceleration
from fedloom.workloads.mri_unlearning.operators import (
    adjoint,
    combine,
    expand,
    fft2c,
    forward,
    ifft2c,
    measured_part,
    rss,
)


def complex_noise(*shape: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def maps_of(coils: int, height: int, width: int) -> torch.Tensor:
    maps = complex_noise(2, coils, height, width, seed=3)
    return maps / rss(maps).unsqueeze(1)


def some_mask(width: int) -> torch.Tensor:
    return torch.from_numpy(
        make_mask(MaskSettings(acceleration=3, centre_fraction=0.2), width, np.random.default_rng(1))
    )


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (9, 5)])
def test_the_transform_is_numpys_centred_orthonormal_one_and_its_inverse_is_its_adjoint(size: tuple[int, int]) -> None:
    x, y = complex_noise(3, *size), complex_noise(3, *size, seed=1)
    axes = (-2, -1)
    wanted = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x.numpy(), axes), axes=axes, norm="ortho"), axes)
    assert np.allclose(fft2c(x).numpy(), wanted, atol=1e-12)
    assert torch.allclose(ifft2c(fft2c(x)), x, atol=1e-12)
    assert torch.allclose((fft2c(x).conj() * y).sum(), (x.conj() * ifft2c(y)).sum(), atol=1e-10)


@pytest.mark.parametrize("coils", [1, 4])
def test_u1_the_adjoint_of_the_measurement_is_its_adjoint(coils: int) -> None:
    maps, mask = maps_of(coils, 12, 15), some_mask(15)
    x, k = complex_noise(2, 12, 15), complex_noise(2, coils, 12, 15, seed=2)
    there, back = (forward(x, maps, mask).conj() * k).sum(), (x.conj() * adjoint(k, maps, mask)).sum()
    assert abs(complex(there - back)) <= 1e-10 * abs(complex(there))
    assert torch.allclose((expand(x, maps).conj() * k).sum(), (x.conj() * combine(k, maps)).sum(), atol=1e-10)


def test_u1_a_full_mask_reconstructs() -> None:
    x, maps, full = complex_noise(2, 12, 15), maps_of(4, 12, 15), torch.ones(15, dtype=torch.bool)
    assert torch.allclose(adjoint(forward(x, maps, full), maps, full), x, atol=1e-10)
    assert torch.allclose(measured_part(x, maps, full), x, atol=1e-10)


def test_u1_the_measured_part_of_one_coil_is_the_masked_transform() -> None:
    x, mask = complex_noise(2, 12, 15), some_mask(15)
    ones = torch.ones(2, 1, 12, 15, dtype=torch.complex128)
    wanted = ifft2c(fft2c(x) * mask)
    assert torch.allclose(measured_part(x, ones, mask), wanted, atol=1e-10)


def test_u1_the_measured_part_is_a_projection_with_several_coils() -> None:
    maps, mask, x = maps_of(2, 6, 9), some_mask(9), complex_noise(2, 6, 9)
    once = measured_part(x, maps, mask, steps=200)
    again = measured_part(once, maps, mask, steps=200)
    assert float((again - once).abs().max()) <= 1e-5 * float(once.abs().max())
    # what is left is invisible to the scanner
    unseen = forward(x - once, maps, mask).abs().max()
    assert float(unseen) <= 1e-5 * float(forward(x, maps, mask).abs().max())


@pytest.mark.parametrize(("width", "fraction", "count"), [(320, 0.04, 13), (96, 0.04, 4), (64, 0.08, 5), (50, 0.08, 4)])
def test_u2_the_centre_has_the_rounded_share_of_columns(width: int, fraction: float, count: int) -> None:
    centre = centre_columns(width, fraction)
    assert centre.stop - centre.start == count == round(width * fraction)
    middle = (centre.start + centre.stop - 1) / 2
    assert abs(middle - width / 2) <= 0.5  # column width // 2 is the zero frequency
    assert centre.start <= width // 2 < centre.stop


def test_u2_equispaced_columns_are_r_apart_from_every_offset() -> None:
    settings, offsets = MaskSettings(acceleration=8, centre_fraction=0.04), set[int]()
    for seed in range(60):
        mask = make_mask(settings, 320, np.random.default_rng(seed))
        centre = centre_columns(320, 0.04)
        outside = np.flatnonzero(mask & ~_inside(centre, 320))
        offsets.add(int(outside[0]))
        assert set(outside % 8) == {outside[0]} and mask[centre].all()
        assert mask.sum() == 40 + 13 - len([c for c in range(320)[centre] if c % 8 == outside[0]])
        assert 5.9 < true_acceleration(mask) < 6.6
    assert offsets == set(range(8))


def test_u2_the_other_kinds_sample_one_of_r_columns() -> None:
    for kind in ("equispaced_fraction", "random"):
        settings = MaskSettings(kind=kind, acceleration=4, centre_fraction=0.08)
        counts = [int(make_mask(settings, 368, np.random.default_rng(seed)).sum()) for seed in range(300)]
        assert abs(np.mean(counts) - 92) < 2.0
    spread = [
        make_mask(MaskSettings(kind="equispaced_fraction"), 368, np.random.default_rng(s)).sum() for s in range(50)
    ]
    assert max(spread) - min(spread) <= 2


def test_a_mask_is_its_seeds() -> None:
    settings = MaskSettings(kind="random")
    first, second = (make_mask(settings, 64, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, make_mask(settings, 64, np.random.default_rng(6)))


def test_masks_that_sample_no_centre_or_too_much_of_it_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"centre_fraction: 0.005 of 64 columns is no column"):
        make_mask(MaskSettings(centre_fraction=0.005), 64, np.random.default_rng(0))
    for kind in ("random", "equispaced_fraction"):
        with pytest.raises(ConfigError, match=r"the centre of 32 columns is more than 1 of 4 of 64"):
            make_mask(MaskSettings(kind=kind, centre_fraction=0.5), 64, np.random.default_rng(0))


def _inside(centre: slice, width: int) -> Array:
    found = np.zeros(width, bool)
    found[centre] = True
    return found

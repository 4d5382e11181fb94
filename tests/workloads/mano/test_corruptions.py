"""The corruption bank: the same for an image whatever surrounds it, stronger with severity, right where it is exact."""

from itertools import pairwise

import numpy as np
import pytest

from fedloom.strategies.mano.workload.corruptions.sampling import grid, sampled
from fedloom.strategies.mano.workload.corruptions.suite import CORRUPTIONS, SEVERITIES, corrupted

IMAGES = np.random.default_rng(4).random((6, 1, 14, 14)).astype(np.float32)
ROWS = np.arange(100, 106)


def spoil(name: str, severity: int = 3, bank: str = "mild", images: np.ndarray = IMAGES, rows: np.ndarray = ROWS):  # type: ignore[no-untyped-def]
    return corrupted(images, name, severity, bank=bank, seed=7, rows=rows)  # type: ignore[arg-type]


def test_there_are_twenty_in_four_families_and_harsh_is_harsher() -> None:
    assert len(CORRUPTIONS) == 20
    assert {each.family for each in CORRUPTIONS.values()} == {"noise", "blur", "geometric", "photometric"}
    for each in CORRUPTIONS.values():
        for bank in (each.mild, each.harsh):
            assert len(bank) == len(SEVERITIES) and list(bank) == sorted(set(bank))
        assert all(harsh > mild for mild, harsh in zip(each.mild, each.harsh, strict=True))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_alone_and_in_a_batch(name: str) -> None:
    whole = spoil(name)
    assert whole.shape == IMAGES.shape and whole.dtype == np.float32
    assert whole.min() >= 0 and whole.max() <= 1
    order = [4, 1]
    assert np.array_equal(spoil(name, images=IMAGES[order], rows=ROWS[order]), whole[order])
    assert np.array_equal(spoil(name), whole)
    colour = np.repeat(IMAGES, 3, axis=1)
    assert spoil(name, images=colour).shape == colour.shape


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_move_an_image_farther_and_farther(name: str) -> None:
    y, x = np.mgrid[0:28, 0:28]
    smooth = np.stack([0.5 + 0.4 * np.sin(x / (3 + k)) * np.cos(y / 4) for k in range(8)])[:, None].astype(np.float32)
    smooth = smooth * (np.hypot(x - 13.5, y - 13.5) < 11)  # an object on an empty ground, so that movements show

    def distance(bank: str, severity: int) -> float:
        moved = spoil(name, severity, bank, smooth.astype(np.float32), np.arange(8))
        return float(np.sqrt(((moved - smooth) ** 2).mean()))

    mild = [distance("mild", severity) for severity in SEVERITIES]
    assert mild[0] > 0 and mild[4] > 1.5 * mild[0] and all(b >= a * 0.98 for a, b in pairwise(mild))
    assert distance("harsh", 5) > mild[4]


def test_noise_has_the_stated_strength() -> None:
    grey = np.full((20, 1, 28, 28), 0.5, np.float32)
    rows = np.arange(20)
    assert (spoil("gaussian_noise", 3, images=grey, rows=rows) - 0.5).std() == pytest.approx(0.08, rel=0.05)
    assert (spoil("speckle_noise", 2, images=grey, rows=rows) - 0.5).std() == pytest.approx(0.5 * 0.15, rel=0.05)
    assert (spoil("shot_noise", 3, images=grey, rows=rows)).std() == pytest.approx((0.5 * 0.04) ** 0.5, rel=0.05)
    assert (spoil("impulse_noise", 5, images=grey, rows=rows) != 0.5).mean() == pytest.approx(0.15, rel=0.1)


def test_reading_between_pixels() -> None:
    image = np.zeros((1, 1, 3, 3))
    image[0, 0, 1, 1] = 1.0
    down, right = grid(image)
    assert np.array_equal(sampled(image, down, right), image)
    half = sampled(image, down, right + 0.5)[0, 0]  # half of the point seen from each side
    assert half[1].tolist() == [0.5, 0.5, 0.0] and half[[0, 2]].sum() == 0
    assert sampled(image, down + 2, right).sum() == 0  # from outside comes nothing


def test_exact_photometry() -> None:
    image = np.array([[[[0.0, 0.25], [0.5, 1.0]]]], np.float32)
    rows = np.array([0])
    assert spoil("brightness", 2, images=image, rows=rows).ravel() == pytest.approx([0.1, 0.35, 0.6, 1.0])
    assert spoil("inversion", 5, "harsh", image, rows).ravel() == pytest.approx([1.0, 0.75, 0.5, 0.0])
    assert spoil("gamma", 1, "harsh", image, rows).ravel() == pytest.approx([0.0, 0.0625, 0.25, 1.0])
    assert spoil("contrast", 1, images=image, rows=rows).mean() == pytest.approx(image.mean())
    blocks = spoil("pixelate", 5, "harsh", np.arange(9.0).reshape(1, 1, 3, 3) / 10, rows)
    assert blocks[0, 0].ravel() == pytest.approx(np.arange(9) / 10)  # three blocks of one pixel
    assert (spoil("occlusion", 5, images=IMAGES) == 0.5).sum() >= 6 * 36

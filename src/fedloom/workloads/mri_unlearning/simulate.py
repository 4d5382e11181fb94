"""Simulated multi-coil acquisitions of magnitude images: smooth phase and coils, complex noise."""

from __future__ import annotations

import math

import numpy as np

from fedloom.core.errors import ConfigError
from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.workloads.mri_unlearning.config import Simulated
from fedloom.workloads.mri_unlearning.volume_set import Acquired, VolumeSet
from fedloom.workloads.mri_unlearning.volumes import Volume, load_volumes

_SLABS, _HELD = 6, (1, 4)
"""Slabs that a volume is cut into, and those that are held out."""
_GAP = 5.0
"""Distance between held-out and training slices; mm."""


def simulated(settings: Simulated, seed: int) -> VolumeSet:
    """Return the acquisitions of a simulated set; equal settings and seeds give equal bits.

    Raises:
        DataMissing: a volume is not on this machine.
        ConfigError: a volume has too few slices.
    """
    train, test, site = list[Acquired](), list[Acquired](), 0
    files = []
    for anatomy in (*settings.retain, *settings.forget):
        volumes, found = load_volumes(anatomy)
        files += found
        forget = anatomy in settings.forget
        count = settings.forget_slices if forget else settings.slices
        pieces = [_pieces(volume) for volume in volumes]
        kept = _spread([place for fit, _ in pieces for place in fit], count)
        sites = 1 if forget else settings.sites
        if len(kept) < sites:
            raise ConfigError(f"workload.data.sites: {anatomy!r} has {len(kept)} training slices, fewer than {sites}")
        for part, places in enumerate(np.array_split(np.array(kept, np.int64), sites)):
            train += _acquire(settings, seed, (anatomy, "train"), places, volumes, (site + part, forget))
        site += sites
        for slab in range(len(_HELD)):
            held = [place for _, groups in pieces for place in groups[slab]]
            held = _spread(held, max(settings.test_slices // len(_HELD), 1))
            test += _acquire(settings, seed, (anatomy, f"slab {_HELD[slab]}"), held, volumes, (site - 1, forget))
    return VolumeSet(
        train=train,
        test=test,
        anatomies=(*settings.retain, *settings.forget),
        files=files,
        info={"name": "simulated acquisitions of " + ", ".join((*settings.retain, *settings.forget))},
    )


Place = tuple[int, int]
"""Contrast and slice."""


def _pieces(volume: Volume) -> tuple[list[Place], list[list[Place]]]:
    """Return the training slices of a volume, and its held-out slabs' slices; slices that are nearly empty are left."""
    means = volume.images.mean((1, 2))
    usable = np.flatnonzero(means > 0.35 * means.max())
    slabs, gap = np.array_split(usable, _SLABS), max(1, math.ceil(_GAP / volume.spacing))
    train = [int(place) for number, slab in enumerate(slabs) if number not in _HELD for place in slab]
    held = [slabs[number] if len(slabs[number]) <= 2 * gap else slabs[number][gap:-gap] for number in _HELD]
    near = {int(place) for slab in held for middle in slab for place in range(middle - gap, middle + gap + 1)}
    return (
        [(volume.contrast, place) for place in train if place not in near],
        [[(volume.contrast, int(place)) for place in slab] for slab in held],
    )


def _spread(places: list[Place], count: int) -> list[Place]:
    """Return at most `count` of some slices, evenly spaced."""
    if not places:
        raise ConfigError("workload.data: a volume has no slice for training or none to hold out")
    return [places[round(n)] for n in np.linspace(0, len(places) - 1, min(count, len(places)))]


def _acquire(
    settings: Simulated,
    seed: int,
    name: tuple[str, str],
    places: Array | list[Place],
    volumes: list[Volume],
    where: tuple[int, bool],
) -> list[Acquired]:
    """Return the acquisitions of some slices, one volume per contrast."""
    found, (site, forget) = [], where
    for contrast in sorted({int(place[0]) for place in places}):
        rows = [int(number) for each, number in places if each == contrast]
        images = np.stack([resized(volumes[contrast].images[row], settings.size) for row in rows])
        images /= max(float(images.max()), 1e-6)
        title = f"{name[0]}, {name[1]}" + (f", contrast {contrast}" if len(volumes) > 1 else "")
        rng = generator(seed, "mri", title, site)
        kspace = acquired(images, settings.coils, settings.noise, rng)
        found.append(Acquired(title, name[0], site, forget, kspace, images.astype(np.float32)))
    return found


def resized(image: Array, size: int) -> Array:
    """Return an image padded to a square and resampled (area means, or linear), (size, size), float32."""
    import torch
    import torch.nn.functional as F

    side = max(image.shape)
    pad = [side - length for length in image.shape]
    square = np.pad(image, [(each // 2, each - each // 2) for each in pad])
    mode = "area" if side >= size else "bilinear"
    found = F.interpolate(torch.from_numpy(np.ascontiguousarray(square))[None, None], (size, size), mode=mode)
    return np.asarray(found[0, 0].numpy())


def acquired(images: Array, coils: int, noise: float, rng: np.random.Generator) -> Array:
    """Return noisy fully sampled k-space, (n, coils, h, w) complex64, of images (n, h, w).

    Each image has coils and a phase of its own: with one set for all, a network learns the set.
    """
    size = images.shape[-2:]
    views = [image * np.exp(1j * np.pi * _smooth(size, rng)) * coil_maps(coils, size, rng) for image in images]
    kspace = _fft2c(np.stack(views))
    white = rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape)
    return np.asarray((kspace + noise * white).astype(np.complex64))


def coil_maps(coils: int, size: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return sensitivities of coils on a circle, (coils, h, w) complex, root-sum-of-squares 1 everywhere."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, length) for length in size), indexing="ij")
    turn, maps = rng.uniform(0, 2 * np.pi), []
    for coil in range(coils):
        angle = turn + 2 * np.pi * coil / coils
        distance = (x - 1.3 * np.cos(angle)) ** 2 + (y - 1.3 * np.sin(angle)) ** 2
        slope = rng.normal(0, 0.6, 2)
        maps.append(np.exp(-distance / 2.2) * np.exp(1j * (rng.uniform(0, 2 * np.pi) + slope[0] * x + slope[1] * y)))
    found = np.stack(maps)
    return np.asarray(found / np.sqrt((np.abs(found) ** 2).sum(0)))


def _smooth(size: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return a smooth random map, of low order, between about -1 and 1."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, length) for length in size), indexing="ij")
    a = rng.normal(0, 0.3, 5)
    return np.asarray(a[0] * x + a[1] * y + a[2] * x * y + a[3] * (x**2 - 0.3) + a[4] * (y**2 - 0.3))


def _fft2c(images: Array) -> Array:
    axes = (-2, -1)
    shifted = np.fft.ifftshift(images, axes)
    return np.asarray(np.fft.fftshift(np.fft.fft2(shifted, axes=axes, norm="ortho"), axes))

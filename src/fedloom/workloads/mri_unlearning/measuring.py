"""Reconstructions of held-out volumes, and what they are judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.records import Array, Mean
from fedloom.workloads.mri_unlearning.acquisitions import Acquisitions, Sample
from fedloom.workloads.mri_unlearning.audit import auc, hallucination, kolmogorov_smirnov
from fedloom.workloads.mri_unlearning.losses import psnr, ssim
from fedloom.workloads.mri_unlearning.nets import cropped
from fedloom.workloads.mri_unlearning.operators import ifft2c, rss

ZERO_FILLED = "zero_filled"
"""The reconstruction without a network, as a model's name."""
_PARTS = ("bta", "kta", "ua")
"""Tests: retain slices, forget slices, and the forget slices that were trained on."""


@dataclass(slots=True)
class _Found:
    """One model's values on one of the tests."""

    volumes: list[float] = field(default_factory=list)
    """PSNR of each volume, dB."""
    ssim: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    """PSNR of each slice, dB."""
    errors: list[float] = field(default_factory=list)
    """Normalised squared error of each slice, ‖x - y‖² / ‖y‖²."""
    invented: list[float] = field(default_factory=list)
    unfaithful: list[float] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    """‖x - oracle(y)‖ / ‖oracle(y)‖ of each slice."""


@torch.inference_mode()
def measured(
    nets: Mapping[str, nn.Module], source: Acquisitions, volumes: Sequence[int], trained: frozenset[int]
) -> Mapping[str, Mean]:
    """Return the metrics of models on some volumes.

    Args:
        nets: by name.
        source: held-out volumes, and those of forget slices that were trained on.
        volumes: numbers of volumes.
        trained: those whose slices were trained on.

    Returns:
        `bta_db`, `kta_db`, `ua_db` (mean PSNR of volumes) and `…_ssim` (mean of slices) with `_<model>` behind;
        `invented`, `unfaithful` (H and D on retain slices); `membership` (AUC), `distance` and `ks` to the oracle on
        forget slices. Each only where there are such volumes.
    """
    found = {name: {part: _Found() for part in _PARTS} for name in (ZERO_FILLED, *nets)}
    for volume in volumes:
        part = "ua" if volume in trained else "kta" if source.volumes[volume].forget else "bta"
        sample = source.held_out(torch.from_numpy(source.rows_of(volume)))
        images = {ZERO_FILLED: cropped(rss(ifft2c(sample.measured)), sample.target)}
        for name, net in nets.items():
            images[name] = cropped(net(sample.measured, sample.mask, sample.centre), sample.target)
        maps = _maps(source, volume) if part == "bta" else None
        for name, image in images.items():
            _add(found[name][part], image, sample, maps)
            if part == "kta" and "oracle" in images:
                gold = images["oracle"].double().flatten(1)
                apart = (image.double().flatten(1) - gold).norm(dim=1) / gold.norm(dim=1).clamp_min(1e-12)
                found[name][part].distances += apart.tolist()
    metrics = dict[str, Mean]()
    for name, parts in found.items():
        metrics |= {f"{key}_{name}": mean for key, mean in _means(parts, found.get("oracle")).items()}
    return metrics


def _maps(source: Acquisitions, volume: int) -> Tensor | None:
    """Return sensitivities from the full k-space, which have the image's phase; None if references are cropped."""
    (kspace,), target = source.batch(torch.from_numpy(source.rows_of(volume)))
    if kspace.shape[-2:] != target.shape[-2:]:
        return None
    images = ifft2c(kspace)
    return images / rss(images).clamp_min(1e-9).unsqueeze(1)


def _add(found: _Found, image: Tensor, sample: Sample, maps: Tensor | None) -> None:
    top = float(sample.ranges[0])
    squared = (image.double() - sample.target.double()).square()
    found.volumes.append(psnr(float(squared.mean()), top))
    found.psnr += [psnr(float(each), top) for each in squared.mean((1, 2))]
    found.ssim += ssim(image, sample.target, sample.ranges).tolist()
    energy = sample.target.double().square().sum((1, 2)).clamp_min(1e-12)
    found.errors += (squared.sum((1, 2)) / energy).tolist()
    if maps is not None:
        invented, unfaithful = hallucination(image, sample.target, maps, sample.mask)
        found.invented += invented.tolist()
        found.unfaithful += unfaithful.tolist()


def _means(parts: Mapping[str, _Found], oracle: Mapping[str, _Found] | None) -> Mapping[str, Mean]:
    metrics = dict[str, Mean]()
    for part, each in parts.items():
        metrics |= {f"{part}_db": _mean(each.volumes), f"{part}_ssim": _mean(each.ssim)} if each.ssim else {}
    test, member = parts["kta"], parts["ua"]
    pairs = {"invented": parts["bta"].invented, "unfaithful": parts["bta"].unfaithful, "distance": test.distances}
    metrics |= {name: _mean(values) for name, values in pairs.items() if values}
    if test.errors and member.errors:
        metrics["membership"] = Mean(auc(np.array(member.errors), np.array(test.errors)), 1.0)
    if oracle is not None and test.psnr:
        metrics["ks"] = Mean(kolmogorov_smirnov(np.array(test.psnr), np.array(oracle["kta"].psnr)), 1.0)
    return metrics


def _mean(values: Sequence[float] | Array) -> Mean:
    return Mean(float(np.sum(values)), float(len(values)))

"""Measures a codec on photographs: real bytes, PSNR, MS-SSIM, and other formats at the same PSNR."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedloom.core.records import Array, Mean
from fedloom.workloads.llic.bitstream import ImageCodec, as_images, as_pixels
from fedloom.workloads.llic.config import Config, Rival
from fedloom.workloads.llic.net import Codec, padded
from fedloom.workloads.llic.photographs import Photograph
from fedloom.workloads.llic.pixels import Pixels
from fedloom.workloads.llic.quality import LEAST_SIDE, ms_ssim, psnr
from fedloom.workloads.llic.rate import Curve, rate_at
from fedloom.workloads.llic.rivals import points


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One photograph through a codec."""

    bits: int
    """Of the whole file."""
    mse: float
    """Of 8-bit values."""
    ms_ssim: float | None
    """None for photographs that are too small for it."""
    estimated: float
    """Ideal code length of the symbols; bits."""
    seconds: tuple[float, float]
    """CPU seconds of encoding and decoding."""
    decoded: Array
    """(H, W, 3), uint8."""


def similarity(decoded: Array, rgb: Array) -> float | None:
    """Return the MS-SSIM of pixels (H, W, 3); None if a side is shorter than 161."""
    if min(rgb.shape[:2]) < LEAST_SIDE:
        return None
    return float(ms_ssim(as_images(decoded), as_images(rgb)))


def measure(codec: ImageCodec, photograph: Photograph) -> Measured:
    """Encode and decode a photograph."""
    begin = time.process_time()
    container = codec.encode(Pixels(photograph.rgb))
    middle = time.process_time()
    decoded = codec.decode(container).rgb
    end = time.process_time()
    error = float(np.square(decoded.astype(np.float64) - photograph.rgb).mean())
    with torch.inference_mode():
        estimated = codec.codec.estimate(as_images(photograph.rgb)).total
    return Measured(
        bits=8 * len(container.pack()),
        mse=error,
        ms_ssim=similarity(decoded, photograph.rgb),
        estimated=estimated,
        seconds=(middle - begin, end - middle),
        decoded=decoded,
    )


class Rivals:
    """Other formats' curves of photographs, computed once.

    Args:
        photographs: held-out ones.
    """

    def __init__(self, photographs: Sequence[Photograph]) -> None:
        self._photographs = photographs
        self._curves: dict[tuple[Rival, int], list[tuple[float, float]]] = {}

    def curve(self, rival: Rival, row: int) -> list[tuple[float, float]]:
        """Return bits per pixel and PSNR of a photograph at each quality of a format."""
        if (rival, row) not in self._curves:
            rgb = self._photographs[row].rgb
            pixels = rgb.shape[0] * rgb.shape[1]
            found = [(each.bits / pixels, psnr(each.mse(rgb))) for each in points(rival, rgb)]
            self._curves[rival, row] = [pair for pair in found if np.isfinite(pair[1])]
        return self._curves[rival, row]

    def rate_at(self, rival: Rival, row: int, quality: float) -> float | None:
        """Return the bits per pixel that a format needs for a PSNR; None outside its range."""
        rates, qualities = zip(*self.curve(rival, row), strict=True)
        return rate_at(Curve.of(rates, qualities), quality)


def as_metrics(found: Sequence[tuple[int, Photograph, Measured]], config: Config, rivals: Rivals) -> dict[str, Mean]:
    """Return the means over photographs of what was measured.

    `FORMAT_bits_at_equal_psnr` are bits per pixel of a format at each photograph's PSNR, `bits_against_FORMAT` the
    codec's bits over the format's, both over the photographs whose PSNR the format reaches.
    """
    sums: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        sums.setdefault(name, []).append(value)

    for row, photograph, each in found:
        pixels = photograph.rgb.shape[0] * photograph.rgb.shape[1]
        rate, quality = each.bits / pixels, psnr(each.mse)
        add("bits_per_pixel", rate)
        add("estimated_bits_per_pixel", each.estimated / pixels)
        add("psnr", min(quality, 100.0))
        add("mse", each.mse)
        if each.ms_ssim is not None:
            add("ms_ssim", each.ms_ssim)
        distortion = distortion_of(config, each.mse, each.ms_ssim)
        if distortion is not None:
            add("loss", rate + config.trade_off * distortion)
        for rival in config.rivals:
            needed = rivals.rate_at(rival, row, quality)
            if needed is not None:
                add(f"{rival}_bits_at_equal_psnr", needed)
                add(f"bits_against_{rival}", rate / needed)
    return {name: Mean(float(np.sum(values)), float(len(values))) for name, values in sums.items()}


def distortion_of(config: Config, mse: float, similar: float | None) -> float | None:
    """Return D of a photograph; None where MS-SSIM is wanted and not defined."""
    if config.loss == "mse":
        return mse
    return None if similar is None else 1.0 - similar


def transform_metrics(codec: Codec, photographs: Sequence[Photograph], config: Config) -> dict[str, Mean]:
    """Return qualities of photographs whose latents are rounded to whole numbers: what the transforms alone are worth.

    `loss` is lambda times the distortion.
    """
    sums: dict[str, list[float]] = {}
    with torch.inference_mode():
        for photograph in photographs:
            height, width = photograph.rgb.shape[:2]
            y = torch.round(codec.analysis(padded(as_images(photograph.rgb))))
            decoded = as_pixels(codec.synthesis(y)[:, :, :height, :width])
            error = float(np.square(decoded.astype(np.float64) - photograph.rgb).mean())
            similar = similarity(decoded, photograph.rgb)
            distortion = distortion_of(config, error, similar)
            found = {"psnr": min(psnr(error), 100.0), "mse": error, "ms_ssim": similar}
            found["loss"] = None if distortion is None else config.trade_off * distortion
            for name, value in found.items():
                if value is not None:
                    sums.setdefault(name, []).append(value)
    return {name: Mean(float(np.sum(values)), float(len(values))) for name, values in sums.items()}

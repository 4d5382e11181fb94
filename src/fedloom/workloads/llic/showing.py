"""What a report shows of a codec: curves of other formats, photographs side by side, receptive fields."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch

from fedloom.core.records import Array, JsonObject
from fedloom.workloads.llic.bitstream import ImageCodec, as_images
from fedloom.workloads.llic.config import PAD, Rival
from fedloom.workloads.llic.fields import SHARES, adaptivity, area_shares, receptive_field
from fedloom.workloads.llic.measuring import Measured, measure, similarity
from fedloom.workloads.llic.photographs import Photograph
from fedloom.workloads.llic.quality import LEAST_SIDE, psnr
from fedloom.workloads.llic.rivals import TITLES, Point, missing, points

_SIDE = 144
"""Side of the pictures; pixels."""
_FIELD_SIDE = 256
_CELLS = 32
"""Cells to a side of a receptive field's map."""
_ADAPTED = 4
"""Photographs that adaptivity is measured on, at most."""


def codec_report(
    codec: ImageCodec, photographs: Sequence[Photograph], *, pictures: int, rivals: Sequence[Rival]
) -> JsonObject:
    """Return a codec's lines for a report, as JSON.

    Args:
        codec: of the global model.
        photographs: held-out ones.
        pictures: photographs of which a part is shown.
        rivals: other formats; those that are missing here are named with the reason.
    """
    with torch.inference_mode():
        measured = [measure(codec, each) for each in photographs]
        shown = [each for each in rivals if not missing(each)]
        coded = {rival: [points(rival, each.rgb) for each in photographs] for rival in shown}
        found: JsonObject = {
            "photographs": [_line(each, one) for each, one in zip(photographs, measured, strict=True)],
            "rivals": {rival: _curve(coded[rival], photographs) for rival in shown},
            "missing": {rival: missing(rival) for rival in rivals if missing(rival)},
            "pictures": [
                _pictures(photograph, one, {rival: coded[rival][place] for rival in shown})
                for place, (photograph, one) in enumerate(zip(photographs, measured, strict=True))
                if place < pictures
            ],
            "adaptivity": _adaptivity(codec, photographs),
        }
    found["fields"] = _fields(codec, photographs)
    return found


def _line(photograph: Photograph, one: Measured) -> JsonObject:
    height, width = photograph.rgb.shape[:2]
    return {
        "name": photograph.name,
        "pixels": height * width,
        "bits_per_pixel": one.bits / (height * width),
        "psnr": psnr(one.mse) if one.mse else None,
        "ms_ssim": one.ms_ssim,
        "encode_seconds": one.seconds[0],
        "decode_seconds": one.seconds[1],
    }


def _curve(coded: Sequence[Sequence[Point]], photographs: Sequence[Photograph]) -> JsonObject:
    """Return a format's mean bits per pixel, PSNR and MS-SSIM over photographs, at each quality."""
    rates, qualities, similar = [], [], []
    for points_of_quality in zip(*coded, strict=True):
        pairs = list(zip(points_of_quality, photographs, strict=True))
        rates.append(float(np.mean([point.bits / (each.rgb.size / 3) for point, each in pairs])))
        qualities.append(float(np.mean([min(psnr(point.mse(each.rgb)), 100.0) for point, each in pairs])))
        known = [value for point, each in pairs if (value := similarity(point.decoded, each.rgb)) is not None]
        similar.append(float(np.mean(known)) if known else None)
    return {"bits_per_pixel": rates, "psnr": qualities, "ms_ssim": similar}


def _pictures(photograph: Photograph, one: Measured, coded: dict[Rival, list[Point]]) -> JsonObject:
    """Return the centre of a photograph, decoded by the codec and by other formats with about as many bits."""
    pixels = photograph.rgb.size / 3
    shown = [{"title": "original", "picture": _png(_centre(photograph.rgb))}]
    shown.append(
        {
            "title": f"llic, {one.bits / pixels:.3f} bits per pixel, {psnr(one.mse):.2f} dB",
            "picture": _png(_centre(one.decoded)),
        }
    )
    for rival, found in coded.items():
        point = min(found, key=lambda each: abs(np.log(each.bits / one.bits)))
        title = f"{TITLES[rival]}, {point.bits / pixels:.3f} bits per pixel, {psnr(point.mse(photograph.rgb)):.2f} dB"
        shown.append({"title": title, "picture": _png(_centre(point.decoded))})
    return {"name": photograph.name, "shown": shown}


def _centre(rgb: Array) -> Array:
    top, left = (max((side - _SIDE) // 2, 0) for side in rgb.shape[:2])
    return rgb[top : top + _SIDE, left : left + _SIDE]


def _png(rgb: Array) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _fields(codec: ImageCodec, photographs: Sequence[Photograph]) -> JsonObject:
    """Return receptive fields over the centres of photographs, with and without gradient through generators."""
    sides = [min(side for each in photographs for side in each.rgb.shape[:2]) // PAD * PAD, _FIELD_SIDE]
    side = min(sides)
    if not side:
        return {}
    cut = [each.rgb[: each.rgb.shape[0], : each.rgb.shape[1]] for each in photographs]
    middles = [_middle(rgb, side) for rgb in cut]
    images = torch.cat([as_images(rgb) for rgb in middles])
    found: JsonObject = {"side": side, "shares": list(SHARES)}
    for name, through in (("direct", False), ("whole", True)):
        field = receptive_field(codec.codec, images, through_generators=through)
        cells = min(_CELLS, side)
        coarse = field.reshape(cells, side // cells, cells, side // cells).sum((1, 3))
        found[name] = {"areas": area_shares(field), "map": np.round(np.log10(coarse + 1e-9), 2).tolist()}
    return found


def _middle(rgb: Array, side: int) -> Array:
    top, left = ((each - side) // 2 for each in rgb.shape[:2])
    return np.ascontiguousarray(rgb[top : top + side, left : left + side])


def _adaptivity(codec: ImageCodec, photographs: Sequence[Photograph]) -> JsonObject:
    side = min(side for each in photographs for side in each.rgb.shape[:2]) // PAD * PAD
    if len(photographs) < 2 or not side or (codec.codec.config.loss == "ms_ssim" and side < LEAST_SIDE):
        return {}
    return adaptivity(codec.codec, [as_images(_middle(each.rgb, side)) for each in photographs[:_ADAPTED]])

"""Curves, photographs side by side and receptive fields of the last evaluated round."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedloom.core.records import Info
from fedloom.reporting.axes import Range
from fedloom.reporting.charts import Series, line_chart
from fedloom.reporting.grids import grid_picture
from fedloom.reporting.markup import Markup, table, tag
from fedloom.reporting.page import section
from fedloom.reporting.plugins import Contribution, PlainTable
from fedloom.reporting.quantities import NOTHING
from fedloom.reporting.run_folder import RunFolder
from fedloom.workloads.llic.config import Rival
from fedloom.workloads.llic.rate import Curve, rate_at
from fedloom.workloads.llic.rivals import TITLES

_HEAD = ("format", "bits per pixel at the same PSNR", "llic's bits against it")


def build_report(run: RunFolder) -> Contribution:
    """Return the comparison, pictures, fields, and the numbers that a study compares; none without a reading."""
    infos = [record.monitor for record in run.rounds if record.monitor and "photographs" in record.monitor]
    if not infos:
        return Contribution()
    info = infos[-1]
    lines, own = info["photographs"], _own(info)
    rows = [_row(rival, info, own) for rival in info["rivals"]]
    rows.append(("llic", f"{own['bits_per_pixel']:.3f}", ""))
    parts: list[Markup] = [
        tag("p", _words(info, own)),
        table(_HEAD, rows, caption="Other formats at llic's mean PSNR over the held-out photographs"),
        tag("div", _charts(info, own), class_="charts"),
        _photographs(lines),
    ]
    sections = [section("Compression", *parts)]
    if info["pictures"]:
        sections.append(
            section("Side by side", tag("p", _ABOUT_PICTURES), *(_side_by_side(one) for one in info["pictures"]))
        )
    if info.get("fields"):
        sections.append(section("Receptive fields", *_fields(info)))
    return Contribution(
        sections=tuple(sections),
        numbers=numbers(info, own),
        tables=(PlainTable(head=_HEAD, rows=tuple(rows)),),
    )


_ABOUT_PICTURES = (
    "The centre of a photograph, by each format at the quality whose file is nearest to llic's in bytes. Pictures are "
    "stored without loss."
)


def numbers(info: Info, own: dict[str, float]) -> dict[str, float]:
    """Return the numbers of a reading; NaN where one is not defined."""
    found = {f"codec_{name}": value for name, value in own.items()}
    for rival in info["rivals"]:
        needed = _needed(info["rivals"][rival], own["psnr"])
        found[f"{rival}_curve_bits"] = math.nan if needed is None else needed
    for name, value in info["adaptivity"].items():
        found[name] = math.nan if value is None else float(value)
    for name, each in info.get("fields", {}).items():
        if name in ("direct", "whole"):
            for share, area in zip(info["fields"]["shares"], each["areas"], strict=True):
                found[f"field_{name}_{round(100 * share)}"] = float(area)
    return found


def _own(info: Info) -> dict[str, float]:
    """Return the means over photographs, and seconds per megapixel."""
    lines = info["photographs"]
    megapixels = sum(line["pixels"] for line in lines) / 1e6
    similar = [line["ms_ssim"] for line in lines if line["ms_ssim"] is not None]
    return {
        "bits_per_pixel": float(np.mean([line["bits_per_pixel"] for line in lines])),
        "psnr": float(np.mean([100.0 if line["psnr"] is None else line["psnr"] for line in lines])),
        "ms_ssim": float(np.mean(similar)) if similar else math.nan,
        "encode_seconds_per_megapixel": sum(line["encode_seconds"] for line in lines) / megapixels,
        "decode_seconds_per_megapixel": sum(line["decode_seconds"] for line in lines) / megapixels,
    }


def _needed(curve: Info, quality: float) -> float | None:
    return rate_at(Curve.of(curve["bits_per_pixel"], curve["psnr"]), quality)


def _row(rival: Rival, info: Info, own: dict[str, float]) -> tuple[str, str, str]:
    curve = info["rivals"][rival]
    needed = _needed(curve, own["psnr"])
    if needed is None:
        span = f"{min(curve['psnr']):.1f} to {max(curve['psnr']):.1f} dB"
        return TITLES[rival], f"n/a (its range is {span})", NOTHING
    return TITLES[rival], f"{needed:.3f}", f"{100 * (own['bits_per_pixel'] / needed - 1):+.0f} %"


def _words(info: Info, own: dict[str, float]) -> str:
    absent = "; ".join(f"{TITLES[rival]}: {why}" for rival, why in info["missing"].items())
    encoding, decoding = (own[f"{verb}_seconds_per_megapixel"] for verb in ("encode", "decode"))
    words = (
        f"Real files of {len(info['photographs'])} held-out photographs: {own['bits_per_pixel']:.3f} bits per pixel, "
        f"PSNR {own['psnr']:.2f} dB, MS-SSIM {own['ms_ssim']:.4f}; {encoding:.1f} CPU seconds per megapixel "
        f"to encode, {decoding:.1f} to decode. VTM, the paper's anchor, is not available here."
    )
    return f"{words} Not installed: {absent}." if absent else words


def _charts(info: Info, own: dict[str, float]) -> list[Markup]:
    found = []
    for key, title in (("psnr", "PSNR, dB, against bits per pixel"), ("ms_ssim", "MS-SSIM against bits per pixel")):
        most = max(4 * own["bits_per_pixel"], 1.0)
        series = [Series(label="llic", x=[own["bits_per_pixel"]], y=[own[key]], color=0)]
        for color, (rival, curve) in enumerate(info["rivals"].items(), start=1):
            pairs = [
                (rate, value)
                for rate, value in zip(curve["bits_per_pixel"], curve[key], strict=True)
                if value is not None and rate <= most
            ]
            if pairs:
                x, y = zip(*sorted(pairs), strict=True)
                series.append(Series(label=TITLES[rival], x=list(x), y=list(y), color=color % 8))
        found.append(line_chart(title, series, x_label="bits per pixel"))
    return found


def _photographs(lines: Sequence[Info]) -> Markup:
    head = ("photograph", "bits per pixel", "PSNR, dB", "MS-SSIM")
    rows = [
        (
            line["name"],
            f"{line['bits_per_pixel']:.3f}",
            NOTHING if line["psnr"] is None else f"{line['psnr']:.2f}",
            NOTHING if line["ms_ssim"] is None else f"{line['ms_ssim']:.4f}",
        )
        for line in lines
    ]
    return table(head, rows, caption="Held-out photographs")


def _side_by_side(one: Info) -> Markup:
    shown = [
        tag(
            "figure",
            tag("img", src=f"data:image/png;base64,{each['picture']}", alt=f"{one['name']}: {each['title']}"),
            tag("figcaption", each["title"]),
        )
        for each in one["shown"]
    ]
    return tag("div", tag("h3", one["name"]), tag("div", *shown, class_="charts"))


def _fields(info: Info) -> list[Markup]:
    fields, side = info["fields"], float(info["fields"]["side"])
    words = (
        "Mean absolute gradient of the centre of the latent by pixel, in powers of ten, over the held-out photographs. "
        "Direct: no gradient through generated kernels and factors, which see the whole image. The table gives the "
        "share of the area that the strongest pixels need for a share of the total."
    )
    titles = {"direct": "Direct", "whole": "Through generators"}
    head = ("gradient", *(f"{100 * share:.0f} %" for share in fields["shares"]))
    rows = [(titles[key], *(f"{100 * area:.2f} %" for area in fields[key]["areas"])) for key in titles]
    maps = []
    for key, title in titles.items():
        values = np.array(fields[key]["map"])
        shade = (values - values.min()) / max(float(np.ptp(values)), 1e-9)
        maps.append(
            grid_picture(
                title,
                shade,
                spoken="darker for larger gradients",
                x_label="pixels",
                x=Range(low=0.0, high=side),
                y=Range(low=0.0, high=side),
                y_names=[],
            )
        )
    adapted = info["adaptivity"]
    names = {
        "kernel_spread": "spread of kernels over images",
        "factor_spread": "spread of channel factors over images",
        "factor_bits_correlation": "rank correlation of factors and bits by channel",
        "swapped_loss": "loss with another image's kernels, over the own",
    }
    cells = [(text, NOTHING if adapted.get(key) is None else f"{adapted[key]:.3f}") for key, text in names.items()]
    return [
        tag("p", words),
        table(head, rows, caption="Share of the area for a share of the gradient"),
        tag("div", maps, class_="charts"),
        table(("adaptation to images", "value"), cells, caption="How much the transforms adapt"),
    ]

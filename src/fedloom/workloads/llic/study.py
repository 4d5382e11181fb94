"""What learned compression contributes to studies: columns of its reports' numbers, and BD-rates over lambdas."""

from __future__ import annotations

import math

from fedloom.core.records import Info
from fedloom.core.run_files import SUMMARY
from fedloom.reporting.run_folder import RunFolder
from fedloom.reporting.study_part import Measured, NumberColumn, StudyPart
from fedloom.workloads.llic.curves import bd_rates, codec_curve, last_reading
from fedloom.workloads.llic.rate import bd_rate
from fedloom.workloads.llic.rivals import TITLES

_ANCHOR = "elic"


def build_study() -> StudyPart:
    """Contribute the analysis `rates`, and columns of rate, quality, other formats, fields and speed."""
    titles: dict[str, str] = {f"bd_rate_{rival}": f"BD-rate against {title}, %" for rival, title in TITLES.items()}
    titles[f"bd_rate_{_ANCHOR}"] = f"BD-rate against {_ANCHOR}, %"
    return StudyPart(
        analyses={"rates": rates},
        columns=(
            NumberColumn(number="bits_per_pixel", title="bits per pixel", digits=3, interval=True),
            NumberColumn(number="psnr", title="PSNR, dB", digits=2, interval=True),
            NumberColumn(number="ms_ssim", title="MS-SSIM", digits=4),
            NumberColumn(number="jpeg_bits_at_equal_psnr", title="JPEG's bits at that PSNR", digits=3),
            NumberColumn(number="avif_bits_at_equal_psnr", title="AVIF's bits at that PSNR", digits=3),
            *(NumberColumn(number=number, title=title, digits=1) for number, title in titles.items()),
            NumberColumn(number="field_direct_99", title="area of 99 % of the gradient", digits=3),
            NumberColumn(number="own_loss", title="loss on the clients' own crops", digits=3),
            NumberColumn(number="codec_encode_seconds_per_megapixel", title="encoding, s per megapixel", digits=1),
            NumberColumn(number="codec_decode_seconds_per_megapixel", title="decoding, s per megapixel", digits=1),
        ),
    )


def rates(run: RunFolder) -> Measured:
    """Return the BD-rates of a run's family: the arms of its scenario whose names differ behind the last hyphen alone.

    `bd_rate_FORMAT` against other formats, `bd_rate_elic` against the family `elic`; NaN where qualities do not overlap
    or a family has fewer than four points. `fedloom codec compare` gives the reasons.
    """
    seed, arm = run.path.name, run.path.parent.name
    family = _readings(run, arm.rpartition("-")[0], seed)
    if not family:
        return Measured()
    numbers = {f"bd_rate_{rival}": found.percent for rival, found in bd_rates(family).items()}
    anchor = _readings(run, _ANCHOR, seed)
    if anchor and arm.rpartition("-")[0] != _ANCHOR:
        numbers[f"bd_rate_{_ANCHOR}"] = bd_rate(codec_curve(anchor), codec_curve(family)).percent
    else:
        numbers[f"bd_rate_{_ANCHOR}"] = math.nan
    return Measured(numbers)


def _readings(run: RunFolder, family: str, seed: str) -> list[Info]:
    """Return the monitor's readings of a family's finished runs with one seed."""
    arms = sorted(run.path.parent.parent.glob(f"{family}-*")) if family else []
    folders = [arm / seed for arm in arms if (arm / seed / SUMMARY).is_file()]
    found = [last_reading(folder) for folder in folders]
    return [reading for reading in found if reading is not None]

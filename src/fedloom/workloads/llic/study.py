"""What learned compression contributes to studies: columns for the numbers of its reports."""

from __future__ import annotations

from fedloom.reporting.study_part import NumberColumn, StudyPart


def build_study() -> StudyPart:
    """Contribute columns of rate, quality, other formats at equal quality, and speed."""
    return StudyPart(
        columns=(
            NumberColumn(number="bits_per_pixel", title="bits per pixel", digits=3, interval=True),
            NumberColumn(number="psnr", title="PSNR, dB", digits=2, interval=True),
            NumberColumn(number="ms_ssim", title="MS-SSIM", digits=4),
            NumberColumn(number="jpeg_bits_at_equal_psnr", title="JPEG's bits at that PSNR", digits=3),
            NumberColumn(number="avif_bits_at_equal_psnr", title="AVIF's bits at that PSNR", digits=3),
            NumberColumn(number="field_direct_99", title="area of 99 % of the gradient", digits=3),
            NumberColumn(number="own_loss", title="loss on the clients' own crops", digits=3),
            NumberColumn(number="encode_seconds_per_megapixel", title="encoding, s per megapixel", digits=1),
            NumberColumn(number="decode_seconds_per_megapixel", title="decoding, s per megapixel", digits=1),
        ),
    )

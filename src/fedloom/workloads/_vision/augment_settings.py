"""Settings of images changed at random, with no heavy import."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedloom.core.config import Settings


class AugmentSettings(Settings):
    """Training images changed at random, each time they are used; those of an evaluation are unchanged."""

    flip: bool = False
    """Mirror half of the images, left for right."""
    crop: Annotated[int, Field(ge=0)] = 0
    """Zeros to pad each side with before cropping to the image's size at random; pixels."""
    erase: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Probability that an image loses a rectangle, set to the mean pixel."""
    erase_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.33
    """Largest share of the image that is erased; the smallest is 0.02."""

    @property
    def changes(self) -> bool:
        """Return whether any image is changed."""
        return self.flip or self.crop > 0 or self.erase > 0

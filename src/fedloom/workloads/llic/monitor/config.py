"""Settings of the monitor of learned compression."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedloom.core.config import PluginSettings
from fedloom.workloads.llic.config import Rival


class Config(PluginSettings):
    """Real bytes and qualities of held-out photographs beside other formats, in evaluated rounds. Needs `llic`.

    Parts of held-out photographs are sent to the server: for photographs that anybody may see, or `pictures` = 0.
    """

    name: str = "llic"
    pictures: Annotated[int, Field(ge=0)] = 2
    """Held-out photographs of which a part is shown; 0 sends none."""
    rivals: tuple[Rival, ...] = ("jpeg", "webp", "avif", "jpeg2000", "jxl")
    """Other formats; those that are not installed are named in the report."""

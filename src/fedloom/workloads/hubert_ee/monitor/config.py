"""Settings of the monitor of early exits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """Errors against depth on the held-out utterances for every criterion, in evaluated rounds.

    Transcripts of held-out utterances are sent to the server: for corpora that anybody may read.
    """

    name: str = "hubert_ee"
    points: Annotated[int, Field(ge=2)] = 12
    """Thresholds of each criterion's curve, chosen on the dev set."""
    examples: Annotated[int, Field(ge=0)] = 12
    """Utterances whose transcripts are shown; 0 sends none."""

"""The image codec of a run's newest model."""

from __future__ import annotations

import numpy as np
import torch

from fedloom.core.errors import UsageError
from fedloom.core.records import MODEL, Record
from fedloom.core.saved_state import SavedState
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._torch.whole import Whole
from fedloom.workloads.llic.bitstream import ImageCodec
from fedloom.workloads.llic.config import Config
from fedloom.workloads.llic.net import Codec

_CPU = torch.device("cpu")


def saved_codec(saved: SavedState) -> ImageCodec:
    """Return the codec of a run.

    Raises:
        UsageError: the run is of another workload, or its model is not whole outside its clients.
    """
    config = saved.experiment.workload
    if not isinstance(config, Config):
        raise UsageError(f"{saved.folder}: expected a run of the workload 'llic', got one of {config.name!r}")
    if config.personal != "nothing":
        raise UsageError(
            f"{saved.folder}: its clients keep {config.personal!r} of their models to themselves "
            f"(workload.personal = {config.personal!r}), so the run has no model that could code an image"
        )
    with exact(_CPU, seed=0):  # what is drawn here is replaced
        codec = Codec(config)
    arrays = {name: np.array(array) for name, array in saved.strategy.arrays(saved.state).items()}
    Whole(codec, _CPU).load({MODEL: Record({MODEL: arrays})})
    return ImageCodec(codec)

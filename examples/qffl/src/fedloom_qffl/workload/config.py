"""Settings of the workload. No library of the workload is imported here: the server reads this file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """y = x w_k + noise; w_k is w, but for every fifth client w plus `shift`."""

    name: str = "qffl"
    features: Annotated[int, Field(ge=1)] = 4
    """Length of x and w."""
    examples: Annotated[int, Field(ge=1)] = 30
    """Examples of each client."""
    noise: Annotated[float, Field(ge=0.0)] = 0.1
    """Standard deviation of y around the law."""
    shift: float = 1.0
    """How far, in each feature, the minority's law is from the majority's."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.1
    """Step size of local gradient descent."""
    steps: Annotated[int, Field(ge=1)] = 5
    """Local steps in a round, each on all examples."""

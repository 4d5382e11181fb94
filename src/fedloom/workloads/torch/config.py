"""Settings of a user's own PyTorch model on rows."""

from __future__ import annotations

import hashlib
from typing import Annotated, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.workloads._base.settings import TorchConfig

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""A SHA-256, in hexadecimal."""


class Objects(Settings):
    """Digests of the Python objects of the run, which are in no file; `fedloom.run(model=…, data=…)` writes them."""

    code: Digest
    """Digest of the source of the model, of the functions given with it, and of the shapes of its arrays."""
    weights: Digest
    """Digest of the initial weights of a model that was given as an object; of its name where it was a class or a
    function."""
    data: Digest
    """Digest of the examples: of the values of arrays and frames; of a data set's length and targets."""


class Config(TorchConfig):
    """A PyTorch model of your own on rows of your own."""

    name: str = "torch"
    objects: Objects | None = None
    """The model and the data of a Python program; None takes those that other settings name."""

    @pydantic.model_validator(mode="after")
    def _has_model(self) -> Self:
        if self.objects is None:
            raise ConfigError(
                "workload.objects: required, but missing. The workload 'torch' runs a Python program's own model and "
                "data: call fedloom.run(model=…, data=…) there"
            )
        return self

    def objects_key(self) -> str:
        return "" if self.objects is None else hashlib.sha256(self.objects.model_dump_json().encode()).hexdigest()

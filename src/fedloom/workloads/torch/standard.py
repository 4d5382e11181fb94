"""Inputs with mean 0 and deviation 1: by column, or by an image's channel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fedloom.core.errors import ConfigError, PluginInvalid
from fedloom.core.records import Array, Info
from fedloom.workloads._base.examples import Examples, Source


@dataclass(frozen=True)
class Moments:
    """What is taken from inputs, and what they are divided by then: (columns,) each, float64."""

    mean: Array
    std: Array

    @property
    def facts(self) -> Info:
        """Return both for the description of the data."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


def standardise(examples: Examples, given: Moments | None) -> tuple[Examples, Moments]:
    """Return examples whose first inputs are standardised, and with what.

    Args:
        examples: one table for all clients.
        given: moments of the settings; None takes those of the training examples (and of what is held out of them).

    Raises:
        ConfigError: the examples are no table of numbers, or the settings have another number of columns.
    """
    if not isinstance(examples.train, tuple):
        raise ConfigError("workload.data.standardise: expected arrays or a table, found examples that are read singly")
    moments = moments_of(examples.train[0]) if given is None else given
    train, test = (None if each is None else _table(each, moments) for each in (examples.train, examples.test))
    return replace(examples, train=train or examples.train, test=test), moments


def moments_of(inputs: object) -> Moments:
    """Return mean and deviation of the columns of inputs (n, columns), or of channels (n, channels, …).

    A column without any deviation has the deviation 1.
    """
    x = _array(inputs, "workload.data").astype(np.float64)
    if x.ndim < 2:
        raise ConfigError(f"workload.data.standardise: expected inputs of shape (n, columns), found {x.shape}")
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    std = x.std(axes)
    return Moments(x.mean(axes), np.where(std > 0, std, 1.0))


def standardised(inputs: object, moments: Moments, where: str) -> Array:
    """Return inputs with the moments applied, float32.

    Args:
        inputs: (n, columns), or (n, channels, …).
        moments: of as many columns.
        where: their place, for errors.

    Raises:
        ConfigError: there is another number of columns.
    """
    x = _array(inputs, where)
    if x.ndim < 2 or x.shape[1] != len(moments.mean):
        raise ConfigError(
            f"{where}: expected inputs of shape (n, {len(moments.mean)}, …), one mean for each column, found {x.shape}"
        )
    shape = (1, -1, *[1] * (x.ndim - 2))
    return ((x - moments.mean.reshape(shape)) / moments.std.reshape(shape)).astype(np.float32)


def _table(source: Source, moments: Moments) -> Source:
    if not isinstance(source, tuple):
        raise ConfigError("workload.data.standardise: expected arrays or a table, found examples that are read singly")
    first, *others = source
    return (standardised(first, moments, "workload.data"), *others)


def _array(inputs: object, where: str) -> Array:
    found = inputs.detach().cpu().numpy() if isinstance(inputs, Tensor) else inputs
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise PluginInvalid(f"{where}: the inputs are a {type(inputs).__name__}, expected an array of numbers")
    return found

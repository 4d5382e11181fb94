"""The node's own filters on updates: excluded arrays, clipping, noise. No experiment can change or remove them."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import PolicyRefused
from fedloom.core.records import MODEL, Array, Arrays, Update


class Filters(Settings):
    """Filters of the change of a client's model before it leaves, in this order: exclude, clip, add noise."""

    exclude: tuple[str, ...] = ()
    """Patterns (`*`, `?`) of names of arrays that leave as they came, as the global model's."""
    max_norm: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Upper bound of the L2 norm of the change of all arrays together; None for no bound."""
    noise: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """Standard deviation of the Gaussian noise added to each number, in the numbers' own unit. It is drawn anew each
    time from the system's entropy, so that it cannot be subtracted again."""

    @property
    def any(self) -> bool:
        """Return whether any filter is set."""
        return bool(self.exclude or self.max_norm is not None or self.noise)

    def apply(self, update: Update, model: Arrays | None, rng: np.random.Generator) -> Update:
        """Return an update as it may leave.

        Args:
            update: what a client returns.
            model: the global model the client began with; None if it has read none.
            rng: draws the noise.

        Raises:
            PolicyRefused: the update's arrays are not those of the global model, so that its change is unknown; or a
                client's state would leave with it, which may contain the model.
        """
        if not update.groups:
            return update
        arrays = update.groups.get(MODEL, {})
        if model is None or update.groups.keys() != {MODEL} or not arrays.keys() <= model.keys() or update.state:
            raise PolicyRefused(
                "the node's policy filters updates, but those of this run (or its clients' states) do not have the "
                "form of the global model, so they cannot be filtered",
                kind="data",
            )
        excluded = {name for name in arrays if any(fnmatch.fnmatch(name, pattern) for pattern in self.exclude)}
        changed = {name: array for name, array in arrays.items() if name not in excluded and array.dtype.kind == "f"}
        scale = self._scale(changed, model)
        sent = {
            name: np.array(model[name]) if name in excluded else self._noisy(array, model[name], scale, rng)
            for name, array in arrays.items()
        }
        return replace(update, groups={MODEL: sent})

    def _scale(self, arrays: Mapping[str, Array], model: Arrays) -> float:
        """Return the factor that reduces the norm of the change to the bound."""
        if self.max_norm is None:
            return 1.0
        changes = (arrays[name].astype(np.float64) - model[name] for name in arrays)
        norm = math.sqrt(sum(float(np.vdot(change, change)) for change in changes))
        return min(1.0, self.max_norm / norm) if norm else 1.0

    def _noisy(self, array: Array, before: Array, scale: float, rng: np.random.Generator) -> Array:
        if array.dtype.kind != "f":
            return np.array(before)  # counters and the like have no change that could be clipped
        change = (array.astype(np.float64) - before) * scale
        return np.asarray((before + change + self.noise * rng.standard_normal(array.shape)).astype(array.dtype))

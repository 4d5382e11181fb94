"""Settings of how the training set is partitioned among clients."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError


class Iid(Settings):
    """Shuffled, and cut into equal pieces."""

    scheme: Literal["iid"] = "iid"


class Dirichlet(Settings):
    """Each class is cut among the clients in proportions drawn from a Dirichlet distribution.

    Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
    in the per-class form of Li et al. 2022, "Federated Learning on Non-IID Data Silos", section 4.1.
    """

    scheme: Literal["dirichlet"] = "dirichlet"
    alpha: Annotated[float, Field(gt=0.0)] = 0.5
    """Concentration (dimensionless): small is skewed, large is even."""
    min_size: Annotated[int, Field(ge=1)] = 1
    """Minimum number of examples of a client, by `redraw` or `move`."""
    empty: Literal["redraw", "move", "allow"] = "redraw"
    """What happens where a client has fewer than `min_size` examples: `redraw` repeats the draw, up to ten times, and
    then rejects the settings; `move` takes what is missing from the largest clients; `allow` leaves the client as it
    is, also without any example: it then trains nothing and has no part in the aggregate."""

    @pydantic.model_validator(mode="after")
    def _has_use_of_min_size(self) -> Self:
        if self.empty == "allow" and self.min_size > 1:
            raise ConfigError(
                f"workload.partition.min_size: expected 1, since empty = 'allow' ignores it, got {self.min_size}. "
                'Remove it, or set empty to "redraw" or "move"'
            )
        return self


class Pathological(Settings):
    """Each client has only a few classes (McMahan et al. 2017, section 3, generalised)."""

    scheme: Literal["pathological"] = "pathological"
    classes_per_client: Annotated[int, Field(ge=1)] = 2
    """Classes of each client, drawn at random."""


class Shards(Settings):
    """Sorted by class, cut into shards, and each client gets some (McMahan et al. 2017, section 3)."""

    scheme: Literal["shards"] = "shards"
    shards_per_client: Annotated[int, Field(ge=1)] = 2
    """Shards of each client."""


class SizeSkew(Settings):
    """Client i of N (from 1) has a fraction proportional to i, i squared, or e to the i; classes are mixed."""

    scheme: Literal["size_skew"] = "size_skew"
    growth: Literal["linear", "square", "exponential"] = "linear"
    """Growth of sizes with the client's number."""


class LongTailed(Dirichlet):
    """The federation as a whole lacks some classes: they are thinned out first, then partitioned as by `dirichlet`.

    With the C classes in random order, the one at place c (from 0) retains the fraction imbalance^(-c / (C - 1)) of its
    examples, at least one. Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", section 5.1.
    The held-out data is unchanged.
    """

    scheme: Literal["long_tailed"] = "long_tailed"  # type: ignore[assignment]  # another kind of the same settings
    imbalance: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 10.0
    """Ratio of the fractions retained by the most frequent and the rarest class; 1 is `dirichlet`."""


class Natural(Settings):
    """One client per value of the data's group column (a writer, a topic); fewer clients share the values."""

    scheme: Literal["natural"] = "natural"


PartitionSettings = Annotated[
    Iid | Dirichlet | Pathological | Shards | SizeSkew | LongTailed | Natural, Field(discriminator="scheme")
]

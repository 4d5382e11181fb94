"""Partitions of a training set over clients, deterministic and cached on disk.

The schemes are those of `flwr-datasets`, run on a table of row numbers instead of the data, so that they cost
milliseconds and give indices. What is ours is the shuffle before them (their size-based schemes take rows in order),
the repeated draw of `dirichlet`, and the plain splits `iid` and `natural`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from fedloom.core.errors import ConfigError
from fedloom.core.seeds import generator, integer_seed
from fedloom.workloads._data import cache
from fedloom.workloads._data.partition_settings import (
    Dirichlet,
    Iid,
    LongTailed,
    Natural,
    PartitionSettings,
    Pathological,
    Shards,
    SizeSkew,
)

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Rows = npt.NDArray[np.int64]
_FORMAT = 1
_DIRICHLET_DRAWS = 10


@dataclass(frozen=True, slots=True)
class Partition:
    """Rows of the training set by client: client k holds `rows[offsets[k]:offsets[k + 1]]`."""

    rows: Rows
    offsets: Rows

    @property
    def clients(self) -> int:
        """Return the number of clients."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Rows:
        """Return the examples of each client, shape (clients,)."""
        return np.diff(self.offsets)

    def client(self, client: int) -> Rows:
        """Return the row numbers of one client, a view; int64."""
        return self.rows[self.offsets[client] : self.offsets[client + 1]]

    def label_counts(self, labels: Rows, num_labels: int) -> Rows:
        """Return the examples per class for each client, shape (clients, num_labels)."""
        owner = np.repeat(np.arange(self.clients), self.sizes)
        flat = np.bincount(owner * num_labels + labels[self.rows], minlength=self.clients * num_labels)
        return flat.reshape(self.clients, num_labels)

    @classmethod
    def of(cls, parts: Sequence[Rows]) -> Self:
        """Make a partition of each client's rows."""
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
        return cls(np.concatenate(parts).astype(np.int64), offsets.astype(np.int64))


def partition(
    settings: PartitionSettings,
    labels: Rows,
    groups: Rows | None,
    *,
    clients: int,
    seed: int,
    data_sha256: str,
) -> Partition:
    """Partition a training set among clients; the same arguments give the same partition on every machine.

    Args:
        settings: the scheme.
        labels: class of each training example, shape (n,), int64.
        groups: value of the group column of each example, shape (n,), or None without one.
        clients: number of clients N.
        seed: the experiment's seed.
        data_sha256: digest of the data, for the cache.

    Raises:
        ConfigError: a client would have no example and the settings do not allow it, or the scheme does not fit the
            data.
    """
    if clients > len(labels):
        raise ConfigError(
            f"clients: {clients} clients cannot share {len(labels)} training examples, client {len(labels)} would "
            f"have none. Set clients to at most {len(labels)}, or take a larger data set"
        )
    key = cache.digest_of([_FORMAT, data_sha256, settings.model_dump(mode="json"), clients, seed])

    def build(folder: Path) -> None:
        parts = _SCHEMES[type(settings)](settings, labels, groups, clients, seed)
        made = Partition.of([np.asarray(part, np.int64) for part in parts])
        if not (isinstance(settings, Dirichlet) and settings.empty == "allow"):
            _check_not_empty(made, settings)
        np.save(folder / "rows.npy", made.rows)
        np.save(folder / "offsets.npy", made.offsets)

    place = cache.entry("partitions", key, build)
    return Partition(
        np.asarray(cache.map_array(place / "rows.npy")), np.asarray(cache.map_array(place / "offsets.npy"))
    )


def _check_not_empty(made: Partition, settings: PartitionSettings) -> None:
    empty = np.flatnonzero(made.sizes == 0)
    if len(empty):
        raise ConfigError(
            f"workload.partition: scheme {settings.scheme!r} leaves client {empty[0]} without an example "
            f'({len(empty)} of {made.clients} clients are empty). Set fewer clients, or scheme = "iid"'
        )


def _shuffled(labels: Rows, seed: int) -> Rows:
    """Return all row numbers in the seed's order."""
    return generator(seed, "partition", "shuffle").permutation(len(labels))


def _from_flower(
    partitioner: Partitioner,
    settings: PartitionSettings,
    labels: Rows,
    clients: int,
    seed: int,
    rows: Rows | None = None,
) -> list[Rows]:
    """Return every client's rows from a partitioner of flwr-datasets: of `rows`, or of all, shuffled."""
    from fedloom.workloads._data.row_table import RowTable

    partitioner.dataset = RowTable(labels, _shuffled(labels, seed) if rows is None else rows)
    try:
        return [partitioner.load_partition(client) for client in range(clients)]
    except ValueError as exc:
        given = {name: value for name, value in settings.model_dump().items() if name != "scheme"}
        raise ConfigError(
            f"workload.partition: scheme {settings.scheme!r} with {given} cannot partition "
            f"{len(labels) if rows is None else len(rows)} examples among "
            f'{clients} clients so that each has one: {exc} Set fewer clients, or scheme = "iid"'
        ) from exc


def _iid(settings: Iid, labels: Rows, groups: Rows | None, clients: int, seed: int) -> list[Rows]:
    return np.array_split(generator(seed, "partition", "shuffle").permutation(len(labels)), clients)


def _dirichlet(settings: Dirichlet, labels: Rows, groups: Rows | None, clients: int, seed: int) -> list[Rows]:
    return _dirichlet_of(settings, labels, _shuffled(labels, seed), clients, seed)


def _long_tailed(settings: LongTailed, labels: Rows, groups: Rows | None, clients: int, seed: int) -> list[Rows]:
    rows, classes = _shuffled(labels, seed), np.unique(labels)
    limited: list[Rows] = []
    for place, label in enumerate(generator(seed, "partition", "long_tailed").permutation(classes)):
        share = settings.imbalance ** (-place / max(len(classes) - 1, 1))
        places = np.flatnonzero(labels[rows] == label)
        limited.append(places[: max(1, round(share * len(places)))])
    return _dirichlet_of(settings, labels, rows[np.sort(np.concatenate(limited))], clients, seed)


def _dirichlet_of(settings: Dirichlet, labels: Rows, rows: Rows, clients: int, seed: int) -> list[Rows]:
    """Partition these rows, each class in different proportions."""
    from flwr_datasets.partitioner import DirichletPartitioner

    parts: list[Rows] = []
    for draw in range(_DIRICHLET_DRAWS if settings.empty == "redraw" else 1):
        partitioner = DirichletPartitioner(
            clients,
            "label",
            settings.alpha,
            min_partition_size=0,
            self_balancing=False,
            seed=integer_seed(seed, "partition", "dirichlet", draw),
        )
        parts = _from_flower(partitioner, settings, labels, clients, seed, rows)
        if settings.empty == "allow" or min(map(len, parts)) >= settings.min_size:
            return parts
    if settings.empty == "move":
        return _moved(parts, settings.min_size)
    sizes = [len(part) for part in parts]
    raise ConfigError(
        f"workload.partition: in {_DIRICHLET_DRAWS} draws of a Dirichlet({settings.alpha:g}) over {clients} clients "
        f"and {len(rows)} examples some client always had fewer than min_size = {settings.min_size}; in the last "
        f'draw client {int(np.argmin(sizes))} had {min(sizes)}. Set a larger alpha, fewer clients, scheme = "iid", or '
        'empty = "move" or "allow"'
    )


def _moved(parts: Sequence[Rows], min_size: int) -> list[Rows]:
    """Move rows until each client has `min_size`: one at a time, the last one of the client with the most.

    Clients in want are served in order; of several that have most, the first one gives.

    Raises:
        ConfigError: there are fewer rows than that.
    """
    sizes = np.array([len(part) for part in parts])
    if sizes.sum() < min_size * len(parts):
        raise ConfigError(
            f"workload.partition.min_size: {len(parts)} clients with at least {min_size} examples each need "
            f"{min_size * len(parts)}, there are {sizes.sum()}. Set a smaller min_size, or fewer clients"
        )
    given: list[list[int]] = [part.tolist() for part in map(np.asarray, parts)]
    for client in np.flatnonzero(sizes < min_size):
        while len(given[client]) < min_size:
            giver = int(sizes.argmax())
            given[client].append(given[giver].pop())
            sizes[giver] -= 1
            sizes[client] += 1
    return [np.array(rows, np.int64) for rows in given]


def _pathological(settings: Pathological, labels: Rows, groups: Rows | None, clients: int, seed: int) -> list[Rows]:
    from flwr_datasets.partitioner import PathologicalPartitioner

    # `first-deterministic` gives client k class k mod C and draws the others, so no class is left out
    partitioner = PathologicalPartitioner(
        clients,
        "label",
        settings.classes_per_client,
        class_assignment_mode="first-deterministic",
        seed=integer_seed(seed, "partition", "pathological"),
    )
    return _from_flower(partitioner, settings, labels, clients, seed)


def _shards(settings: Shards, labels: Rows, groups: Rows | None, clients: int, seed: int) -> list[Rows]:
    from flwr_datasets.partitioner import ShardPartitioner

    if clients * settings.shards_per_client > len(labels):
        raise ConfigError(
            f"workload.partition: {clients} clients with shards_per_client = {settings.shards_per_client} need "
            f"{clients * settings.shards_per_client} shards, and there are {len(labels)} examples. Set fewer of either"
        )
    partitioner = ShardPartitioner(
        clients,
        "label",
        num_shards_per_partition=settings.shards_per_client,
        seed=integer_seed(seed, "partition", "shards"),
    )
    return _from_flower(partitioner, settings, labels, clients, seed)


def _size_skew(settings: SizeSkew, labels: Rows, groups: Rows | None, clients: int, seed: int) -> list[Rows]:
    from flwr_datasets.partitioner import ExponentialPartitioner, LinearPartitioner, SquarePartitioner

    growth = {"linear": LinearPartitioner, "square": SquarePartitioner, "exponential": ExponentialPartitioner}
    with np.errstate(all="ignore"):  # e to the client's number overflows; the sizes are then refused below
        return _from_flower(growth[settings.growth](clients), settings, labels, clients, seed)


def _natural(settings: Natural, labels: Rows, groups: Rows | None, clients: int, seed: int) -> list[Rows]:
    if groups is None:
        raise ConfigError(
            "workload.partition: scheme 'natural' needs data with a group column, and this source has none. "
            "Set workload.data.group_column (huggingface, csv, jsonl), or add groups_train (npz)"
        )
    values = np.unique(groups)
    if clients > len(values):
        raise ConfigError(
            f"workload.partition: scheme 'natural' finds {len(values)} groups, too few for {clients} clients: client "
            f"{len(values)} would have no examples. Set clients = {len(values)}"
        )
    return [np.flatnonzero(np.isin(groups, values[client::clients])) for client in range(clients)]


_SCHEMES: dict[type, Callable[..., list[Rows]]] = {
    Iid: _iid,
    Dirichlet: _dirichlet,
    Pathological: _pathological,
    Shards: _shards,
    SizeSkew: _size_skew,
    LongTailed: _long_tailed,
    Natural: _natural,
}

"""Partition of the data: examples by class and client, and the clients' sizes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedloom.core.protocols import WorkloadInfo
from fedloom.reporting.axes import Range, bins
from fedloom.reporting.charts import bar_chart
from fedloom.reporting.grids import grid_picture
from fedloom.reporting.markup import Markup, tag
from fedloom.reporting.page import section
from fedloom.reporting.quantities import plural
from fedloom.reporting.run_folder import RunFolder

_MOST_COLUMNS = 180
_MOST_CLASSES = 40
_SIZE_BARS = 24

Counts = npt.NDArray[np.float64]


def partition(run: RunFolder) -> Markup:
    """Return the pictures, if the workload describes its partition."""
    info = run.workload
    counts = _counts(info)
    sizes = np.asarray(info.client_sizes if info else (), np.float64)
    if not sizes.size and counts is not None:
        sizes = counts.sum(axis=1)
    if not sizes.size:
        return section("Partition", tag("p", "This workload does not describe its partition.", class_="empty"))
    words = (
        f"{plural(sizes.size, 'client')} have {int(sizes.sum()):,} training examples: from {int(sizes.min()):,} to "
        f"{int(sizes.max()):,} each, {int(np.median(sizes)):,} in the median."
    )
    pictures = [_classes(counts, info.label_names if info else ()) if counts is not None else None, _sizes(sizes)]
    if counts is not None:
        words += f" Effective classes per client: {effective_classes(counts):.1f} of {counts.shape[1]}."
    return section("Partition", tag("p", words), tag("div", pictures, class_="charts"))


def effective_classes(counts: Counts) -> float:
    """Return the effective number of classes per client: e to the entropy (nats) of its labels, mean over clients.

    Args:
        counts: examples by client and class, shape (clients, classes).

    Returns:
        1 if every client has a single class, the number of classes if all are balanced.
    """
    held = counts[counts.sum(axis=1) > 0]
    if not held.size:
        return 0.0
    share = held / held.sum(axis=1, keepdims=True)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=1)
    return float(np.exp(entropy).mean())


def by_likeness(counts: Counts, most: int) -> Counts:
    """Return at most `most` columns of clients. If there are more, each is the mean of clients with similar classes.

    Clients are ordered by their most frequent class and its share before neighbours are averaged: averaging clients
    in their own order would make any partition look balanced.

    Args:
        counts: examples by client and class, shape (clients, classes).
        most: limit of columns.

    Returns:
        Mean examples by class and column, shape (classes, columns).
    """
    if len(counts) <= most:
        return counts.T
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    order = np.lexsort((-share.max(axis=1), share.argmax(axis=1)))
    return np.stack([counts[order[start:stop]].mean(axis=0) for start, stop in bins(len(counts), most)], axis=1)


def _counts(info: WorkloadInfo | None) -> Counts | None:
    if info is None or not len(info.label_counts):
        return None
    counts = np.asarray(info.label_counts, np.float64)
    return counts if counts.ndim == 2 and counts.shape[1] else None


def _classes(counts: Counts, names: object) -> Markup:
    clients, classes = counts.shape
    labels = [str(name) for name in names] if isinstance(names, list | tuple) else []
    labels = labels if len(labels) == classes else [str(index) for index in range(classes)]
    columns = by_likeness(counts, _MOST_COLUMNS)
    binned = columns.shape[1] < clients
    step = -(-classes // _MOST_CLASSES)
    ticks = [(float(at), _short(labels[at])) for at in range(0, classes, -(-classes // 20))]
    note = "Darker means more examples of that class."
    if binned:
        note = (
            f"A column is the mean of about {-(-clients // columns.shape[1])} similar clients: clients "
            "are ordered by their most frequent class. " + note
        )
    if step > 1:
        columns = np.stack([columns[start:stop].mean(axis=0) for start, stop in bins(classes, _MOST_CLASSES)])
    return grid_picture(
        "Classes by client",
        columns / max(columns.max(), 1e-12),
        spoken=f"Classes by clients. Effective classes per client: {effective_classes(counts):.1f} of {classes}.",
        x_label="clients, ordered by their most frequent class" if binned else "client",
        x=Range(low=-0.5, high=clients - 0.5),
        y=Range(low=classes - 0.5, high=-0.5),
        y_names=ticks,
        note=note,
    )


def _sizes(sizes: Counts) -> Markup:
    """Return the distribution of clients' sizes."""
    least = int(sizes.min())
    width = max(1, -(-(int(sizes.max()) - least + 1) // _SIZE_BARS))
    held = np.bincount((sizes.astype(np.int64) - least) // width)
    title = "Clients by number of examples" + (f" (bars of {width:,})" if width > 1 else "")
    return bar_chart(title, {"clients": [float(n) for n in held]}, x_label="examples", first=least, width=width)


def _short(label: str) -> str:
    return label if len(label) <= 11 else f"{label[:10]}…"

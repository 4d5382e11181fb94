"""Prepared images as rows."""

from __future__ import annotations

from fedloom.core.data_schema import SUMS
from fedloom.workloads._base.rows import RowData, RowSource
from fedloom.workloads._data.images import ImageData


def image_rows(data: ImageData, train: RowSource, test: RowSource) -> RowData:
    """Return images as a workload's data.

    Args:
        data: the source.
        train: the training images, row by row those of `data`.
        test: the test images.
    """
    return RowData(
        train=train,
        test=test,
        info=data.info if data.sums is None else {**data.info, SUMS: data.sums},
        sha256=data.sha256,
        labels=data.y_train,
        num_labels=data.num_labels,
        label_names=tuple(data.info["label_names"]),
        groups=data.groups,
    )

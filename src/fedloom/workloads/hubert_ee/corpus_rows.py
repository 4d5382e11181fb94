"""A corpus as rows of tensors."""

from __future__ import annotations

import numpy as np
import torch

from fedloom.workloads._base.rows import RowData, TensorRows
from fedloom.workloads.hubert_ee.corpus import Corpus, Split


def as_rows(split: Split, device: torch.device) -> TensorRows:
    """Return a split's waves and lengths, and its targets, on a device."""
    waves, lengths, targets = (torch.from_numpy(np.array(each)) for each in (split.waves, split.lengths, split.targets))
    return TensorRows((waves.to(device), lengths.to(device)), targets.to(device))


def row_data(corpus: Corpus, device: torch.device) -> RowData:
    """Return a corpus as a training set, its test set, and groups by voice."""
    return RowData(
        train=as_rows(corpus.train, device),
        test=as_rows(corpus.test, device),
        info=corpus.info,
        sha256=corpus.sha256,
        groups=np.asarray(corpus.train.speakers),
    )

"""The weights of a finished run as the first ones of another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fedloom.core import frames as frame_files
from fedloom.core import run_files
from fedloom.core.errors import DataMissing
from fedloom.core.records import Array, arrays_sha256
from fedloom.workloads._torch.arrays import as_tensor
from fedloom.workloads.hubert_ee.net import EarlyExit

_BRANCHES = "branches."
_NEW = (_BRANCHES, "final.", "clusters.")
"""Parts that the first stage may lack: they keep their own initial weights."""


def load_start(net: EarlyExit, folder: str, *, whole: bool, sha256: str | None = None) -> None:
    """Load a finished run's weights into those parts of the network that it has.

    Branches of another kind or after other layers are left out: the network's own are new.

    Args:
        net: the network.
        folder: of the run.
        whole: whether the final head must be among them, because it is not trained here.
        sha256: digest of the run's arrays; None takes any.

    Raises:
        DataMissing: no finished run is there, its digest is another, or its arrays do not fit.
    """
    file = Path(folder).expanduser() / run_files.MODEL
    if not file.is_file():
        raise DataMissing(f"workload.start: {folder!r} has no {run_files.MODEL}; expected the folder of a finished run")
    groups = frame_files.decode(file.read_bytes()).groups
    arrays = {name: array for group in groups.values() for name, array in group.items()}
    if sha256 is not None and arrays_sha256(arrays) != sha256:
        raise DataMissing(
            f"workload.start: {folder!r} holds weights with digest {arrays_sha256(arrays)}, expected {sha256}. Copy "
            "the run that workload.start_sha256 is of"
        )
    if any(name.startswith("clusters.") for name in arrays) and net.clusters is None:
        arrays = {name: array for name, array in arrays.items() if not name.startswith("clusters.")}
    own = dict(net.named_parameters())
    if _shapes(arrays) != _shapes({name: parameter.detach().numpy() for name, parameter in own.items()}):
        arrays = {name: array for name, array in arrays.items() if not name.startswith(_BRANCHES)}
    new = (_BRANCHES,) if whole else _NEW
    missing = [name for name in own if not name.startswith(new) and name not in arrays]
    missing = [name for name in missing if name != "hubert.masked_spec_embed"]
    odd = [name for name, array in arrays.items() if name not in own or tuple(own[name].shape) != array.shape]
    if missing or odd:
        raise DataMissing(
            f"workload.start: {folder!r} holds another network: {(missing or odd)[0]!r} does not fit. Set "
            "workload.net and workload.exits as in that run"
        )
    with torch.no_grad():
        for name, array in arrays.items():
            own[name].copy_(as_tensor(array))


def _shapes(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the branches' arrays."""
    return {name: array.shape for name, array in arrays.items() if name.startswith(_BRANCHES)}

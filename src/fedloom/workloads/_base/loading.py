"""The final model of a run as a PyTorch module."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fedloom.core import frames, run_files
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.plugins import build_workload
from fedloom.workloads._base.task import CPU, RowTask
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._torch.whole import fitting, travelling


def load_model(run: str | Path) -> nn.Module:
    """Return the final model of a run, on the CPU, in evaluation mode.

    The workload is built as a client builds it, so its data, and its code where it is a user's, must be here.

    Args:
        run: the run's folder.

    Raises:
        DataMissing: the folder holds no finished run, or the workload's data is not here.
        ConfigError: the workload's model is no PyTorch module, or the arrays are adapters of one.
    """
    folder = Path(run)
    file = folder / run_files.MODEL
    if not file.is_file():
        raise DataMissing(f"{str(folder)!r}: expected the folder of a finished run, found no {run_files.MODEL} in it")
    experiment = Experiment.load(folder / run_files.EXPERIMENT)
    workload: object = build_workload(experiment.workload, experiment)
    if not isinstance(workload, RowTask):
        raise ConfigError(
            f"workload {experiment.workload.name!r}: expected one whose model is a PyTorch module (a TorchWorkload), "
            f"found a {type(workload).__name__}; read the arrays with safetensors"
        )
    with exact(CPU, seed=0):
        model = workload.initial()
    tensors = travelling(model)
    groups = frames.decode(file.read_bytes()).groups
    arrays = {name: array for group in groups.values() for name, array in group.items()}
    if arrays.keys() != tensors.keys():
        strange = sorted(arrays.keys() ^ tensors.keys())
        raise ConfigError(
            f"{file}: expected the {len(tensors)} arrays of the model, found {len(arrays)}, and {strange[0]!r} is in "
            "one of them only. Where they are adapters, `fedloom adapters export` makes a checkpoint of PEFT's"
        )
    with torch.no_grad():
        for tensor, value in zip(tensors.values(), fitting(arrays, tensors, CPU), strict=True):
            tensor.copy_(value)
    return model.eval()

"""The final model of a run as a PyTorch module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedloom.core import frames, run_files
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, DataMissing, PluginInvalid
from fedloom.core.plugins import build_workload
from fedloom.core.records import Array, Arrays
from fedloom.workloads._base.columns import as_column
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._base.task import CPU, RowTask, minibatches
from fedloom.workloads._torch.arrays import as_array
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
    arrays = saved_arrays(folder)
    workload = _task(Experiment.load(folder / run_files.EXPERIMENT))
    return fill(_initial(workload), arrays, str(folder / run_files.MODEL)).eval()


def saved_arrays(place: str | Path) -> Arrays:
    """Return the arrays of a finished run's folder, or of a `.safetensors` file, by name.

    Raises:
        DataMissing: there are none.
    """
    path = Path(place).expanduser()
    file = path if path.suffix == ".safetensors" else path / run_files.MODEL
    if not file.is_file():
        found = run_files.MODEL if file is not path else "such file"
        raise DataMissing(f"{str(path)!r}: expected the folder of a finished run, found no {found} in it")
    if file is path:  # of whatever program
        try:
            return {name: as_array(tensor) for name, tensor in load_file(file).items()}
        except SafetensorError as exc:
            raise DataMissing(f"{str(path)!r} is not a safetensors file: {exc}") from exc
    groups = frames.decode(file.read_bytes()).groups
    return {name: array for group in groups.values() for name, array in group.items()}


def fill(model: nn.Module, arrays: Arrays, where: str) -> nn.Module:
    """Set a model's weights to a run's final arrays; returns it.

    Args:
        model: of the run's shape, on any device; parameters that need no gradient are left as they are.
        arrays: the final model, by name.
        where: their origin, for errors.

    Raises:
        ConfigError: the model has other arrays.
        BadUpdate: one has another shape or dtype.
    """
    tensors = travelling(model)
    if arrays.keys() != tensors.keys():
        strange = sorted(arrays.keys() ^ tensors.keys())
        raise ConfigError(
            f"{where}: expected the {len(tensors)} arrays of the model, found {len(arrays)}, and {strange[0]!r} is in "
            "one of them only. Where they are adapters, `fedloom adapters export` makes a checkpoint of PEFT's"
        )
    with torch.no_grad():
        for tensor, value in zip(tensors.values(), fitting(arrays, tensors, CPU), strict=True):
            tensor.copy_(value)
    return model


def predict(experiment: Experiment, arrays: Arrays, inputs: object) -> Array:
    """Return predictions of a run's final model, on the CPU.

    Args:
        experiment: the run's.
        arrays: its final model.
        inputs: what the workload prepares: arrays or tensors, (n, …), a tuple of them for a model with several.

    Returns:
        The class of each example, (n,), or the outputs, (n, …), where targets are no classes.

    Raises:
        ConfigError: the workload's model is no PyTorch module.
        PluginInvalid: the inputs are no arrays.
    """
    task = _task(experiment)
    given = task.prepared(inputs)
    columns = given if isinstance(given, tuple) else (given,)
    tensors = [as_column(each, f"entry {n} of the inputs", "predict", targets=False) for n, each in enumerate(columns)]
    if len({len(each) for each in tensors}) > 1:
        raise PluginInvalid(f"predict: the inputs have lengths {[len(each) for each in tensors]}, expected the same")
    model, made = fill(_initial(task), arrays, "the run's arrays").eval(), list[Tensor]()
    with exact(CPU, seed=0), torch.inference_mode():
        for rows in minibatches(np.arange(len(tensors[0])), task.evaluation_batch, CPU):
            made.append(task.predicted(task.outputs(model, *(each.index_select(0, rows) for each in tensors))))
    return np.zeros(0, np.float32) if not made else np.asarray(torch.cat(made).numpy())


def _task(experiment: Experiment) -> RowTask[TorchConfig]:
    with torch.inference_mode(False), torch.enable_grad():  # a loss is tried out, whatever the caller's mode
        workload: object = build_workload(experiment.workload, experiment)
    if not isinstance(workload, RowTask):
        raise ConfigError(
            f"workload {experiment.workload.name!r}: expected one whose model is a PyTorch module (a TorchWorkload), "
            f"found a {type(workload).__name__}; read the arrays with safetensors"
        )
    return workload


def _initial(workload: RowTask[TorchConfig]) -> nn.Module:
    with exact(CPU, seed=0):
        return workload.initial().to(CPU)

"""A classifier of the user's own: a function in a module or a Python file, and weights in a safetensors file."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedloom.core.errors import ConfigError, DataMissing

_COUNTER = "num_batches_tracked"
"""Last word of batch normalisation's counter, which fedloom's models do not have."""


def build_classifier(spec: str, shape: tuple[int, int, int], num_labels: int) -> nn.Module:
    """Return the module made by the function that `spec` names, `package.module:function` or `./file.py:function`.

    It is called as `function(shape, num_labels)`, with (channels, height, width), and must give logits
    (b, num_labels) for images (b, channels, height, width).

    Raises:
        ConfigError: there is no such function, or its result is not such a module.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ConfigError(f'workload.classifier: expected "MODULE:FUNCTION" or "./FILE.py:FUNCTION", got {spec!r}')
    function = getattr(_module(place, spec), name, None)
    if not callable(function):
        raise ConfigError(f"workload.classifier: {place!r} has no function {name!r}")
    model = function(shape, num_labels)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"workload.classifier: {spec!r} made a {type(model).__name__}, expected a torch.nn.Module")
    training = model.training
    with torch.no_grad():
        found = tuple(model.eval()(torch.zeros(2, *shape)).shape)
    if found != (2, num_labels):
        raise ConfigError(
            f"workload.classifier: {spec!r} turns images (2, {', '.join(map(str, shape))}) into {found}, expected "
            f"logits (2, {num_labels})"
        )
    return model.train(training)


def load_weights(model: nn.Module, path: str) -> None:
    """Set the model's arrays to those of a safetensors file.

    Raises:
        DataMissing: there is no such file, or it cannot be read.
        ConfigError: its arrays are not the model's.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataMissing(
            f"workload.weights: file {str(file)!r} not found (looked from {Path.cwd()}). Give a .safetensors file"
        )
    try:
        arrays = load_file(file)
    except SafetensorError as exc:
        raise DataMissing(f"workload.weights: {str(file)!r} is not a safetensors file: {exc}") from exc
    want = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in arrays.items() if name in want or not name.endswith(_COUNTER)}
    odd = sorted(name for name in want.keys() | got.keys() if want.get(name) != got.get(name))
    if odd:
        raise ConfigError(
            f"workload.weights: {str(file)!r} does not fit the model in {len(odd)} arrays, first {odd[0]!r}: the file "
            f"has {got.get(odd[0], 'nothing')}, the model {want.get(odd[0], 'nothing')}"
        )
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(arrays[name])


def _module(place: str, spec: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        file = Path(place).expanduser()
        found = importlib.util.spec_from_file_location(f"_fedloom_classifier_{file.stem}", file)
        if not file.is_file() or found is None or found.loader is None:
            raise ConfigError(f"workload.classifier: file {place!r} not found (looked from {Path.cwd()})")
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module
    except ImportError as exc:
        raise ConfigError(f"workload.classifier: {spec!r} cannot be imported: {exc}") from exc

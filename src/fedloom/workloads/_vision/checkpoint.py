"""Pretrained weights for fedloom's networks: the final arrays of an earlier run, read strictly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fedloom.core import frames
from fedloom.core.errors import BadFrame, ConfigError, DataMissing, LimitExceeded
from fedloom.core.records import Arrays
from fedloom.workloads._adapters.targets import output_layer
from fedloom.workloads._torch.arrays import as_tensor

_WEIGHTS = Path("model") / "model.safetensors"
_SHOWN = 4
"""Limit of names per kind in an error."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file of arrays, under the names of the model that wrote it."""

    path: Path

    @classmethod
    def find(cls, place: str) -> Checkpoint:
        """Return the file of a run's folder, or the file itself.

        Raises:
            DataMissing: there is none; the message says how to create one.
        """
        path = Path(place).expanduser()
        for candidate in (path, path / _WEIGHTS, path / _WEIGHTS.name):
            if candidate.is_file():
                return cls(candidate)
        raise DataMissing(
            f"workload.model.pretrained: no {_WEIGHTS} in {place!r} (looked from {Path.cwd()}). Expected the folder of "
            "a finished run of the same network, or its .safetensors file. For the vision transformer of the presets, "
            "run: fedloom run fashion-vit-pretrain --out runs/fashion-vit-pretrain"
        )

    @property
    def weights_sha256(self) -> dict[str, str]:
        """Return the digest of the file, by name."""
        return {self.path.name: hashlib.sha256(self.path.read_bytes()).hexdigest()}

    def load_into(self, model: nn.Module, *, fresh_head: bool) -> None:
        """Set a model's arrays to the file's; its output layer is unchanged if the number of classes differs.

        Args:
            model: whose arrays are set.
            fresh_head: whether the output layer is unchanged in any case.

        Raises:
            ConfigError: the file's arrays are not this model's; the message names those missing, left over, and of
                another shape.
        """
        found = self._read()
        head = f"{output_layer(model)[0]}."
        wanted = model.state_dict()
        kept = {name for name in wanted if name.startswith(head) and name in found}
        if fresh_head or any(found[name].shape != tuple(wanted[name].shape) for name in kept):
            found = {name: array for name, array in found.items() if name not in kept}
        else:
            head = ""
        self._check(found, {name: t for name, t in wanted.items() if not head or not name.startswith(head)})
        with torch.no_grad():
            for name, array in found.items():
                wanted[name].copy_(as_tensor(array))

    def _read(self) -> Arrays:
        try:
            groups = frames.decode(self.path.read_bytes()).groups
        except (BadFrame, LimitExceeded) as exc:
            raise DataMissing(f"workload.model.pretrained: {self.path} is not a .safetensors file: {exc}") from exc
        return {name: array for arrays in groups.values() for name, array in arrays.items()}

    def _check(self, found: Arrays, wanted: Mapping[str, Tensor]) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
        other = [
            f"{name} is {array.shape}, not {shapes[name]}"
            for name, array in found.items()
            if name in shapes and array.shape != shapes[name]
        ]
        odd = {
            "missing": sorted(shapes.keys() - found.keys()),
            "left over": sorted(found.keys() - shapes.keys()),
            "of another shape": other,
        }
        if any(odd.values()):
            reported = "; ".join(f"{kind}: {_listed(names)}" for kind, names in odd.items() if names)
            raise ConfigError(
                f"workload.model.pretrained: {self.path} does not contain this network ({reported}). Set "
                "workload.model, workload.resize and workload.channels to the values it was trained with"
            )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

"""Adapters as folders in PEFT's form, written and read without PEFT.

Such a folder holds `adapter_config.json` and `adapter_model.safetensors`. PEFT scales a module's adapter by alpha/r,
where r is that module's own rank; ours have one constant scale s. Export therefore states alpha = s·r for each module;
import folds what is left of the difference into B.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from torch import nn

from fedloom.core.errors import ConfigError, DataMissing, UnsupportedFeature
from fedloom.core.records import Array, Arrays
from fedloom.workloads._adapters.targets import is_conv1d, shape_of

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_UNSUPPORTED = ("use_dora", "lora_bias", "layer_replication", "megatron_config", "target_parameters")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterFile:
    """What an adapter's folder holds, in the federation's form."""

    a: Arrays
    """A (r, i) by module."""
    b: Arrays
    """B (o, r) by module."""
    scale: float
    """s."""
    head: Arrays = field(default_factory=dict)
    """Arrays trained beside the adapters, by the model's names."""


def export_adapters(folder: Path, model: nn.Module, adapters: AdapterFile, *, base: str = "") -> None:
    """Write a folder that `peft.PeftModel.from_pretrained(model, folder)` reads.

    Args:
        folder: made where it is not there.
        model: whose modules the adapters belong to; only its structure is read.
        adapters: what to write; names are the model's.
        base: what PEFT notes as the base model's name.
    """
    tensors: dict[str, Array] = {}
    for name, a in adapters.a.items():
        for key, factor in _stored(model.get_submodule(name), name, a, adapters.b[name]).items():
            tensors[f"{_PREFIX}{key}"] = np.ascontiguousarray(factor)
    tensors |= {f"{_PREFIX}{name}": np.ascontiguousarray(array) for name, array in adapters.head.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    (folder / _CONFIG).write_text(json.dumps(_config(model, adapters, base), indent=2) + "\n")


def import_adapters(folder: Path, model: nn.Module, *, scale: float | None = None) -> AdapterFile:
    """Read a folder PEFT wrote for this model.

    Args:
        folder: with PEFT's two files; pickled weights are not read.
        model: whose modules the adapters belong to; only its structure is read.
        scale: s the result is to have; None takes that of the first module.

    Raises:
        DataMissing: a file is not there or not readable.
        UnsupportedFeature: an adapter of a kind that is more than B A.
        ConfigError: keys that are missing or left over, named.
    """
    config, tensors = _read(folder)
    odd = [key for key in _UNSUPPORTED if config.get(key)]
    odd += [f"bias={config['bias']}"] if config.get("bias", "none") != "none" else []
    if config.get("peft_type") != "LORA" or odd:
        raise UnsupportedFeature(
            f"{folder}: an adapter of type {config.get('peft_type')!r} with {odd or 'no extras'}; only plain LoRA "
            "adapters, W + s·B A, can be read"
        )
    modules = dict(model.named_modules())
    a, b, head = _sorted_out(folder, tensors, modules)
    scales = {name: _scaling(config, name, len(a[name])) for name in a}
    wanted = scale if scale is not None else next(iter(scales.values()))
    b = {name: (array * np.float32(scales[name] / wanted)).astype(np.float32) for name, array in b.items()}
    return AdapterFile(a=a, b=b, scale=wanted, head=head)


def _stored(module: nn.Module, name: str, a: Array, b: Array) -> dict[str, Array]:
    """A module's factors under the keys and in the shapes PEFT gives them."""
    if isinstance(module, nn.Embedding):
        return {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
    if isinstance(module, nn.Conv2d):
        a, b = a.reshape(len(a), module.in_channels, *module.kernel_size), b[:, :, None, None]
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}


def _config(model: nn.Module, adapters: AdapterFile, base: str) -> dict[str, Any]:
    ranks = {name: len(a) for name, a in adapters.a.items()}
    first = next(iter(ranks.values()))
    head = list(dict.fromkeys(name.rpartition(".")[0] for name in adapters.head))
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": None,
        "inference_mode": True,
        "r": first,
        "lora_alpha": adapters.scale * first,
        "rank_pattern": {re.escape(name): rank for name, rank in ranks.items() if rank != first},
        "alpha_pattern": {re.escape(name): adapters.scale * rank for name, rank in ranks.items() if rank != first},
        "target_modules": list(ranks),
        "modules_to_save": head or None,
        "fan_in_fan_out": any(is_conv1d(model.get_submodule(name)) for name in ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        return json.loads((folder / _CONFIG).read_text()), load_file(folder / _WEIGHTS)
    except (OSError, ValueError) as exc:
        raise DataMissing(
            f"{folder}: expected an adapter in PEFT's form ({_CONFIG} and {_WEIGHTS}): {type(exc).__name__}: {exc}"
        ) from exc


def _sorted_out(
    folder: Path, tensors: Mapping[str, Array], modules: Mapping[str, nn.Module]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """The file's tensors as factors A and B by module, and the head."""
    a: dict[str, Array] = {}
    b: dict[str, Array] = {}
    head: dict[str, Array] = {}
    odd = []
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        found = re.fullmatch(r"(.*)\.lora_(?:embedding_)?([AB])(?:\.weight)?", name)
        shape = shape_of(modules[found[1]], found[1]) if found and found[1] in modules else None
        if found and shape is not None:
            side = a if found[2] == "A" else b
            side[found[1]] = tensor.reshape(len(tensor), -1).astype(np.float32)
        elif not found and name.rpartition(".")[0] in modules:
            head[name] = tensor
        else:
            odd.append(key)
    alone = sorted(a.keys() ^ b.keys())
    if odd or alone or not a:
        raise ConfigError(
            f"{folder}: the adapter does not fit this model: {len(odd)} keys left over ({odd[:3]}), modules with only "
            f"one factor: {alone[:3]}, modules with both: {len(a.keys() & b.keys())}. Nothing was loaded"
        )
    return a, b, head


def _scaling(config: Mapping[str, Any], name: str, rank: int) -> float:
    """What PEFT multiplies a module's B A by."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    matching = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
    alpha = float(next(matching, config["lora_alpha"]))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

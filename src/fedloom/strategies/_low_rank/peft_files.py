"""Adapters as folders in PEFT's form, written and read without PEFT.

Such a folder contains `adapter_config.json` and `adapter_model.safetensors`. PEFT scales a module's adapter by alpha/r,
where r is that module's own rank; ours have one constant scale s. Export therefore states alpha = s·r for each module;
import multiplies the remaining difference into B.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedloom.core.errors import ConfigError, DataMissing, UnsupportedFeature
from fedloom.core.records import Array, Arrays, Info
from fedloom.strategies._low_rank.layers import Layer

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_BASE = "fedloom.base_sha256"
"""Key of the weights file's metadata for the digest of the adapters' base."""
_UNSUPPORTED = ("use_dora", "lora_bias", "layer_replication", "megatron_config", "target_parameters")
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterFile:
    """Content of an adapter's folder, in the federation's form."""

    a: Arrays
    """A (r, i) by module."""
    b: Arrays
    """B (o, r) by module."""
    scale: float
    """s."""
    head: Arrays = field(default_factory=dict)
    """Arrays trained besides the adapters, by the model's names."""
    base_sha256: str | None = None
    """`core.records.arrays_sha256` of the frozen base; None if it was not recorded."""


def export_adapters(folder: Path, layers: Mapping[str, Layer], adapters: AdapterFile, *, base: str = "") -> None:
    """Write a folder that `peft.PeftModel.from_pretrained(model, folder)` reads.

    Args:
        folder: made where it is not there.
        layers: the modules with adapters.
        adapters: what to write.
        base: what PEFT notes as the base model's name.
    """
    tensors: dict[str, Array] = {}
    for name, a in adapters.a.items():
        for key, factor in _stored(layers[name], name, a, adapters.b[name]).items():
            tensors[f"{_PREFIX}{key}"] = np.ascontiguousarray(factor)
    tensors |= {f"{_PREFIX}{name}": np.ascontiguousarray(array) for name, array in adapters.head.items()}
    noted = {_BASE: adapters.base_sha256} if adapters.base_sha256 else {}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _WEIGHTS).write_bytes(save(tensors, {"format": "pt", **noted}))
    (folder / _CONFIG).write_text(json.dumps(_config(layers, adapters, base), indent=2) + "\n", encoding="utf-8")


def import_adapters(
    folder: Path, layers: Mapping[str, Layer], head: Collection[str] = (), *, scale: float | None = None
) -> AdapterFile:
    """Read a folder PEFT wrote; strictly, so that it has an adapter for each of the modules and nothing else.

    Args:
        folder: with PEFT's two files; pickled weights are not read.
        layers: the modules that are to carry adapters.
        head: names of further arrays the file may have: all of them, or none.
        scale: s the result is to have; None takes that of the first module.

    Raises:
        DataMissing: a file is not there or not readable.
        UnsupportedFeature: an adapter of a kind that is more than B A.
        ConfigError: keys that are missing or left over, or of other shapes, named.
    """
    config, tensors, noted = _read(folder)
    odd = [key for key in _UNSUPPORTED if config.get(key)]
    odd += [f"bias={config['bias']}"] if config.get("bias", "none") != "none" else []
    if config.get("peft_type") != "LORA" or odd:
        raise UnsupportedFeature(
            f"{folder}: an adapter of type {config.get('peft_type')!r} with {odd or 'no extras'}; only plain LoRA "
            "adapters, W + s·B A, can be read"
        )
    a, b, beside = _sorted_out(folder, tensors, layers, head)
    scales = {name: _scaling(config, name, len(a[name])) for name in a}
    wanted = scale if scale is not None else next(iter(scales.values()))
    b = {name: (b[name] * np.float32(scales[name] / wanted)).astype(np.float32) for name in layers}
    ordered = {name: a[name] for name in layers}
    return AdapterFile(a=ordered, b=b, scale=wanted, head=beside, base_sha256=noted.get(_BASE))


def _stored(layer: Layer, name: str, a: Array, b: Array) -> dict[str, Array]:
    """Return a module's factors with PEFT's keys and shapes."""
    if layer.kind == "embedding":
        return {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
    if layer.kernel:
        a, b = a.reshape(len(a), -1, *layer.kernel), b[:, :, None, None]
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}


def _config(layers: Mapping[str, Layer], adapters: AdapterFile, base: str) -> Info:
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
        "fan_in_fan_out": any(layers[name].kind == "conv1d" for name in ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _read(folder: Path) -> tuple[Info, dict[str, Array], dict[str, str]]:
    """Return the settings, the tensors, and the weights file's metadata."""
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / _WEIGHTS, "numpy") as file:
            return config, {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as exc:
        raise DataMissing(
            f"{folder}: expected an adapter in PEFT's form ({_CONFIG} and {_WEIGHTS}): {type(exc).__name__}: {exc}"
        ) from exc


def _sorted_out(
    folder: Path, tensors: Mapping[str, Array], layers: Mapping[str, Layer], head: Collection[str]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Return the file's tensors as factors A and B by module, and the head."""
    a: dict[str, Array] = {}
    b: dict[str, Array] = {}
    beside: dict[str, Array] = {}
    odd = []
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        found = re.fullmatch(r"(.*)\.lora_(?:embedding_)?([AB])(?:\.weight)?", name)
        if found and found[1] in layers:
            side = a if found[2] == "A" else b
            side[found[1]] = tensor.reshape(len(tensor), -1).astype(np.float32)
        elif name in head:
            beside[name] = tensor
        else:
            odd.append(key)
    missing = [f"{name}.lora_{side}" for side, found in (("A", a), ("B", b)) for name in layers if name not in found]
    missing += [name for name in head if name not in beside] if beside else []
    if odd or missing:
        raise ConfigError(
            f"{folder}: the adapter does not fit the {len(layers)} modules that should have one: {_few(missing)} "
            f"missing, {_few(odd)} left over. Nothing was loaded"
        )
    for name, layer in layers.items():
        if (a[name].shape[1], len(b[name])) != (layer.in_, layer.out) or len(a[name]) != b[name].shape[1]:
            raise ConfigError(
                f"{folder}: factors A {a[name].shape} and B {b[name].shape} do not fit module {name!r}; expected A "
                f"(r, {layer.in_}) and B ({layer.out}, r). Nothing was loaded"
            )
    return a, b, beside


def _few(keys: Iterable[str]) -> str:
    """Return the number of keys and the first of them, in words."""
    keys = list(keys)
    return f"{len(keys)} keys" + (f" ({', '.join(keys[:_SHOWN])}{', …' if len(keys) > _SHOWN else ''})" if keys else "")


def _scaling(config: Info, name: str, rank: int) -> float:
    """Return PEFT's factor of a module's B A."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    matching = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
    alpha = float(next(matching, config["lora_alpha"]))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

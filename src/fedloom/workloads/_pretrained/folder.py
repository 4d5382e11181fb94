"""Folders in transformers' form: a local one, one inside an installed package, or a hub's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedloom.core.errors import DataMissing
from fedloom.core.records import Info
from fedloom.workloads._data.raw import files_below

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


@dataclass(frozen=True, slots=True)
class Location:
    """An experiment's settings for a pretrained model, for finding it and for errors."""

    name: str
    """Its name in the experiment."""
    setting: str
    """The setting that names it, such as `workload.model.body`."""
    remedy: str
    """How to get a model without a network."""
    packaged: Mapping[str, Callable[[], Path | None]]
    """Names of models that ship inside Python packages, each with a function that finds its folder; None if the package
    is not installed."""


@dataclass(frozen=True, slots=True)
class PretrainedFolder:
    """A folder with a pretrained transformer: `config.json`, `*.safetensors`, tokenizer files."""

    name: str
    """Its name in the experiment."""
    path: Path
    config: Info
    """Content of `config.json`."""
    weights_sha256: dict[str, str]
    """Digest of each weights file, by name."""

    @property
    def tokenizer_files(self) -> list[tuple[str, Path]]:
        """Return the files that determine how texts become tokens."""
        return [(name, self.path / name) for name in _TOKENIZER if (self.path / name).is_file()]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the folder's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.path), local_files_only=True)


def find_pretrained(place: Location) -> PretrainedFolder:
    """Return the folder of a pretrained model.

    Raises:
        DataMissing: missing, or not a transformer's folder; the message says how to get one.
    """
    path = _path(place)
    weights = files_below(path, (".safetensors",))
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise DataMissing(
            f"{place.setting}: {path} has no readable config.json ({type(exc).__name__}); expected a folder in "
            f"transformers' form. {place.remedy}"
        ) from exc
    if not weights:
        raise DataMissing(f"{place.setting}: {path} has no .safetensors weights (pickled weights are not read)")
    return PretrainedFolder(place.name, path, config, {name: _sha256(where) for name, where in weights})


@contextmanager
def quiet() -> Iterator[None]:
    """Load with transformers' progress bars off, and without its reports of unused weights."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _path(place: Location) -> Path:
    name = place.name
    if name in place.packaged:
        found = place.packaged[name]()
        if found is None:
            raise DataMissing(
                f"{place.setting}: {name!r} is a Python package that is not installed. {place.remedy}   "
                f"Or set {place.setting} to a folder in transformers' form"
            )
        return found
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith((".", "/", "~")):
        raise DataMissing(f"{place.setting}: no folder {str(path)!r} (looked from {Path.cwd()}). {place.remedy}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors", *_TOKENIZER]))
    except (OSError, ValueError) as exc:  # the hub's errors are both kinds
        raise DataMissing(
            f"{place.setting}: {name!r} is no folder here and cannot be fetched from the hub (is there a "
            f"network?): {type(exc).__name__}: {str(exc).splitlines()[0]}. Without a network: {place.remedy}"
        ) from exc


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

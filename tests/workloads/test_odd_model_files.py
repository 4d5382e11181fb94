"""Model files of anybody's making: a hostile header is an error, and its memory is not taken."""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedloom.core import frames
from fedloom.core.errors import FedloomError
from fedloom.core.records import Record

torch = pytest.importorskip("torch")

from fedloom.strategies._low_rank import peft_files  # noqa: E402
from fedloom.workloads._base.loading import saved_arrays  # noqa: E402
from fedloom.workloads._vision.checkpoint import Checkpoint  # noqa: E402
from fedloom.workloads._vision.user_classifier import load_weights  # noqa: E402


def header(table: Any, length: int | None = None, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ODD = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "a header of 2^63 bytes": header({}, 2**63),
    "a header of 2^64 - 1 bytes": header({}, 2**64 - 1),
    "a header of a terabyte": header({}, 1 << 40),
    "a header longer than the file": header({}, 1000),
    "an array of a terabyte": header({"w": entry([1 << 38], 0, 1 << 40)}),
    "a shape that overflows": header({"w": entry([2**33, 2**33], 0, 8)}, data=bytes(8)),
    "offsets backwards": header({"w": entry([2], 8, 0)}, data=bytes(8)),
    "offsets before the data": header({"w": entry([2], -8, 0)}, data=bytes(8)),
    "overlapping arrays": header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, data=bytes(12)),
    "an unknown type": header({"w": entry([2], 0, 8, "PICKLE")}, data=bytes(8)),
    "a deep header": header(b"[" * 100_000),
    "a list": header([1, 2]),
    "metadata that is none": header({"__metadata__": {"fedloom": "[" * 5000}, "w": entry([2], 0, 8)}, data=bytes(8)),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    "a zip": b"PK\x03\x04" + bytes(100),
}
READERS: dict[str, Callable[[Path], object]] = {
    "the start of workload torch": lambda file: saved_arrays(file),
    "a run's final model": lambda file: saved_arrays(file.parent.parent),
    "pretrained images": lambda file: Checkpoint(file)._read(),
    "a classifier's weights": lambda file: load_weights(torch.nn.Linear(1, 1), str(file)),
    "adapters": lambda file: peft_files._read(file.parent),
}
FOREIGN = ("the start of workload torch", "adapters")
"""Those that read files of other programs, too."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", ODD)
def test_a_hostile_header_is_an_error_and_takes_no_memory(what: str, reader: str, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    file = folder / ("adapter_model.safetensors" if reader == "adapters" else "model.safetensors")
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    file.write_bytes(ODD[what])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if what == "metadata that is none" and reader in FOREIGN:
        assert READERS[reader](file), "a sound file of another program, whose metadata may be anything"
        return
    with pytest.raises(FedloomError):
        READERS[reader](file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"
    assert not Path("/tmp/owned").exists()


def test_the_control_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    record = Record({"model": {"w": np.ones(2, np.float32)}})
    (folder / "model.safetensors").write_bytes(bytes(frames.encode(record)))
    for place in (folder / "model.safetensors", tmp_path / "run"):
        assert list(saved_arrays(place)) == ["w"]

"""Pinned records: their names, and states that hold them."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pytest

from fedloom.core import frames
from fedloom.core.pinned import Pinned
from fedloom.core.records import Array, Record
from fedloom.core.state import dump_state, load_state, pinned_in


def record(value: float = 1.0) -> Record:
    half = np.full(5, value, np.float16)
    return Record({"model": {"w": np.full((3, 2), value, np.float32), "h": half}, "other": {}}, {"order": ["h", "w"]})


def test_the_name_is_the_frames_digest_and_outlives_a_frame() -> None:
    pinned = Pinned.of(record())
    assert pinned.sha256 == sha256(frames.encode(record())).hexdigest() == frames.digest(pinned)
    again = frames.decode(bytes(frames.encode(pinned)))
    assert Pinned.of(again).sha256 == pinned.sha256 != Pinned.of(record(2.0)).sha256
    assert pinned.groups["model"]["w"] is not again.groups["model"]["w"] and pinned.num_elements == 11


@dataclass(frozen=True)
class State:
    now: Array
    base: Pinned | None
    folds: tuple[Pinned, ...]


@pytest.mark.parametrize("folds", [0, 2])
def test_a_state_is_dumped_without_them_and_loaded_with_them(folds: int) -> None:
    state = State(np.ones(2), Pinned.of(record()), tuple(Pinned.of(record(v)) for v in (2.0, 3.0)[:folds]))
    dump, kept = dump_state(state), pinned_in(state)
    assert dump.num_elements == 2 and len(kept) == 1 + folds
    loaded = load_state(State, frames.decode(bytes(frames.encode(dump))), kept)
    assert loaded.base is state.base and loaded.folds == state.folds and isinstance(loaded.folds, tuple)
    nothing = State(np.ones(2), None, ())
    assert load_state(State, dump_state(nothing)).base is None and not pinned_in(nothing)

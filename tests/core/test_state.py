"""States survive being saved: dump, frame, load, and equal again."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fedloom.core import frames
from fedloom.core.errors import BadFrame
from fedloom.core.records import Array, Arrays
from fedloom.core.state import dump_state, load_state


@dataclass(frozen=True, slots=True)
class Everything:
    model: Arrays
    single: Array
    scalar: Array
    result: Array | np.float64
    nothing: Array | None
    empty: Arrays
    cohort: tuple[int, ...]
    maybe: tuple[str, ...] | None
    table: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    rate: float = 0.5
    word: str = ""


def example() -> Everything:
    return Everything(
        model={"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], ml_dtypes.bfloat16)},
        single=np.arange(3, dtype=np.int64),
        scalar=np.array(2.5),
        result=np.array(2.5) * 2,  # a NumPy scalar
        nothing=None,
        empty={},
        cohort=(3, 1, 2),
        maybe=("a", "b"),
        table={"seen": [1, 2], "by": {"x": None, "y": 0.1}},
        step=7,
        rate=1e-300,
        word="ü",
    )


def same(left: Any, right: Any) -> None:
    for each in fields(left):
        mine, theirs = getattr(left, each.name), getattr(right, each.name)
        if isinstance(mine, np.ndarray | np.generic):
            mine, theirs = {"": mine}, {"": theirs}
        if isinstance(mine, Mapping) and any(isinstance(value, np.ndarray) for value in mine.values()):
            assert list(mine) == list(theirs)
            for name, array in mine.items():
                assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
                assert array.tobytes() == theirs[name].tobytes()
        else:
            assert type(mine) is type(theirs) and mine == theirs, each.name


def test_a_state_is_equal_after_a_frame() -> None:
    frame = bytes(frames.encode(dump_state(example())))
    same(example(), load_state(Everything, frames.decode(frame)))


def test_a_loaded_state_does_not_need_the_frame_any_more() -> None:
    buffer = bytearray(frames.encode(dump_state(example())))
    state = load_state(Everything, frames.decode(buffer))
    buffer[:] = bytes(len(buffer))
    same(example(), state)


def test_a_state_with_other_things_in_it_is_refused_where_it_is_saved() -> None:
    @dataclass(frozen=True)
    class Odd:
        generator: Any

    with pytest.raises(BadFrame, match="info must be JSON"):
        frames.encode(dump_state(Odd(np.random.Generator(np.random.PCG64(1)))))

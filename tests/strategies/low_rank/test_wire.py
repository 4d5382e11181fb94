"""Packed groups: what comes back, and how much travels."""

import numpy as np
import pytest

from fedloom.core.records import Record
from fedloom.strategies._low_rank.wire import BLOCK, Wire, dequantized, pack, quantized, unpack


def groups() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.Generator(np.random.PCG64(4))
    return {
        "model": {"w": rng.standard_normal((5, 30)).astype(np.float32), "count": np.array(7), "d": rng.random(3)},
        "lora_a": {"w": np.zeros((2, 3), np.float32)},
    }


@pytest.mark.parametrize("wire", ["fp32", "fp16", "int8"])
def test_names_shapes_and_dtypes_come_back(wire: Wire) -> None:
    plain = unpack(*pack(groups(), wire))
    for group, arrays in groups().items():
        assert {n: (a.dtype, a.shape) for n, a in plain[group].items()} == {
            n: (a.dtype, a.shape) for n, a in arrays.items()
        }
    assert plain.keys() == groups().keys() and plain["model"]["count"] == 7 and not plain["lora_a"]["w"].any()


def test_elements_and_bytes_by_formula() -> None:
    size = {wire: Record(pack(groups(), wire)[0]) for wire in ("fp32", "fp16", "int8")}
    blocks = -(-150 // BLOCK) + 1 + 1  # w, d, and the factor
    assert [record.num_elements for record in size.values()] == [160, 160, 160 + blocks]
    assert [record.num_bytes for record in size.values()] == [
        4 * 150 + 8 + 8 * 3 + 4 * 6,
        2 * 150 + 8 + 2 * 3 + 2 * 6,
        150 + 8 + 3 + 6 + 4 * blocks,
    ]


def test_eight_bits_are_off_by_at_most_half_a_step_of_their_block() -> None:
    values = groups()["model"]["w"] * np.linspace(0.01, 100, 30, dtype=np.float32)
    whole, scales = quantized(values)
    assert whole.dtype == np.int8 and whole.shape == values.shape and np.abs(whole).max() == 127
    steps = np.repeat(scales, BLOCK)[: values.size].reshape(values.shape)
    assert (np.abs(dequantized(whole, scales) - values) <= 0.5001 * steps).all()


def test_half_precision_does_not_overflow() -> None:
    packed, reported = pack({"model": {"w": np.array([1e6, -1e6, 1.0], np.float32)}}, "fp16")
    np.testing.assert_allclose(unpack(packed, reported)["model"]["w"], [65504, -65504, 1])

"""Records, metrics that add, digests."""

import hashlib
import math

import ml_dtypes
import numpy as np
import pytest

from fedloom.core.records import Mean, Record, RoundContext, add_metrics, arrays_sha256, metric_values


def test_the_digest_is_sha256_of_names_dtypes_shapes_and_bytes_in_order_of_names() -> None:
    b = np.array([[1, 2, 3], [4, 5, 6]], np.int8)
    a = np.array(1.5, np.float32)
    by_hand = b"a\0float32\0\0" + a.tobytes() + b"b\0int8\x002,3\0" + b.tobytes()
    assert arrays_sha256({"b": b, "a": a}) == hashlib.sha256(by_hand).hexdigest()


def test_the_digest_sees_values_names_dtypes_and_shapes_but_not_strides() -> None:
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    base = arrays_sha256({"w": w})
    assert arrays_sha256({"w": np.asfortranarray(w)}) == base
    assert arrays_sha256({"w": np.concatenate([w, w], 1)[:, :3]}) == base
    for other in (
        {"v": w},
        {"w": w.reshape(3, 2)},
        {"w": w.view(np.int32)},
        {"w": w + np.float32(1e-7)},
        {"w": w, "e": np.zeros(0, np.float32)},
        {},
    ):
        assert arrays_sha256(other) != base


def test_the_digest_takes_every_dtype() -> None:
    arrays = {"bf": np.ones(3, ml_dtypes.bfloat16), "b": np.array([True]), "e": np.zeros((0, 3), np.float16)}
    by_hand = b"b\0bool\x001\0\x01" + b"bf\0bfloat16\x003\0" + arrays["bf"].tobytes() + b"e\0float16\x000,3\0"
    assert arrays_sha256(arrays) == hashlib.sha256(by_hand).hexdigest()


def test_counting() -> None:
    record = Record(
        {"model": {"w": np.zeros((2, 3), np.float32), "s": np.array(1.0)}, "c": {"n": np.zeros(5, np.int8)}}
    )
    assert record.num_elements == 6 + 1 + 5
    assert record.num_bytes == 24 + 8 + 5
    assert [(group, name) for group, name, _ in record.items()] == [("model", "w"), ("model", "s"), ("c", "n")]


def test_metrics_add_up_and_divide_once() -> None:
    total = add_metrics(
        {"loss": Mean(6.0, 3.0), "only": Mean(1.0, 2.0)}, {"loss": Mean(2.0, 1.0), "new": Mean(0.0, 0.0)}
    )
    assert total == {"loss": Mean(8.0, 4.0), "only": Mean(1.0, 2.0), "new": Mean(0.0, 0.0)}
    values = metric_values(total)
    assert (values["loss"], values["only"]) == (2.0, 0.5) and math.isnan(values["new"])


def test_a_round_has_one_job_per_client_in_cohort_order() -> None:
    context = RoundContext(round=4, cohort=(7, 2, 9), population=10, rounds=5, seed=1)
    jobs = context.jobs("train", knobs={"mu": 1})
    assert [(job.client, job.round, job.knobs) for job in jobs] == [(c, 4, {"mu": 1}) for c in (7, 2, 9)]


def test_a_rounds_randomness_is_its_own() -> None:
    first, second = (RoundContext(round=r, cohort=(), population=1, rounds=2, seed=1) for r in (1, 2))
    assert first.rng("a").random() == first.rng("a").random()
    assert len({c.rng(*path).random() for c in (first, second) for path in ((), ("a",), ("b",))}) == 6


def test_values_that_cross_rooms_are_frozen() -> None:
    context = RoundContext(round=1, cohort=(1,), population=1, rounds=1, seed=1)
    with pytest.raises(AttributeError):
        context.round = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Mean(1.0, 1.0).sum = 2.0  # type: ignore[misc]

"""Inputs are read once for each exchange of each run, and again when they may be others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedloom.client.input_cache import InputCache
from fedloom.client.record_cache import RecordCache
from fedloom.core import frames
from fedloom.core.messages import Group, GroupKey, PayloadRef
from fedloom.core.pinned import Pinned
from fedloom.core.records import Record


def record(value: float) -> Record:
    """100 floats: 400 bytes of array data."""
    return Record({"model": {"w": np.full(100, value, np.float32)}})


class Server:
    """Gives records by what a reference names them by, and counts."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.records: dict[str, Record] = {}

    def remote(self, value: float) -> PayloadRef:
        sha256 = frames.digest(record(value))
        self.records[sha256] = record(value)
        return PayloadRef(size=1, sha256=sha256)

    def shared(self, name: str, value: float) -> PayloadRef:
        self.records[name] = record(value)
        return PayloadRef(size=1, shared=name)

    def fetch(self, ref: PayloadRef) -> Record:
        name = ref.shared or ref.sha256
        self.fetched.append(name)
        return self.records[name]

    def cache(self, limit_bytes: int = 10_000) -> InputCache:
        return InputCache(self.fetch, RecordCache(self.fetch), limit_bytes)


def group(run: str, round: int, exchange: int, index: int, **inputs: PayloadRef) -> Group:
    return Group(key=GroupKey(run, round, exchange, index), jobs=(), inputs=inputs)


def value(inputs: dict[str, Record], name: str = "model") -> float:
    return float(inputs[name].groups["model"]["w"][0])


def test_runs_in_turn_read_each_input_once_and_get_the_same_object() -> None:
    server = Server()
    cache, refs = server.cache(), {"a": server.remote(1.0), "b": server.remote(2.0)}
    first = {run: cache.read(group(run, 1, 0, 0, model=ref)) for run, ref in refs.items()}
    for index in (1, 2):
        for run, ref in refs.items():
            assert cache.read(group(run, 1, 0, index, model=replace(ref))) is first[run]
    assert [value(inputs) for inputs in first.values()] == [1.0, 2.0]
    assert server.fetched == [ref.sha256 for ref in refs.values()]


def test_an_exchange_with_the_content_of_the_one_before_fetches_nothing() -> None:
    server = Server()
    cache, ref = server.cache(), server.remote(1.0)
    first = cache.read(group("a", 1, 0, 0, model=ref))
    second = cache.read(group("a", 1, 1, 0, model=replace(ref)))
    assert second is not first and second["model"] is first["model"] and len(server.fetched) == 1
    assert value(cache.read(group("a", 2, 0, 0, model=server.remote(3.0)))) == 3.0


def test_a_buffer_of_shared_memory_that_is_used_again_is_read_again() -> None:
    server = Server()
    cache = server.cache()
    cache.read(group("a", 1, 0, 0, model=server.shared("buffer", 1.0)))
    assert value(cache.read(group("a", 1, 1, 0, model=server.shared("buffer", 2.0)))) == 2.0


def test_an_exchange_that_a_restarted_server_repeats_with_other_content_is_read_again() -> None:
    server = Server()
    cache = server.cache()
    before = cache.read(group("a", 5, 0, 0, model=server.remote(1.0), anchor=server.remote(7.0)))
    after = cache.read(group("a", 5, 0, 0, model=server.remote(2.0), anchor=server.remote(7.0)))
    assert after is not before and (value(after), value(after, "anchor")) == (2.0, 7.0)
    assert len(server.fetched) == 3, "the anchor is the same"


def test_beyond_the_limit_the_run_served_longest_ago_is_dropped_and_the_present_one_never() -> None:
    server = Server()
    cache = server.cache(limit_bytes=900)
    refs = {run: server.remote(float(index)) for index, run in enumerate("abc")}
    for run in "abacab":
        assert value(cache.read(group(run, 1, 0, 0, model=refs[run]))) == float("abc".index(run))
        assert cache.num_bytes <= 900
    assert server.fetched == [refs[run].sha256 for run in "abcb"]
    small = server.cache(limit_bytes=1)
    assert small.read(group("a", 1, 0, 0, model=refs["a"])) is small.read(group("a", 1, 0, 1, model=refs["a"]))


def test_pinned_inputs_count_elsewhere_and_a_run_that_is_over_keeps_nothing() -> None:
    server = Server()
    cache, base = server.cache(), server.remote(1.0)
    inputs = cache.read(group("a", 1, 0, 0, base=replace(base, pinned=True)))
    assert isinstance(inputs["base"], Pinned) and cache.num_bytes == 0
    cache.read(group("a", 2, 0, 0, model=server.remote(2.0)))
    assert cache.num_bytes == 400
    cache.forget("a")
    assert cache.num_bytes == 0

"""Frames: round trips over every dtype, the safetensors layout, and what happens to frames that lie."""

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from fedloom.core import frames
from fedloom.core.errors import BadFrame, LimitExceeded
from fedloom.core.layout import ALIGNMENT, Layout
from fedloom.core.records import Record

DTYPES = [
    np.dtype(kind)
    for kind in (
        *(np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
        *(np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8, np.bool_),
    )
]
SHAPES = [(), (0,), (1,), (7,), (3, 5), (0, 4), (2, 0, 3), (2, 3, 4)]
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INFO = st.dictionaries(
    WORDS,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """An array of any dtype the format knows, with any bits in it (NaN payloads and negative zeros included)."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))
    raw = np.frombuffer(
        draw(st.binary(min_size=n, max_size=n)) if (n := math.prod(shape) * dtype.itemsize) else b"", "u1"
    )
    return (raw % 2).astype(bool).reshape(shape) if dtype == np.bool_ else raw.view(dtype).reshape(shape)


RECORDS = st.builds(Record, st.dictionaries(WORDS, st.dictionaries(WORDS, arrays(), max_size=3), max_size=3), INFO)


def same(left: Record, right: Record) -> None:
    assert left.info == right.info
    assert list(left.groups) == list(right.groups)
    for group, named in left.groups.items():
        assert list(named) == list(right.groups[group])
        for name, array in named.items():
            other = right.groups[group][name]
            assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes())


def small() -> Record:
    return Record(
        {
            "model": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.int8)},
            "extra": {"w": np.array(2.5, np.float64)},
        },
        {"round": 3},
    )


def forged(change: Any, record: Record | None = None) -> bytes:
    """A frame whose JSON header went through `change(header, metadata)`, its data untouched."""
    frame = bytes(frames.encode(small() if record is None else record))
    length = int.from_bytes(frame[:8], "little")
    header = json.loads(frame[8 : 8 + length])
    meta = json.loads(header["__metadata__"]["fedloom"])
    change(header, meta)
    if "fedloom" in header.get("__metadata__", {}):
        header["__metadata__"]["fedloom"] = json.dumps(meta)
    body = json.dumps(header).encode()
    return len(body).to_bytes(8, "little") + body + frame[8 + length :]


@given(RECORDS)
def test_encode_then_decode_is_the_same_record_bit_for_bit(record: Record) -> None:
    keys = [f"{group}/{name}" for group, name, _ in record.items()]
    if len(set(keys)) < len(keys) or (
        len(record.groups) == 1 and keys and "__metadata__" in next(iter(record.groups.values()))
    ):
        with pytest.raises(BadFrame, match="rename"):
            frames.encode(record)
        return
    frame = frames.encode(record)
    assert len(frame) == frames.frame_size(record)
    same(record, frames.decode(frame))
    assert b"".join(frames.pieces(record)) == frame


def test_transposed_and_sliced_arrays_are_written_in_c_order() -> None:
    square = np.arange(12, dtype=np.float32).reshape(3, 4)
    record = Record({"model": {"t": square.T, "s": square[:, ::2]}})
    same(Record({"model": {"t": square.T.copy(), "s": square[:, ::2].copy()}}), frames.decode(frames.encode(record)))


def test_a_frame_opens_with_the_safetensors_library(tmp_path: Any) -> None:
    path = tmp_path / "frame.safetensors"
    path.write_bytes(frames.encode(small()))
    opened = safetensors.numpy.load_file(path)
    assert sorted(opened) == ["extra/w", "model/b", "model/w"]
    for group, name, array in small().items():
        np.testing.assert_array_equal(opened[f"{group}/{name}"], array)
        assert opened[f"{group}/{name}"].dtype == array.dtype


def test_a_single_group_is_written_with_plain_names(tmp_path: Any) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(frames.encode(Record({"model": {"layer.weight": np.ones(3, np.float32)}})))
    assert list(safetensors.numpy.load_file(path)) == ["layer.weight"]


@pytest.mark.parametrize("names", range(1, 30, 4))
def test_data_starts_on_a_64_byte_boundary_and_every_array_on_its_own_item_size(names: int) -> None:
    record = Record(
        {"model": {"x" * (names + n): np.zeros(3, dtype) for n, dtype in enumerate(("i1", "f8", "f2", "f4"))}}
    )
    layout = Layout.of(record)
    assert len(layout.header) % ALIGNMENT == 0
    assert min(slot.start for slot in layout.slots) == len(layout.header)
    assert all(slot.start % slot.dtype.itemsize == 0 for slot in layout.slots)


def test_write_into_uses_the_front_of_a_larger_buffer_and_no_more() -> None:
    frame = frames.encode(small())
    buffer = bytearray(b"\xff" * (len(frame) + 100))
    assert frames.write_into(small(), memoryview(buffer)) == len(frame)
    assert bytes(buffer) == bytes(frame) + b"\xff" * 100


def test_decoded_arrays_are_views_and_read_only_where_the_buffer_is() -> None:
    frame = frames.encode(small())
    w = frames.decode(frame).groups["model"]["w"]
    w[0, 0] = 9.0
    assert frames.decode(frame).groups["model"]["w"][0, 0] == 9.0
    assert not frames.decode(bytes(frame)).groups["model"]["w"].flags.writeable


def test_a_frame_cut_at_any_byte_is_refused() -> None:
    frame = bytes(frames.encode(small()))
    for end in range(len(frame)):
        with pytest.raises(BadFrame):
            frames.decode(frame[:end])
    with pytest.raises(BadFrame, match="trailing"):
        frames.decode(frame + b"\0")


def test_a_frame_with_any_header_byte_changed_decodes_or_is_refused_and_nothing_else() -> None:
    frame = bytearray(frames.encode(small()))
    for at in range(8 + int.from_bytes(frame[:8], "little")):
        for flip in (0x01, 0x20, 0xFF):
            hostile = bytearray(frame)
            hostile[at] ^= flip
            try:
                frames.decode(hostile)
            except (BadFrame, LimitExceeded) as error:
                assert str(error)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises((BadFrame, LimitExceeded)):
        frames.decode(noise)


def entry(header: dict[str, Any], key: str = "model/w") -> dict[str, Any]:
    found: dict[str, Any] = header[key]
    return found


MALFORMED: list[tuple[str, Any, str]] = [
    ("gap", lambda h, m: entry(h, "model/b").update(data_offsets=[33, 35]), "gap or overlap"),
    ("overlap", lambda h, m: entry(h).update(data_offsets=[4, 28]), "gap or overlap"),
    ("same place twice", lambda h, m: entry(h).update(data_offsets=[0, 24]), "gap or overlap"),
    ("shape lies", lambda h, m: entry(h).update(shape=[2, 4]), "needs 32 bytes, got 24"),
    ("dtype lies", lambda h, m: entry(h).update(dtype="F64"), "needs 48 bytes, got 24"),
    ("unknown dtype", lambda h, m: entry(h).update(dtype="F128"), "unreadable description"),
    ("dtype is a list", lambda h, m: entry(h).update(dtype=["F32"]), "unreadable description"),
    ("no dtype", lambda h, m: entry(h).pop("dtype"), "unreadable description"),
    ("negative offset", lambda h, m: entry(h).update(data_offsets=[-24, 0]), "are invalid"),
    ("offsets backwards", lambda h, m: entry(h).update(data_offsets=[32, 8]), "needs 24 bytes, got -24"),
    ("three offsets", lambda h, m: entry(h).update(data_offsets=[8, 16, 32]), "unreadable description"),
    ("float offset", lambda h, m: entry(h).update(data_offsets=[8.0, 32.0]), "are invalid"),
    ("bool in shape", lambda h, m: entry(h).update(shape=[True, 6]), "are invalid"),
    ("text in shape", lambda h, m: entry(h).update(shape="ab"), "are invalid"),
    ("negative dimensions", lambda h, m: entry(h).update(shape=[-2, -3]), "are invalid"),
    ("huge dimension", lambda h, m: entry(h).update(shape=[2**60, 0]), "are invalid"),
    ("empty but enormous", lambda h, m: entry(h).update(shape=[0, 2**47, 2**47]), "too large"),
    ("too many dimensions", lambda h, m: entry(h).update(shape=[1] * 33), "are invalid"),
    ("entry is a number", lambda h, m: h.update({"model/w": 3}), "unreadable description"),
    ("no metadata", lambda h, m: h.pop("__metadata__"), "no readable fedloom metadata"),
    ("foreign metadata", lambda h, m: h.update(__metadata__={"format": "pt"}), "no readable fedloom metadata"),
    ("metadata is a list", lambda h, m: h.update(__metadata__=[]), "no readable fedloom metadata"),
    ("key not described", lambda h, m: m["keys"].pop("model/w"), "exactly the arrays"),
    ("key without array", lambda h, m: m["keys"].update(ghost=["model", "ghost"]), "exactly the arrays"),
    ("two keys, one name", lambda h, m: m["keys"].update({"model/b": ["model", "w"]}), "exactly the arrays"),
    ("unlisted group", lambda h, m: m["keys"].update({"model/w": ["other", "w"]}), "exactly the arrays"),
    ("pair too long", lambda h, m: m["keys"].update({"model/w": ["model", "w", "x"]}), "exactly the arrays"),
    ("name is a number", lambda h, m: m["keys"].update({"model/w": ["model", 3]}), "exactly the arrays"),
    ("groups is an object", lambda h, m: m.update(groups={"model": 1, "extra": 2}), "exactly the arrays"),
    ("group is a list", lambda h, m: m["groups"].append([]), "exactly the arrays"),
    ("info is a list", lambda h, m: m.update(info=[1]), "exactly the arrays"),
    ("no info", lambda h, m: m.pop("info"), "no readable fedloom metadata"),
]


@pytest.mark.parametrize(("change", "says"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED])
def test_a_header_that_lies_is_refused_by_name(change: Any, says: str) -> None:
    with pytest.raises(BadFrame, match=says):
        frames.decode(forged(change))


def with_header(body: bytes, data: bytes = b"") -> bytes:
    return len(body).to_bytes(8, "little") + body + data


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"", "truncated"),
        (b"\0" * 7, "truncated"),
        (with_header(b""), "not JSON"),
        (with_header(b"\xff\xfe\xfd"), "not JSON"),
        (with_header(b"{" * 50_000), "not JSON"),
        (with_header(b"[" * 50_000), "not JSON"),
        (with_header(b"[]"), "expected an object"),
        (with_header(b"3"), "expected an object"),
        (with_header(b'{"a": ' + b"9" * 5000 + b"}"), "not JSON"),
        (with_header(b'{"__metadata__": {"fedloom": "' + b"[" * 50_000 + b'"}}'), "no readable fedloom metadata"),
        ((10**6).to_bytes(8, "little") + b"{}", "truncated"),
    ],
)
def test_bytes_that_are_no_header_are_refused(frame: bytes, says: str) -> None:
    with pytest.raises(BadFrame, match=says):
        frames.decode(frame)


def test_a_header_beyond_the_limit_is_refused_before_it_is_read() -> None:
    for length in (frames.MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1):
        with pytest.raises(LimitExceeded, match=str(length)):
            frames.decode(length.to_bytes(8, "little"))
    with pytest.raises(LimitExceeded, match="limit of 10"):
        frames.decode(frames.encode(small()), max_header_bytes=10)


def test_a_key_that_comes_twice_in_the_header_is_refused() -> None:
    frame = bytes(frames.encode(Record({"model": {"w": np.ones(2, np.float32)}})))
    length = int.from_bytes(frame[:8], "little")
    body = frame[8 : 8 + length].rstrip()[:-1] + b',"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    with pytest.raises(BadFrame, match="duplicate key"):
        frames.decode(with_header(body, frame[8 + length :]))


@pytest.mark.parametrize("array", [np.zeros(2, np.complex64), np.array(["a"]), np.zeros(2, ">f4"), np.array([None])])
def test_a_dtype_the_format_has_not_is_refused_by_name(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(BadFrame, match=r"array 'w' of group 'model' has dtype .* cannot be sent"):
        frames.encode(Record({"model": {"w": array}}))


@pytest.mark.parametrize("info", [{"loss": np.float32(1.0)}, {"names": {1, 2}}, {(1, 2): 3}])
def test_info_that_is_not_json_is_refused(info: Any) -> None:
    with pytest.raises(BadFrame, match="info must be JSON"):
        frames.encode(Record({}, info))


def test_colliding_keys_are_refused() -> None:
    one = np.zeros(1, np.float32)
    with pytest.raises(BadFrame, match="'a/b/c' occurs twice"):
        frames.encode(Record({"a/b": {"c": one}, "a": {"b/c": one}}))
    with pytest.raises(BadFrame, match="'__metadata__' occurs twice"):
        frames.encode(Record({"model": {"__metadata__": one}}))


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 100, 10_000])
@pytest.mark.parametrize("offset", [0, 1, 63, 300])
def test_chunks_are_the_frame_cut_up_from_any_offset(chunk_bytes: int, offset: int) -> None:
    frame = bytes(frames.encode(small()))
    chunks = list(frames.chunked(frames.pieces(small()), chunk_bytes, offset))
    assert b"".join(chunks) == frame[offset:]
    assert all(len(chunk) == chunk_bytes for chunk in chunks[:-1])
    assert all(chunks)


def test_arrays_keep_their_places_when_a_header_gets_its_last_words_later() -> None:
    empty = Record(small().groups)
    planned = Layout.of(empty, data_start=4096)
    final = Layout.of(small(), data_start=4096)
    assert [slot.start for slot in planned.slots] == [slot.start for slot in final.slots]
    buffer = bytearray(final.size)
    frames.write_into(small(), memoryview(buffer), final)
    same(small(), frames.decode(buffer))

"""Real streams: equal bits in any process, sizes near the estimate, clear errors for anything else."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support_llic import KINDS, codec, net, picture

from fedloom.workloads.llic.bitstream import ImageCodec, as_images
from fedloom.workloads.llic.coder import Decoder, Encoder, Models
from fedloom.workloads.llic.container import OVERHEAD, Container, StreamInvalid
from fedloom.workloads.llic.pixels import Pixels, pack_alpha, unpack_alpha
from fedloom.workloads.llic.quantising import Estimate
from fedloom.workloads.llic.tables import gaussian_tables


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (37, 131)])
def test_a_stream_decodes_to_what_was_encoded(kind: str, size: tuple[int, int]) -> None:
    made, rgb = codec(kind), picture(*size)
    container = made.encode(Pixels(rgb))
    again = Container.unpack(container.pack(), "x")
    assert again == container
    decoded = made.decode(again)
    assert decoded.rgb.shape == rgb.shape and decoded.alpha is None and not decoded.grey
    with torch.inference_mode():
        y = made.codec.analysis(_filled(rgb))
        z = torch.round(made.codec.entropy.analysis(y).double() - made._medians) + made._medians
        take = Estimate(y.double())
        expected = made._entropy.run(z, take)
    assert torch.equal(made.latent(container), expected), "the decoder has another latent than the encoder"


def _filled(rgb: np.ndarray) -> torch.Tensor:
    height, width = rgb.shape[:2]
    filled = np.pad(rgb, ((0, -height % 64), (0, -width % 64), (0, 0)), mode="edge")
    return as_images(filled)


@pytest.mark.parametrize("kind", ["llic-elic", "llic-stf", "llic-tcm"])
def test_real_bytes_are_near_the_estimate(kind: str) -> None:
    made, rgb = codec(kind), picture(192, 256)
    container = made.encode(Pixels(rgb))
    with torch.inference_mode():
        ideal = made.codec.estimate(as_images(rgb)).total / 8
    real = len(container.z) + len(container.y)
    assert real > 200 and 0.99 * ideal - 8 <= real <= 1.005 * ideal + 64


def test_another_number_of_threads_gives_the_same_stream() -> None:
    made, rgb = codec(), picture(100, 90)
    one = made.encode(Pixels(rgb)).pack()
    try:
        torch.set_num_threads(2)
        assert made.encode(Pixels(rgb)).pack() == one
        decoded = made.decode(Container.unpack(one, "x"))
    finally:
        torch.set_num_threads(1)
    assert np.array_equal(decoded.rgb, made.decode(Container.unpack(one, "x")).rgb)


def test_a_fresh_process_decodes_the_same_pixels(tmp_path: Path) -> None:
    made, rgb = codec(), picture(70, 90)
    (tmp_path / "x.flic").write_bytes(made.encode(Pixels(rgb)).pack())
    np.save(tmp_path / "here.npy", made.decode(Container.unpack((tmp_path / "x.flic").read_bytes(), "x")).rgb)
    support = Path(__file__).parents[2] / "support"
    code = (
        f"import sys; sys.path.insert(0, {str(support)!r}); import numpy as np; from support_llic import codec\n"
        "from fedloom.workloads.llic.container import read_container; from pathlib import Path\n"
        f"found = codec().decode(read_container(Path({str(tmp_path / 'x.flic')!r}))).rgb\n"
        f"sys.exit(0 if np.array_equal(found, np.load({str(tmp_path / 'here.npy')!r})) else 3)"
    )
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0


def test_grey_and_alpha_come_back() -> None:
    made, rng = codec(), np.random.default_rng(1)
    alpha = rng.integers(0, 256, (40, 50)).astype(np.uint8)
    grey = np.repeat(picture(40, 50)[:, :, :1], 3, 2)
    decoded = made.decode(Container.unpack(made.encode(Pixels(grey, alpha, grey=True)).pack(), "x"))
    assert decoded.grey and decoded.alpha is not None and np.array_equal(decoded.alpha, alpha)
    assert np.array_equal(unpack_alpha(pack_alpha(alpha), 40, 50), alpha)
    with pytest.raises(StreamInvalid, match="expected 2050 values"):
        unpack_alpha(pack_alpha(alpha), 41, 50)
    with pytest.raises(StreamInvalid, match="alpha channel is damaged"):
        unpack_alpha(b"nothing", 40, 50)
    with pytest.raises(StreamInvalid, match="expected 1 values, got 2"):  # a bomb is not unpacked
        unpack_alpha(zlib.compress(bytes(10**7)), 1, 1)


def test_symbols_outside_a_table_are_escaped() -> None:
    models = Models(gaussian_tables())
    rng = np.random.default_rng(2)
    symbols, indices = rng.integers(-3, 4, 500), rng.integers(0, 64, 500)
    symbols[::50] = rng.choice([-(2**18), 2**18, 70, -900], 10)
    encoder = Encoder(models)
    encoder(symbols, indices)
    assert np.array_equal(Decoder(models, encoder.finish())(None, indices), symbols)


def test_a_stream_of_another_model_is_refused() -> None:
    container = codec(seed=1).encode(Pixels(picture(20, 20)))
    with pytest.raises(StreamInvalid, match=r"encoded with the model .* Decode it with the run"):
        codec(seed=2).decode(container)


def test_the_identity_covers_weights_and_settings_and_nothing_else() -> None:
    one = codec()
    assert ImageCodec(net()).identity == one.identity
    assert codec(trade_off=0.5, rivals=[]).identity == one.identity, "the loss is no part of a decoder"
    assert codec(seed=3).identity != one.identity
    changed = net()
    with torch.no_grad():
        changed.entropy.prior.quantiles.add_(1e-6)
    assert ImageCodec(changed).identity != one.identity


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected it to begin with b'FLIC', got b''"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "got b'.x89PNG'"),
        (b"FLIC", "cut short: expected at least"),
        (b"FLIC" + bytes(OVERHEAD), "version 1 of the format, got 0"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(StreamInvalid, match=message):
        Container.unpack(data, "x")


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a stream with flipped bits, bytes taken out, put in or repeated, or cut short."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(0, max(len(found), 1)))
        kind = int(rng.integers(0, 5))
        if kind == 0 and found:
            found[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            del found[place : place + int(rng.integers(1, 9))]
        elif kind == 2:
            found[place:place] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 3:
            del found[place:]
        else:
            found[place : place + 4] = rng.bytes(4)
    return bytes(found)


def resealed(data: bytes) -> bytes:
    """Return a stream whose lengths and outer checksum are right again, as an attacker would send it."""
    if len(data) < OVERHEAD:
        return data
    head, payload = bytearray(data[: OVERHEAD - 4]), data[OVERHEAD:]
    z = min(struct.unpack_from("<I", head, 32)[0], len(payload)) // 4 * 4
    rest = len(payload) - z
    alpha = min(struct.unpack_from("<I", head, 40)[0], rest)
    alpha += (rest - alpha) % 4
    head[4:8] = bytes([1, 2 if alpha else 0, 0, 0])
    struct.pack_into("<II", head, 8, 33, 40)
    struct.pack_into("<III", head, 32, z, rest - alpha, alpha)
    return bytes(head) + struct.pack("<I", zlib.crc32(payload, zlib.crc32(bytes(head)))) + payload


def fuzz(count: int, seed: int) -> int:
    """Decode mutated streams: each is the identical image or a clear error; returns how many were errors."""
    made, rng, rgb = codec(), np.random.default_rng(seed), picture(33, 40)
    alpha = np.arange(33 * 40, dtype=np.uint8).reshape(33, 40)
    data = made.encode(Pixels(rgb, alpha)).pack()
    expected, errors = made.decode(Container.unpack(data, "x")), 0
    for number in range(count):
        changed = mutated(data, rng)
        changed = resealed(changed) if number % 4 == 0 else changed
        try:
            found = made.decode(Container.unpack(changed, "x"))
        except StreamInvalid as exc:
            assert str(exc).startswith("x: ") or str(exc).startswith("the stream: ")
            errors += 1
            continue
        assert np.array_equal(found.rgb, expected.rgb), "garbage"
    return errors


def test_damaged_streams_are_errors() -> None:
    assert fuzz(400, seed=1) > 380


@pytest.mark.slow
def test_ten_thousand_damaged_streams_are_errors() -> None:
    assert fuzz(10_000, seed=2) > 9_800


def test_a_header_of_a_huge_image_is_refused_before_anything_is_made_of_it() -> None:
    container = codec().encode(Pixels(picture(16, 16)))
    for height, width in ((0, 5), (2**16, 2**16)):
        with pytest.raises(StreamInvalid, match="its header is not valid"):
            Container.unpack(replace(container, height=height, width=width).pack(), "x")

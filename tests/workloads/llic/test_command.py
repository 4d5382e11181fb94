"""`fedloom codec`: files of a run's model, in both directions, and what it says to anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support_llic import album, experiment, picture

from fedloom import api
from fedloom.cli.app import main

TRAINING = {"optimizer": "adamw", "learning_rate": 1e-3, "max_steps": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec")
    made = experiment(album(folder / "photographs"), {"training": TRAINING}, rounds=1, evaluation={"every": 0})
    api.run(made, out=folder / "run")
    return folder / "run"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main([str(each) for each in arguments])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"])
def test_an_image_of_any_mode_comes_back_in_its_size(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    image = Image.fromarray(picture(37, 53))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.arange(37 * 53, dtype=np.uint8).reshape(37, 53)))
    name = "x.tif" if mode == "CMYK" else "x.png"
    image.convert(mode).save(tmp_path / name)
    code, said = call(capsys, "codec", "encode", tmp_path / name, tmp_path / "x.flic", "--run", run)
    assert code == 0 and f"{(tmp_path / 'x.flic').stat().st_size:,} bytes" in said, said
    code, said = call(capsys, "codec", "decode", tmp_path / "x.flic", tmp_path / "y.png", "--run", run)
    assert code == 0 and "53 x 37 pixels" in said
    with Image.open(tmp_path / "y.png") as found:
        assert found.size == (53, 37)
        assert found.mode == {"L": "L", "1": "L", "RGBA": "RGBA", "LA": "LA"}.get(mode, "RGB")
        if mode == "RGBA":
            assert np.array_equal(np.asarray(found.getchannel("A")), np.asarray(image.getchannel("A")))
    code, said = call(capsys, "codec", "info", tmp_path / "x.flic")
    assert code == 0 and "53 x 37, " + ("grey" if mode in ("L", "LA", "1") else "colour") in said


def test_a_one_pixel_image_and_a_turned_one(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(picture(1, 1)).save(tmp_path / "x.png")
    assert call(capsys, "codec", "encode", tmp_path / "x.png", tmp_path / "x.flic", "--run", run)[0] == 0
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.fromarray(picture(20, 30)).save(tmp_path / "t.jpg", exif=exif)
    assert call(capsys, "codec", "encode", tmp_path / "t.jpg", tmp_path / "t.flic", "--run", run)[0] == 0
    assert "20 x 30, colour" in call(capsys, "codec", "info", tmp_path / "t.flic")[1], "width x height, upright"


def write(folder: Path, what: str) -> Path:
    path = folder / "x.png"
    if what == "16 bit":
        Image.fromarray(picture(9, 9)[:, :, 0].astype(np.uint16) * 200).save(path)
    elif what == "16 bit colour":  # which Pillow opens as 8 bits
        import struct
        import zlib

        def chunk(kind: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        rows = b"".join(b"\0" + bytes(2 * 6) for _ in range(2))
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    elif what == "real numbers":
        path = folder / "x.tif"
        Image.fromarray(picture(9, 9)[:, :, 0].astype(np.float32)).save(path)
    elif what == "no image":
        path.write_text("hello", encoding="utf-8")
    elif what == "empty":
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("16 bit", "expected 8 bits per channel, got 16 or more"),
        ("16 bit colour", "expected 8 bits per channel, got 16 or more"),
        ("real numbers", "expected 8 bits per channel, got 16 or more"),
        ("no image", "cannot be read as an image"),
        ("empty", "cannot be read as an image"),
        ("missing", "no such image"),
    ],
)
def test_other_images_are_refused_and_nothing_is_written(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str], what: str, message: str
) -> None:
    image = write(tmp_path, what)
    code, said = call(capsys, "codec", "encode", image, tmp_path / "x.flic", "--run", run)
    assert code == 2 and message in said and image.name in said and not (tmp_path / "x.flic").exists()


def test_what_is_no_stream_no_run_or_no_place_is_said(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(picture(20, 20)).save(tmp_path / "x.png")
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("decode", tmp_path / "x.png", tmp_path / "y.png", "--run", run), "not an image that `fedloom codec encode`"),
        (("decode", tmp_path / "none", tmp_path / "y.png", "--run", run), "cannot be read: No such file"),
        (("info", tmp_path / "x.png"), "got b'\\x89PNG'"),
        (("encode", tmp_path / "x.png", tmp_path / "x.flic", "--run", tmp_path), str(tmp_path)),
        (("encode", tmp_path / "x.png", tmp_path / "no" / "x.flic", "--run", run), "cannot be written"),
    ]
    for arguments, message in cases:
        code, said = call(capsys, "codec", *arguments)
        assert code == 2 and message in " ".join(said.split()), (arguments, said)
    assert call(capsys, "codec", "encode", tmp_path / "x.png", tmp_path / "x.flic", "--run", run)[0] == 0
    code, said = call(capsys, "codec", "decode", tmp_path / "x.flic", tmp_path / "y.nothing", "--run", run)
    assert code == 2 and "cannot be written" in said and not (tmp_path / "y.nothing").exists()


def test_a_run_with_personal_models_has_none_to_code_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = experiment(
        album(tmp_path / "p"), {"personal": "entropy", "training": TRAINING}, rounds=1, evaluation={"every": 0}
    )
    api.run(made, out=tmp_path / "run")
    Image.fromarray(picture(20, 20)).save(tmp_path / "x.png")
    code, said = call(capsys, "codec", "encode", tmp_path / "x.png", tmp_path / "x.flic", "--run", tmp_path / "run")
    assert code == 2 and "keep 'entropy' of their models to themselves" in " ".join(said.split())

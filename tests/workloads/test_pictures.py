"""Every mode and depth of pictures: values as the file means them, or a refusal that names the file."""

import io
from pathlib import Path

import numpy as np
import pytest
from picture_files import png16, tiff
from PIL import Image
from pydantic import ValidationError

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.records import Array
from fedloom.workloads._data.images import load_images
from fedloom.workloads._data.pictures import PictureRule, array_picture, read_picture
from fedloom.workloads._data.settings import HubImages, Images, Layout, Npz
from fedloom.workloads._data.values import unit

GREY, COLOUR = (PictureRule(size=None, channels=channels) for channels in (1, 3))
RNG = np.random.Generator(np.random.PCG64(7))
LUMA = np.array([0.299, 0.587, 0.114])


def numbers(shape: tuple[int, ...], kind: str, high: int) -> Array:
    return RNG.integers(0, high, shape).astype(kind)


def read(data: bytes, rule: PictureRule = GREY) -> Array:
    """Pixels from 0 to 1, (h, w, channels)."""
    return unit(read_picture(data, rule, "a/b.png")[0])


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def close(found: Array, expected: Array, within: float = 1e-6) -> None:
    np.testing.assert_allclose(found, expected, atol=within)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_of_a_tiff_are_all_read(order: str, packed: bool, channels: int) -> None:
    values = numbers((5, 6, channels), "u2", 65536)
    values[..., 3:] = 65535
    expected = values[..., :3] / 65535.0
    found, scaling = read_picture(tiff(values, order=order, packed=packed), COLOUR, "x.tif")
    close(found, np.broadcast_to(expected, (5, 6, 3)))
    assert scaling == "16 bits: value / 65535" and found.dtype == np.float32


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_of_a_png_are_all_read_and_what_is_transparent_is_white(colour: int, channels: int) -> None:
    values = numbers((5, 6, channels), "u2", 65536)
    share = values / 65535.0
    shown = share[..., :-1] * share[..., -1:] + 1.0 - share[..., -1:] if channels in (2, 4) else share
    close(read(png16(values, colour), COLOUR), np.broadcast_to(shown, (5, 6, 3)))
    grey = shown @ LUMA[:, None] if shown.shape[2] == 3 else shown
    close(read(png16(values, colour), GREY), grey)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
def test_signed_and_float_tiffs_of_either_order_keep_their_values(order: str, packed: bool) -> None:
    signed = RNG.integers(-32768, 32768, (5, 6, 1)).astype("i2")
    close(read(tiff(signed, order=order, packed=packed)), (signed.astype(float) + 32768) / 65535)
    floats = RNG.random((5, 6, 1)).astype("f4")
    close(read(tiff(floats, order=order, packed=packed)), floats)


def test_12_bits_are_white_at_4095_and_white_is_zero_is_turned_round() -> None:
    values = numbers((4, 6, 1), "u2", 4096)
    close(read(tiff(values, bits=12)), values / 4095.0)
    close(read(tiff(numbers((4, 6, 1), "u2", 1), photometric=0)), np.ones((4, 6, 1)))


def test_32_bit_integers_and_wide_floats_need_a_range() -> None:
    integers, floats = (numbers((4, 6, 1), "i4", 5000), RNG.normal(0, 500, (4, 6, 1)).astype("f4"))
    for values, words in ((integers, "32-bit values from"), (floats, "float values from")):
        with pytest.raises(DataMissing, match=r"a/b\.png: .*" + words + r".*workload\.data\.value_range"):
            read(tiff(values))
        ranged = PictureRule(size=None, channels=1, value_range=(-1000.0, 4000.0))
        close(read(tiff(values), ranged), (values + 1000.0) / 5000.0)


def test_8_bits_and_fewer_stay_bytes() -> None:
    values = numbers((5, 6), "u1", 256)
    grey = Image.fromarray(values)
    for picture in (grey, grey.convert("P"), grey.convert("LA"), grey.convert("RGB"), grey.convert("RGBA")):
        pixels, scaling = read_picture(saved(picture), GREY, "x")
        assert np.array_equal(pixels[..., 0], values) and scaling == "8 bits: value / 255"
    black_and_white = saved(grey.convert("1", dither=Image.Dither.NONE))
    assert np.array_equal(read_picture(black_and_white, GREY, "x")[0][..., 0], 255 * (values > 127))


def test_cmyk_lab_and_a_palette_with_transparency_are_colours() -> None:
    red = read_picture(saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), COLOUR, "x")[0]
    assert red[0, 0].tolist() == [255, 0, 0]
    white = read_picture(saved(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF"), COLOUR, "x")[0]
    assert (white >= 254).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert read_picture(saved(palette), COLOUR, "x")[0][0, 0].tolist() == [10, 20, 30]
    assert (read_picture(saved(palette, transparency=1), COLOUR, "x")[0] == 255).all()


def test_deep_pictures_are_resized_as_shallow_ones_are() -> None:
    values = np.kron(numbers((2, 2), "u2", 65536), np.ones((4, 4), "u2"))[..., None]
    small = read(png16(values, 0), PictureRule(size=2, channels=3))
    bytes_ = Image.fromarray((values[..., 0] >> 8).astype(np.uint8))
    shallow = read(saved(bytes_), PictureRule(size=2, channels=3))
    assert small.shape == (2, 2, 3)
    close(small, shallow, within=2 / 255)


def test_photographs_are_turned_upright() -> None:
    values = numbers((2, 6), "u1", 256)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    for kind in ("PNG", "TIFF"):
        turned = read_picture(saved(Image.fromarray(values), kind, exif=exif), GREY, "x")[0][..., 0]
        assert np.array_equal(turned, np.rot90(values, -1)), kind


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_several_frames_are_refused_or_the_first_is_read(kind: str) -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 90, 200)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(DataMissing, match=r"a/b\.png: 3 frames or pages.*workload\.data\.frames"):
        read(data)
    first = PictureRule(size=None, channels=1, first_frame=True)
    assert (read_picture(data, first, "x")[0] == 10).all()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        png16(numbers((9, 9, 1), "u2", 65536), 0)[:90],
        b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        tiff(np.ones((2, 2, 1))),
    ],
    ids=["empty", "text", "cut", "broken", "64-bit"],
)
def test_what_cannot_be_read_is_named(data: bytes) -> None:
    with pytest.raises(DataMissing, match=r"a/b\.png: .*cannot be read as a picture"):
        read(data)


def test_a_picture_too_large_to_be_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    with pytest.raises(DataMissing, match=r"a/b\.png: .*DecompressionBomb"):
        read(saved(Image.new("L", (9, 9))))


def test_values_that_are_not_finite_are_named() -> None:
    values = np.ones((4, 4, 1), "f4")
    values[1, 1] = np.nan
    with pytest.raises(DataMissing, match=r"a/b\.png: 1 values are NaN"):
        read(tiff(values))


def test_arrays_follow_the_same_rule() -> None:
    deep = numbers((5, 6), "u2", 65536)
    close(array_picture(deep, GREY, "x")[0][..., 0], deep / 65535.0)
    assert array_picture(deep > 1000, GREY, "x")[0].max() == 255
    assert array_picture(np.zeros((3, 5, 6), np.uint8), COLOUR, "x")[0].shape == (5, 6, 3)
    for wrong, words in ((deep.astype(np.int64), "value_range"), (np.zeros((2, 5, 6)), "shape"), (deep * 1j, "type")):
        with pytest.raises(DataMissing, match=words):
            array_picture(wrong, GREY, "x")


def test_a_folder_of_mixed_depths_has_one_scale_and_says_how(tmp_path: Path) -> None:
    for name, shade in (("dark", 40), ("light", 200)):
        (tmp_path / name).mkdir()
        for index in range(5):
            values = np.full((6, 6, 1), shade * 257 + index, "u2")
            (tmp_path / name / f"{index}.png").write_bytes(png16(values, 0))
            (tmp_path / name / f"{index}.tif").write_bytes(saved(Image.new("L", (6, 6), shade), "TIFF"))
    data = load_images(Images(folder=str(tmp_path), size=6, channels=1))
    assert data.info["values"] == {"16 bits: value / 65535": 10, "8 bits: value / 255": 10}
    assert abs(data.info["mean"][0] - 120 / 255) < 0.1 and data.info["range"][0] == pytest.approx(40 / 255)


def test_an_archive_of_16_bits_is_scaled_and_other_integers_need_a_range(tmp_path: Path) -> None:
    x, y = numbers((20, 4, 4), "u2", 65536), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = load_images(Npz(file=str(tmp_path / "a.npz")))
    assert data.info["mean"][0] == pytest.approx((x / 65535.0).mean(), rel=1e-5)
    np.savez(tmp_path / "b.npz", x_train=x.astype(int), y_train=y, x_test=x.astype(int), y_test=y)
    with pytest.raises(DataMissing, match=r"b\.npz: x_train: int64 values.*value_range"):
        load_images(Npz(file=str(tmp_path / "b.npz")))
    ranged = load_images(Npz(file=str(tmp_path / "b.npz"), value_range=(0, 65535)))
    assert ranged.info["mean"] == pytest.approx(data.info["mean"], rel=1e-5)
    np.savez(tmp_path / "c.npz", x_train=x * 1.0, y_train=y, x_test=x * 1.0, y_test=y)
    with pytest.raises(ConfigError, match=r"'meat' works on pixels from 0 to 1"):
        load_images(Npz(file=str(tmp_path / "c.npz"))).check_pixels("meat")


def test_hugging_face_images_of_16_bits_and_arrays_keep_their_values(tmp_path: Path) -> None:
    import datasets

    x, labels = numbers((10, 4, 4), "u2", 65536), [index % 2 for index in range(10)]
    stored = [{"bytes": png16(image[..., None], 0), "path": None} for image in x]
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    datasets.Dataset.from_dict({"image": stored, "label": labels}, features=features).save_to_disk(str(tmp_path / "a"))
    arrays = datasets.Features(image=datasets.Array2D((4, 4), "uint16"), label=datasets.Value("int64"))
    datasets.Dataset.from_dict({"image": list(x), "label": labels}, features=arrays).save_to_disk(str(tmp_path / "b"))
    for name in "ab":
        data = load_images(HubImages(dataset=str(tmp_path / name), channels=1))
        back = data.x_train[:, 0] * data.info["std"][0] + data.info["mean"][0]
        held = [row for row in range(10) if np.abs(back - x[row] / 65535.0).max(axis=(1, 2)).min() < 1e-5]
        assert len(held) == 8 and data.info["values"] == {"16 bits: value / 65535": 10}, name


def test_a_range_of_no_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="two different numbers"):
        Images(folder="x", value_range=(1.0, 1.0))
    with pytest.raises(ValidationError, match="finite number"):
        Images(folder="x", value_range=(0.0, float("nan")))


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((9, 8, 3), None, (3, 9, 8)),
        ((3, 9, 8), None, (3, 9, 8)),
        ((4, 4, 1), None, (1, 4, 4)),  # square one way only
        ((3, 4, 4), None, (3, 4, 4)),
        ((3, 8, 4), "hwc", (4, 3, 8)),
        ((3, 8, 4), "chw", (3, 8, 4)),
    ],
)
def test_the_order_of_axes_is_inferred_where_it_is_sure(
    tmp_path: Path, shape: tuple[int, ...], layout: Layout | None, expected: tuple[int, ...]
) -> None:
    np.savez(tmp_path / "a.npz", x_train=numbers((20, *shape), "u1", 256), y_train=np.arange(20) % 2)
    assert load_images(Npz(file=str(tmp_path / "a.npz"), layout=layout)).shape == expected


@pytest.mark.parametrize(
    ("shape", "words"), [((3, 8, 4), "workload.data.layout"), ((8, 8, 2), "layout"), ((8,), "shape")]
)
def test_an_unsure_order_of_axes_is_refused(tmp_path: Path, shape: tuple[int, ...], words: str) -> None:
    np.savez(tmp_path / "a.npz", x_train=numbers((20, *shape), "u1", 256), y_train=np.arange(20) % 2)
    with pytest.raises(DataMissing, match=words):
        load_images(Npz(file=str(tmp_path / "a.npz")))

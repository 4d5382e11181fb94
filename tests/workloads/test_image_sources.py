import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.workloads._data.images import load_images
from fedloom.workloads._data.settings import Digits, HubImages, Idx, Images, Npz

RNG = np.random.Generator(np.random.PCG64(5))


def write_idx(folder: Path, name: str, values: Array, *, compressed: bool) -> None:
    head = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    raw = head + values.astype(np.uint8).tobytes()
    (folder / f"{name}.gz").write_bytes(gzip.compress(raw)) if compressed else (folder / name).write_bytes(raw)


def idx_folder(folder: Path, *, compressed: bool = True) -> tuple[Array, Array]:
    folder.mkdir(exist_ok=True)
    images, labels = RNG.integers(0, 256, (30, 6, 5)), np.arange(30) % 3
    for prefix, rows in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        write_idx(folder, f"{prefix}-images-idx3-ubyte", images[rows], compressed=compressed)
        write_idx(folder, f"{prefix}-labels-idx1-ubyte", labels[rows], compressed=compressed)
    return images, labels


def test_the_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    data = load_images(Digits())
    mean, std = np.float32(data.info["mean"][0]), np.float32(data.info["std"][0])
    back = np.concatenate([data.x_train, data.x_test])[:, 0] * std + mean
    ours = sorted(image.round(2).tobytes() for image in (back * 16).round().astype(np.int8))
    theirs = sorted(image.tobytes() for image in load_digits().images.round().astype(np.int8))
    assert len(ours) == len(theirs) == 1797
    assert ours == [np.frombuffer(image, np.int8).reshape(8, 8).round(2).tobytes() for image in theirs]
    assert data.x_train.shape == (1438, 1, 8, 8) and data.x_test.shape == (359, 1, 8, 8)
    assert data.info["kind"] == "real" and len(data.info["sha256"]) == 64 and data.info["label_names"][3] == "3"


def test_images_are_normalised_with_the_training_sets_own_mean_and_std(tmp_path: Path) -> None:
    images, labels = idx_folder(tmp_path / "idx")
    data = load_images(Idx(folder=str(tmp_path / "idx")))
    unit = images.astype(np.float64) / 255
    mean, std = unit[:20].mean(), unit[:20].std()
    np.testing.assert_allclose(data.x_train[:, 0], (unit[:20] - mean) / std, atol=2e-6)
    np.testing.assert_allclose(data.x_test[:, 0], (unit[20:] - mean) / std, atol=2e-6)
    assert data.y_test.tolist() == labels[20:].tolist()
    assert data.x_train.dtype == np.float32 and data.y_train.dtype == np.int64
    assert data.x_train.flags.c_contiguous and data.shape == (1, 6, 5) and data.num_labels == 3


def test_plain_and_compressed_idx_files_give_the_same_images(tmp_path: Path) -> None:
    images, labels = idx_folder(tmp_path / "gz")
    (tmp_path / "plain").mkdir()
    for prefix, rows in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        write_idx(tmp_path / "plain", f"{prefix}-images-idx3-ubyte", images[rows], compressed=False)
        write_idx(tmp_path / "plain", f"{prefix}-labels-idx1-ubyte", labels[rows], compressed=False)
    packed, plain = (load_images(Idx(folder=str(tmp_path / name))) for name in ("gz", "plain"))
    assert np.array_equal(packed.x_train, plain.x_train)


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    idx_folder(tmp_path / "idx")
    before = load_images(Idx(folder=str(tmp_path / "idx")))
    idx_folder(tmp_path / "idx")  # other random pixels, same names and sizes
    after = load_images(Idx(folder=str(tmp_path / "idx")))
    assert before.sha256 != after.sha256 and not np.array_equal(before.x_train, after.x_train)


def test_a_missing_idx_folder_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="apt-get install dataset-fashion-mnist") as caught:
        load_images(Idx(folder=str(tmp_path / "nowhere")))
    assert str(tmp_path / "nowhere") in str(caught.value) and "workload.data.folder" in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda raw: raw[:-5], "truncated"),
        (lambda raw: b"\0\0\x0d" + raw[3:], "not an IDX file"),
        (lambda raw: b"", "not an IDX file"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, spoil: "object", words: str) -> None:
    idx_folder(tmp_path, compressed=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataMissing, match=words) as caught:
        load_images(Idx(folder=str(tmp_path)))
    assert path.name in str(caught.value)


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    idx_folder(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataMissing, match=r"t10k-images.*cannot be read"):
        load_images(Idx(folder=str(tmp_path)))


def test_npz_with_a_test_set_and_colour_last(tmp_path: Path) -> None:
    images, labels = RNG.integers(0, 256, (12, 5, 4, 3), dtype=np.uint8), np.arange(12) % 4
    np.savez(tmp_path / "d.npz", x_train=images[:8], y_train=labels[:8], x_test=images[8:], y_test=labels[8:])
    data = load_images(Npz(file=str(tmp_path / "d.npz"), licence="CC0"))
    assert data.shape == (3, 5, 4) and data.info["licence"] == "CC0" and data.info["name"] == "d.npz"
    unit = images.astype(np.float64) / 255
    mean, std = unit[:8].mean((0, 1, 2)), unit[:8].std((0, 1, 2))
    np.testing.assert_allclose(data.x_test, ((unit[8:] - mean) / std).transpose(0, 3, 1, 2), atol=2e-6)


def test_npz_without_a_test_set_is_split_with_its_groups(tmp_path: Path) -> None:
    images = np.arange(20, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=np.arange(20) % 2, groups_train=np.arange(20) // 10)
    data = load_images(Npz(file=str(tmp_path / "d.npz"), test_fraction=0.25))
    assert len(data.x_train) == 15 and len(data.x_test) == 5
    values = data.x_train[:, 0, 0, 0] * np.float32(data.info["std"][0]) + np.float32(data.info["mean"][0])
    rows = values.round().astype(int)
    assert data.groups is not None and data.groups.tolist() == (rows // 10).tolist()
    assert data.y_train.tolist() == (rows % 2).tolist()


def test_npz_with_objects_or_without_names_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.array([{}], object), y_train=np.zeros(1))
    np.savez(tmp_path / "b.npz", images=np.zeros((2, 4, 4)))
    with pytest.raises(DataMissing, match="plain arrays"):
        load_images(Npz(file=str(tmp_path / "a.npz")))
    with pytest.raises(DataMissing, match="no x_train and no y_train, only images"):
        load_images(Npz(file=str(tmp_path / "b.npz")))


def picture_folder(root: Path, count: int = 5) -> None:
    for shade, name in ((40, "dark"), (200, "light")):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (20, 10), (shade + index, shade, shade)).save(root / name / f"{index}.png")


def test_a_folder_per_class_is_read_and_split(tmp_path: Path) -> None:
    picture_folder(tmp_path)
    data = load_images(Images(folder=str(tmp_path), size=8, channels=3))
    assert data.info["label_names"] == ["dark", "light"] and data.shape == (3, 8, 8)
    assert len(data.y_train) == 8 and len(data.y_test) == 2
    assert (data.x_train[data.y_train == 0].max() < data.x_train[data.y_train == 1].min()).all()


def test_train_and_test_folders_are_kept_apart(tmp_path: Path) -> None:
    picture_folder(tmp_path / "train")
    picture_folder(tmp_path / "test", count=1)
    data = load_images(Images(folder=str(tmp_path), size=8, channels=1))
    assert (len(data.y_train), len(data.y_test), data.shape) == (10, 2, (1, 8, 8))


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    picture_folder(tmp_path)
    (tmp_path / "dark" / "9.png").write_bytes(b"not a picture")
    with pytest.raises(DataMissing, match=r"9\.png"):
        load_images(Images(folder=str(tmp_path)))


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    from fedloom.workloads._data.pictures import PictureRule, array_picture

    clear = np.zeros((4, 4, 4), np.uint8)
    assert array_picture(clear, PictureRule(size=2, channels=1), "x")[0].tolist() == [[[255], [255]], [[255], [255]]]


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_local_hugging_face_images(tmp_path: Path, form: str) -> None:
    import datasets

    pictures = [Image.new("L", (6, 6), 10 * index) for index in range(10)]
    table = {
        "image": pictures,
        "label": [index % 2 for index in range(10)],
        "writer": [f"w{i // 5}" for i in range(10)],
    }
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["even", "odd"]), writer=datasets.Value("string")
    )
    split = datasets.Dataset.from_dict(table, features=features)
    if form == "saved":
        datasets.DatasetDict(train=split, test=split.select(range(4))).save_to_disk(str(tmp_path / "d"))
    else:
        (tmp_path / "d").mkdir()
        split.to_parquet(str(tmp_path / "d" / "train.parquet"))
        split.select(range(4)).to_parquet(str(tmp_path / "d" / "test.parquet"))
    data = load_images(HubImages(dataset=str(tmp_path / "d"), channels=1, group_column="writer"))
    assert data.info["label_names"] == ["even", "odd"] and data.y_test.tolist() == [0, 1, 0, 1]
    assert data.groups is not None and data.groups.tolist() == [0] * 5 + [1] * 5
    assert np.all(np.diff(data.x_train[:, 0, 0, 0]) > 0)


def test_a_hub_name_without_a_network_names_an_offline_substitute(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataMissing, match=r'source = "digits"') as caught:
        load_images(HubImages(dataset="uoft-cs/cifar10"))
    assert "uoft-cs/cifar10" in str(caught.value) and "network" in str(caught.value)


def test_a_wrong_column_lists_the_right_ones(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"img": [1], "fine_label": [1]}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataMissing, match=r"no column 'image', it has img, fine_label"):
        load_images(HubImages(dataset=str(tmp_path / "d")))

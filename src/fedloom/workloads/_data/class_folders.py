"""Pictures in one folder per class: the files, and other files next to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedloom.core.errors import DataMissing
from fedloom.workloads._data.labels import class_name
from fedloom.workloads._data.raw import existing, files_below, is_hidden
from fedloom.workloads._data.settings import Images

PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".jp2"),
)
_SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")
"""Names of folders that are rarely classes."""
_SHOWN = 5

ClassPicture = tuple[str, Path]
"""The class's name, and the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFolders:
    """Content of a folder of pictures."""

    root: Path
    train: Sequence[ClassPicture]
    """By class, then by path."""
    test: Sequence[ClassPicture] | None
    """None without a test folder."""
    names: tuple[str, ...]
    """Classes of the training folder, sorted."""
    left_out: tuple[str, ...]
    """Files not read, in words."""


def class_folders(settings: Images) -> ClassFolders:
    """Find the pictures of both splits.

    Raises:
        DataMissing: there is no such folder, it has fewer than two classes, or folders that look like splits.
    """
    remedy = "Set workload.data.folder to a folder with one folder per class"
    root = existing(settings.folder, "workload.data", remedy)
    if not root.is_dir():
        raise DataMissing(f"workload.data.folder: {str(root)!r} is a file. {remedy}")
    train, test = root / settings.train_folder, root / settings.test_folder
    if not train.is_dir() and test.is_dir():
        raise DataMissing(
            f"{root}: has {settings.test_folder!r}, but no {settings.train_folder!r} beside it. Put the class folders "
            f"to train on into {settings.train_folder!r}, or set workload.data.train_folder"
        )
    fixed = [class_name(name) for name in settings.fixed_classes or ()]
    if not train.is_dir():
        found = _classes(root, fixed)
        _check_no_splits(root, [*found], fixed)
        sides, used = [found], [root]
    else:
        used = [train, test] if test.is_dir() else [train]
        sides = [_classes(side, fixed) for side in used]
        _check_no_splits(train, [*sides[0]], fixed)
    names = tuple(sorted(sides[0]))
    if len(names) < 2 and not fixed and settings.classes != "union":
        raise DataMissing(f"{used[0]}: expected one folder of pictures per class, at least two; found {list(names)}")
    strange = sorted(sides[1].keys() - {*names, *fixed}) if len(sides) > 1 else []
    if strange:
        raise DataMissing(
            f"{test}: has the classes {', '.join(strange[:_SHOWN])}, which {train} lacks. Remove them, add pictures to "
            "train on, or set workload.data.classes to all classes"
        )
    read = [_by_class(side) for side in sides]
    chosen = {path for side in read for _, path in side}
    return ClassFolders(
        root=root,
        train=read[0],
        test=read[1] if len(read) > 1 else None,
        names=names,
        left_out=tuple(_left_out(root, used, chosen)),
    )


def _classes(side: Path, fixed: Sequence[str]) -> dict[str, list[Path]]:
    """Return pictures by class; folders without any are classes only if the experiment names them."""
    found: dict[str, list[Path]] = {}
    for child in sorted(side.iterdir()):
        if not child.is_dir() or is_hidden(Path(child.name)):
            continue
        try:
            child.name.encode()
        except UnicodeEncodeError as exc:
            raise DataMissing(f"{str(child)!r}: the name of a class folder must be UTF-8. Rename it") from exc
        pictures = [path for _, path in files_below(child, PICTURES)]
        name = class_name(child.name)
        if pictures or name in fixed:
            found.setdefault(name, []).extend(pictures)
    return found


def _by_class(side: dict[str, list[Path]]) -> list[ClassPicture]:
    return [(name, path) for name in sorted(side) for path in side[name]]


def _check_no_splits(side: Path, names: Sequence[str], fixed: Sequence[str]) -> None:
    splits = [name for name in names if name.casefold() in _SPLITS and name not in fixed]
    if splits:
        raise DataMissing(
            f"{side}: the folders {', '.join(splits)} look like splits, not classes. Set workload.data.train_folder "
            "and test_folder to their names; if they are classes, set workload.data.classes to all classes"
        )


def _left_out(root: Path, used: Sequence[Path], chosen: set[Path]) -> Iterable[str]:
    """Yield the files below the root that were not read."""
    files = [path for path in sorted(root.rglob("*")) if path not in chosen and path.is_file()]
    links = [path for path in sorted(root.rglob("*")) if path.is_symlink() and not path.exists()]
    if links:
        shown = [str(path.relative_to(root)) for path in links]
        yield f"{_counted(len(links), 'broken link')}: {_listed(shown)}"
    hidden = [path for path in files if is_hidden(path.relative_to(root))]
    if hidden:
        yield f"{_counted(len(hidden), 'hidden file')}: {_listed(_tops(root, hidden))}"
    rest = [path for path in files if path not in {*hidden}]
    loose = [path for path in rest if path.suffix.lower() in PICTURES]
    if loose:
        yield f"{_counted(len(loose), 'picture')} outside the class folders read: {_listed(_tops(root, loose))}"
    kinds = Counter(path.suffix.lower() or "no suffix" for path in rest if path.suffix.lower() not in PICTURES)
    if kinds:
        shown = [f"{kind} {count}" for kind, count in sorted(kinds.items())]
        yield f"{_counted(sum(kinds.values()), 'other file')}: {_listed(shown)}"
    empty = [
        child.name
        for side in used
        for child in sorted(side.iterdir())
        if child.is_dir() and not is_hidden(Path(child.name)) and child not in used and not files_below(child, PICTURES)
    ]
    if empty:
        yield f"{_counted(len(empty), 'folder')} without a picture: {_listed(empty)}"


def _tops(root: Path, files: Sequence[Path]) -> list[str]:
    """Return the first path component below the root of each file, each once."""
    return list(dict.fromkeys(path.relative_to(root).parts[0] for path in files))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _listed(names: Sequence[str]) -> str:
    shown = [name.encode("utf-8", "backslashreplace").decode() for name in names[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")

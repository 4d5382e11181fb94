"""A Flower app as one file: `.fab`, a zip of its folder with a list of digests."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from fedloom.core.errors import ConfigError
from fedloom.core.user_folders import cache_folder

SUFFIX = ".fab"
_CONTENT = ".info/CONTENT"
"""The list: a line `path,SHA-256,bits` for each file."""
_MAX_BYTES = 100 << 20
"""Size of an app's bundle, and of its files, at most."""
_MAX_LIST, _MAX_FILES, _MAX_NAME = 1 << 20, 10_000, 400
"""Bytes of the list, files in it, and characters of a file's path, at most."""
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""What reading a zip may raise: truncated, encrypted, of an unknown compression or with broken names."""


def unpacked(path: Path) -> Path:
    """Return the folder of an app's bundle, unpacked in the cache below its digest; unpacked once.

    Raises:
        ConfigError: it cannot be read, is no bundle, or a file is not the one that the list names.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise ConfigError(f"{path}: {size} bytes, expected at most {_MAX_BYTES} of a Flower app's bundle")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        folder = cache_folder() / "flower-apps" / digest
        if not folder.is_dir():
            with zipfile.ZipFile(path) as bundle:
                _unpack(path, bundle, folder)
    except _UNREADABLE as exc:
        raise ConfigError(f"{path}: cannot be read as a Flower app's bundle: {exc}") from exc
    return folder


def _unpack(path: Path, bundle: zipfile.ZipFile, folder: Path) -> None:
    """Write the listed files into a folder, which exists only when all are there."""
    digests = _digests(path, bundle)
    if (size := sum(bundle.getinfo(name).file_size for name in digests)) > _MAX_BYTES:
        raise ConfigError(f"{path}: {size} bytes unpacked, expected at most {_MAX_BYTES}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="unpacking-", dir=folder.parent))
    try:
        for name, digest in digests.items():
            content = bundle.read(name)
            if hashlib.sha256(content).hexdigest() != digest:
                raise ConfigError(f"{path}: {name} is not the file that {_CONTENT} lists; the bundle was changed")
            target = made / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _digests(path: Path, bundle: zipfile.ZipFile) -> Mapping[str, str]:
    """Return the SHA-256 of each listed file.

    Raises:
        ConfigError: there is no list, a listed file is missing, or a path leaves the folder.
    """
    names = set(bundle.namelist())
    if _CONTENT not in names:
        raise ConfigError(f"{path}: no {_CONTENT} in it, so this is no Flower app's bundle")
    if (size := bundle.getinfo(_CONTENT).file_size) > _MAX_LIST:
        raise ConfigError(f"{path}: {_CONTENT} has {size} bytes, expected at most {_MAX_LIST}")
    found = {}
    for line in bundle.read(_CONTENT).decode("utf-8", errors="replace").splitlines():
        name, _, rest = line.partition(",")
        if not _is_inside(name) or name not in names:
            raise ConfigError(f"{path}: {_CONTENT} lists {name[:80]!r}, which is not a file of the bundle")
        found[name] = rest.partition(",")[0].strip().lower()
    if len(found) > _MAX_FILES:
        raise ConfigError(f"{path}: {_CONTENT} lists {len(found)} files, expected at most {_MAX_FILES}")
    return found


def _is_inside(name: str) -> bool:
    """Return whether a path in a bundle is one of a file below the folder it is unpacked into."""
    parts = PurePosixPath(name).parts
    plain = "/".join(parts) == name and ".." not in parts and "\0" not in name and "\\" not in name
    return plain and 0 < len(name) <= _MAX_NAME and not name.startswith("/")

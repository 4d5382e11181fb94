"""Folders of this user, also if the home folder cannot be written, as in a container or under another uid."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path


def home_or_temporary(variable: str, below_home: str, name: str) -> Path:
    """Return a folder of this user: below a variable's, else below home, else, if neither is possible, a temporary one.

    Args:
        variable: environment variable of the freedesktop standard, such as `XDG_CACHE_HOME`.
        below_home: what it stands for where it is not set, such as `.cache`.
        name: of the folder in it, such as `fedloom`.

    Raises:
        OSError: the temporary folder cannot be written either.
    """
    chosen = os.environ.get(variable)
    with contextlib.suppress(RuntimeError):  # no home: the uid is in no list of users
        folder = (Path(chosen) if chosen else Path.home() / below_home) / name
        if _can_be_written(folder):
            return folder
    return temporary(lambda: f"{name}-{variable.lower().replace('_', '-')}-{os.geteuid()}")


def cache_folder() -> Path:
    """Return `FEDLOOM_CACHE`, or `~/.cache/fedloom` (below `XDG_CACHE_HOME` if that is set).

    Where that cannot be written, a folder of this user's below the temporary one.
    """
    chosen = os.environ.get("FEDLOOM_CACHE")
    return Path(chosen) if chosen else home_or_temporary("XDG_CACHE_HOME", ".cache", "fedloom")


def temporary(name: Callable[[], str]) -> Path:
    """Return a folder below the temporary one that this user alone can enter, created if missing.

    Raises:
        OSError: it cannot be made.
    """
    folder = Path(tempfile.gettempdir()) / name()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))  # another user was faster
    return folder


def _can_be_written(folder: Path) -> bool:
    """Return whether a folder exists and is writable, or can be created."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) and not os.statvfs(folder).f_flag & os.ST_RDONLY


def working_folder() -> Path:
    """Return the working directory; the root of the file system if that has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path("/")

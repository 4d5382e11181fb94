"""A run's view of the node's data: a private folder whose entries are handles opened below the data folder.

A path below `$DATA` is walked from a handle of that folder, one name at a time, without following links blindly: a link
is read, and what it names is walked the same way, so that nothing outside the data folder is ever reached. The files
that were found stay open (`O_PATH`), and the view has for each a link to its handle, `/proc/PID/fd/N`. Readers, other
libraries' included, are given paths in the view: what they open is the file that was checked, whatever becomes of the
names in the data folder meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import shutil
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from fedloom.core.errors import PolicyRefused

_MAX_LINKS = 40
"""Links followed to reach one name."""
FileId = tuple[int, int]
"""Device and number of a file: the same for all of its names."""


def handles_folder() -> Path:
    """Return where the kernel shows the handles of this process, to its helpers, too; only Linux does."""
    return Path(f"/proc/{os.getpid()}/fd")


def file_ids(places: Iterable[Path]) -> frozenset[FileId]:
    """Return the identities of files and folders, with all that is in the folders."""
    found = set[FileId]()
    for place in places:
        for path in (place, *(place.rglob("*") if place.is_dir() else ())):
            with contextlib.suppress(OSError):
                found.add(_id(path.lstat()))
    return frozenset(found)


class DataView:
    """One run's view.

    Args:
        folder: of the view, created and removed by this object; no other process writes there.
        private: files and folders that are never data, by whatever name they are reached.
    """

    def __init__(self, folder: Path, private: frozenset[FileId] = frozenset()) -> None:
        self._folder, self._private = folder, private
        self._handles: list[int] = []
        self._linked: dict[FileId, Path] = {}
        self._made: dict[tuple[Path, PurePosixPath], str] = {}
        self._number = itertools.count()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)

    def path(self, root: Path, inside: PurePosixPath) -> str:
        """Return the path in the view that stands for a path below a data folder.

        What is not there has a path at which there is nothing.

        Args:
            root: the data folder, resolved.
            inside: the path below it.

        Raises:
            PolicyRefused: it, or something in it, leads out of the data folder or to the node's own files; or the
                process may not have that many files open.
        """
        known = self._made.get((root, inside))
        if known is None:
            known = self._made[root, inside] = str(self._view(root, inside))
        return known

    def close(self) -> None:
        """Close the handles and remove the view; arrays that are mapped from files stay."""
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _view(self, root: Path, inside: PurePosixPath) -> Path:
        place = self._folder / str(next(self._number)) / "DATA" / inside
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            top = os.open(root, os.O_PATH | os.O_DIRECTORY)
            try:
                with _Walk(root, top) as walk:
                    self._add(walk, list(inside.parts), place)
            finally:
                os.close(top)
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise PolicyRefused(
                    f"the data have more files than this process may hold open, {_descriptors()}; raise the limit of "
                    "descriptors (LimitNOFILE of the unit), or put the files into an archive or a table",
                    kind="data",
                ) from exc
            raise
        return place

    def _add(self, walk: _Walk, names: Sequence[str], place: Path) -> None:
        """Add a file or folder to the view, seen from the walk's current folder."""
        try:
            reached = walk.reach(names)
        except (FileNotFoundError, NotADirectoryError):
            return  # nothing there: the reader says so
        with reached:
            found = os.fstat(reached.handle)
            if _id(found) in self._private:
                raise PolicyRefused("the node's identity, policy and state are no data", kind="data")
            if stat.S_ISREG(found.st_mode):
                handle = os.dup(reached.handle)
                self._handles.append(handle)
                place.symlink_to(handles_folder() / str(handle))
            elif stat.S_ISDIR(found.st_mode):
                self._add_folder(reached, _id(found), place)

    def _add_folder(self, walk: _Walk, identity: FileId, place: Path) -> None:
        """Add a folder; one that is reached by a link is a link in the view, too, as readers may treat it so."""
        target = place
        if walk.by_link:
            known = self._linked.get(identity)
            target = known or self._folder / "links" / str(next(self._number))
            place.symlink_to(target)
            if known is not None:
                return
            self._linked[identity] = target
        target.mkdir(mode=0o700, parents=True)
        for name in walk.names():
            self._add(walk, [name], target / name)


class _Walk:
    """A place below the data folder: the handles of the folders from there to it, and of a file at its end."""

    def __init__(self, root: Path, top: int, inner: Sequence[int] = (), *, by_link: bool = False) -> None:
        self._root, self._top, self._inner, self.by_link = root, top, list(inner), by_link

    def __enter__(self) -> _Walk:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._inner:
            os.close(handle)
        self._inner.clear()

    @property
    def handle(self) -> int:
        """Return the handle of the place itself."""
        return self._inner[-1] if self._inner else self._top

    def names(self) -> Iterator[str]:
        """Yield the names in the folder, sorted."""
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.handle)
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208  # of a handle
        finally:
            os.close(folder)
        yield from names

    def reach(self, names: Sequence[str]) -> _Walk:
        """Return the place that a path leads to from here, links followed, each name opened by its folder's handle.

        Raises:
            PolicyRefused: it leads out of the data folder.
            FileNotFoundError, NotADirectoryError: there is none.
        """
        found = _Walk(self._root, self._top, [os.dup(handle) for handle in self._inner])
        try:
            found._follow(deque(names))
        except BaseException:
            found.__exit__()
            raise
        return found

    def _follow(self, todo: deque[str]) -> None:
        links = 0
        while todo:
            name = todo.popleft()
            if name in ("", "."):
                continue
            if name == "..":
                if not self._inner:
                    raise _out()
                os.close(self._inner.pop())
                continue
            handle = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.handle)
            if not stat.S_ISLNK(os.fstat(handle).st_mode):
                self._inner.append(handle)
                continue
            try:
                target = PurePosixPath(os.readlink("", dir_fd=handle))
            finally:
                os.close(handle)
            links += 1
            self.by_link = self.by_link or not todo
            if links > _MAX_LINKS:
                raise _out()
            if target.is_absolute():
                target = self._from_top(target)
            todo.extendleft(reversed(target.parts))

    def _from_top(self, target: PurePosixPath) -> PurePosixPath:
        """Return an absolute link's path below the data folder, and stand there."""
        if not target.is_relative_to(self._root):
            raise _out()
        self.__exit__()
        return target.relative_to(self._root)


def raise_descriptor_limit() -> None:
    """Let this process hold as many files open as it may."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _id(found: os.stat_result) -> FileId:
    return found.st_dev, found.st_ino


def _out() -> PolicyRefused:
    return PolicyRefused("the data folder has a link that leads out of it, which is not followed", kind="data")

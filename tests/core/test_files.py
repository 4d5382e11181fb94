"""Files are whole or as they were: over failures, and over a process that is killed while it writes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedloom.core import files


def test_text_is_utf_8_and_bytes_are_themselves(tmp_path: Path) -> None:
    for content, want in (("Grün\n", b"Gr\xc3\xbcn\n"), (b"\x00\r\n", b"\x00\r\n")):
        files.write(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == want


def test_the_file_is_flushed_then_renamed_then_the_folder_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(descriptor: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    files.write(tmp_path / "a", "new")
    assert order == ["file", "rename", "folder"]


def test_a_block_that_raises_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    files.write(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "a") as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_killed_writer_leaves_what_was_there(tmp_path: Path) -> None:
    files.write(tmp_path / "a", "old")
    code = (
        "import os, sys; from pathlib import Path; from fedloom.core import files\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), 9)\n"
        "files.write(Path(sys.argv[1]), 'new')\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False).returncode == -9
    assert (tmp_path / "a").read_text(encoding="utf-8") == "old"


def test_the_name_may_depend_on_what_was_written(tmp_path: Path) -> None:
    written = bytearray()
    with files.replacing(lambda: tmp_path / f"a-{len(written)}") as file:
        written += b"abc"
        file.write(written)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a-3", b"abc")]


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o664)])
def test_a_private_file_is_its_owners_alone(tmp_path: Path, private: bool, mode: int) -> None:
    before = os.umask(0o002)
    try:
        files.write(tmp_path / "key", b"x", private=private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == mode


@pytest.mark.parametrize(("number", "full"), [(28, True), (122, True), (27, True), (13, False), (5, False)])
def test_a_full_disk_is_distinguished_from_other_troubles(number: int, full: bool) -> None:
    assert files.is_full(OSError(number, os.strerror(number))) is full

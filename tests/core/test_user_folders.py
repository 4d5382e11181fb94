"""Folders of the user's where home cannot be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from fedloom.core import user_folders
from fedloom.core.errors import StorageFull
from fedloom.core.user_folders import cache_folder, home_or_temporary, working_folder
from fedloom.workloads._data import cache


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("FEDLOOM_CACHE", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def test_a_home_that_can_be_written_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "home" / ".cache" / "fedloom"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fedloom"
    monkeypatch.setenv("FEDLOOM_CACHE", "/chosen")
    assert cache_folder() == Path("/chosen")


@pytest.mark.parametrize("why", ["read-only", "a file", "nobody"])
def test_where_it_cannot_the_temporary_folder_has_one_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "read-only":
        monkeypatch.setattr(user_folders, "_can_be_written", lambda folder: False)  # root may write anywhere
    elif why == "a file":
        (tmp_path / "home" / ".cache").write_text("", encoding="utf-8")
    else:

        def nobody() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", nobody)
    folder = home_or_temporary("XDG_CACHE_HOME", ".cache", "fedloom")
    assert folder.parent == tmp_path / "tmp" and folder.stat().st_mode & 0o777 == 0o700
    assert folder == home_or_temporary("XDG_CACHE_HOME", ".cache", "fedloom")
    place = cache.entry("kind", "0" * 64, lambda beside: cache.write_json(beside / "x.json", {"a": 1}))
    assert place.is_relative_to(folder) and cache.read_json(place / "x.json") == {"a": 1}


def test_a_folder_another_user_has_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_folders, "_can_be_written", lambda folder: False)
    theirs = tmp_path / "tmp" / f"fedloom-xdg-cache-home-{os.geteuid()}"
    theirs.symlink_to(tmp_path)
    folder = home_or_temporary("XDG_CACHE_HOME", ".cache", "fedloom")
    assert folder != theirs and folder.parent == theirs.parent and not folder.is_symlink()


def test_a_cache_that_was_chosen_and_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageFull, match="set FEDLOOM_CACHE to a folder on another disk that can be written"):
        cache.entry("kind", "0" * 64, lambda beside: None)


def test_a_working_directory_that_was_removed_is_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    assert working_folder() == tmp_path / "gone"
    (tmp_path / "gone").rmdir()
    assert working_folder() == Path("/")

"""A disk that fills up in the middle of a run: a clear error, nothing lost, the same bits after making room."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import StorageFull
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.server.store.run_store import Checkpoint

Make = Callable[..., Experiment]
FEATURES = 20_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where this machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system takes rights this user has not")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def big(linear: Make) -> Experiment:
    return linear(
        rounds=6, cohort=3, checkpoint={"keep": 2}, workload={"features": FEATURES, "learning_rate": 1e-6, "steps": 1}
    )


def test_a_really_full_disk_stops_the_run_and_room_lets_it_continue(linear: Make, small_disk: Path) -> None:
    want = api.run(big(linear), keep=False).summary.model_sha256
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((1 << 20) - 250_000))
    with pytest.raises(StorageFull, match="free disk space, then run") as caught:
        api.run(big(linear), out=small_disk / "run")
    assert "No space left" in str(caught.value) and str(small_disk) in str(caught.value)
    sound = DiskRunStore.open(small_disk / "run").latest_checkpoint()
    assert sound is None or 1 <= sound.round < 6
    ballast.unlink()
    result = api.resume(small_disk / "run")
    assert result.summary.status == "done" and result.summary.model_sha256 == want
    assert [record.round for record in result.history] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    linear: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    want = api.run(big(linear), keep=False).summary.model_sha256
    saves = iter(range(100))
    save = DiskRunStore.save_checkpoint

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def third_fails(self: DiskRunStore, checkpoint: Checkpoint, keep: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if next(saves) == 2:
                patch.setattr(os if call == "fsync" else Path, call, full)
            save(self, checkpoint, keep)

    monkeypatch.setattr(DiskRunStore, "save_checkpoint", third_fails)
    with pytest.raises(StorageFull, match="Everything saved before is intact"):
        api.run(big(linear), out=tmp_path / "run")
    left = DiskRunStore.open(tmp_path / "run").latest_checkpoint()
    assert left is not None and left.round == 2
    assert not list((tmp_path / "run" / "checkpoints").glob(".*")), "the half-written file is gone"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert api.resume(tmp_path / "run").summary.model_sha256 == want


def test_a_run_whose_summary_does_not_fit_is_not_done(
    linear: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = api.run(linear(), keep=False).summary.model_sha256

    def full(*args: object) -> None:
        raise StorageFull("no space left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiskRunStore, "save_summary", full)
        with pytest.raises(StorageFull, match="no space left"):
            api.run(linear(), out=tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    result = api.resume(tmp_path / "run")
    assert result.summary.status == "done" and result.summary.model_sha256 == want


def test_other_trouble_of_the_disk_is_not_called_full(linear: Make, tmp_path: Path) -> None:
    store = DiskRunStore.create(tmp_path / "run", "r")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        store.begin(linear())

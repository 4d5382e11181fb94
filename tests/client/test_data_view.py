"""A run's view of a node's data: nothing outside the folder is reached, also while names in it are swapped."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from policies import NOON

from fedloom.client.data_view import DataView, file_ids, handles_folder
from fedloom.client.guard import Guard
from fedloom.client.policy import Policy
from fedloom.client.usage import Usage
from fedloom.core.errors import PolicyRefused

pytestmark = pytest.mark.skipif(not handles_folder().is_dir(), reason="this system shows no handles of processes")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder, and a secret beside it."""
    data = tmp_path / "data"
    (data / "a" / "deep").mkdir(parents=True)
    for number, name in enumerate(("x.txt", "a/y.txt", "a/deep/z.txt", "a/.hidden")):
        (data / name).write_text(f"file {number}", encoding="utf-8")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("a secret", encoding="utf-8")
    return data.resolve()


@pytest.fixture
def view(tmp_path: Path) -> Iterator[DataView]:
    made = DataView(tmp_path / "view")
    yield made
    made.close()


def seen(view: DataView, root: Path, inside: str) -> Path:
    return Path(view.path(root, PurePosixPath(inside)))


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_view_has_what_the_folder_has(root: Path, view: DataView) -> None:
    assert tree(seen(view, root, ".")) == tree(root) and len(tree(root)) == 4
    assert tree(seen(view, root, "a")) == tree(root / "a")
    file = seen(view, root, "a/y.txt")
    assert file.name == "y.txt" and file.read_text(encoding="utf-8") == "file 1"
    assert seen(view, root, "a/y.txt") == file, "one path for one file"
    assert not seen(view, root, "a/none.txt").exists() and not seen(view, root, "x.txt/none").exists()


@pytest.mark.parametrize(
    "link",
    ["/etc/passwd", "../outside/secret", "../outside", "a/../../outside", "/", "..", "a/deep/../../../outside/secret"],
)
@pytest.mark.parametrize("place", ["out", "a/out", "a/deep/out"])
def test_no_link_leads_out(root: Path, view: DataView, link: str, place: str) -> None:
    up = "../" * place.count("/") if not link.startswith("/") else ""
    (root / place).symlink_to(f"{up}{link}")
    for inside in (".", place, f"{place}/secret"):
        with pytest.raises(PolicyRefused, match="leads out of it") as caught:
            view.path(root, PurePosixPath(inside))
        assert caught.value.kind == "data" and str(root) not in str(caught.value)


def test_links_inside_are_followed_and_loops_end(root: Path, view: DataView) -> None:
    (root / "b").symlink_to("a/deep")
    (root / "absolute").symlink_to(root / "a")
    (root / "a" / "up").symlink_to("..")
    (root / "file").symlink_to("a/../x.txt")
    (root / "dangling").symlink_to("nowhere")
    (root / "self").symlink_to("self")
    with pytest.raises(PolicyRefused):
        view.path(root, PurePosixPath("self"))
    (root / "self").unlink()
    found = seen(view, root, ".")
    assert (found / "b/z.txt").read_text(encoding="utf-8") == "file 2" and (found / "b").is_symlink()
    assert (found / "absolute/up/absolute/y.txt").read_text(encoding="utf-8") == "file 1"
    assert (found / "file").read_text(encoding="utf-8") == "file 0" and not (found / "dangling").exists()
    real = {name for name, _ in tree(root).items()}
    assert set(tree(found)) == real, "as far as a recursive reader goes in the folder itself"


def test_special_files_are_left_out(root: Path, view: DataView) -> None:
    os.mkfifo(root / "pipe")
    found = seen(view, root, ".")
    assert not (found / "pipe").exists() and len(tree(found)) == 4


def test_the_nodes_own_files_are_no_data_by_whatever_name(root: Path, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "key.pem").write_text("a key", encoding="utf-8")
    os.link(tmp_path / "node" / "key.pem", root / "a" / "innocent.txt")
    view = DataView(tmp_path / "view", file_ids([tmp_path / "node"]))
    with pytest.raises(PolicyRefused, match="are no data"):
        view.path(root, PurePosixPath("a"))
    assert tree(seen(view, root, "a/deep")) == {"z.txt": "file 2"}
    view.close()


def test_what_is_read_is_what_was_checked(root: Path, view: DataView, tmp_path: Path) -> None:
    """Whoever may write in the data folder swaps names after the check: a link, another folder, nothing."""
    folder, file = seen(view, root, "a"), seen(view, root, "x.txt")
    (root / "x.txt").unlink()
    (root / "x.txt").symlink_to(tmp_path / "outside" / "secret")
    (root / "a").rename(root / "moved")
    (root / "a").symlink_to(tmp_path / "outside")
    (root / "moved" / "deep" / "z.txt").unlink()
    assert file.read_text(encoding="utf-8") == "file 0"
    assert tree(folder) == {"y.txt": "file 1", ".hidden": "file 3", "deep/z.txt": "file 2"}


def test_a_race_never_reads_outside(root: Path, tmp_path: Path) -> None:
    """File and folder are swapped for links all the time; a view has the files or is refused, never the secret."""
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for name, target in (("x.txt", "../outside/secret"), ("a", "../outside")):
                (root / name).rename(root / "kept")
                (root / name).symlink_to(target)
                (root / name).unlink()
                (root / "kept").rename(root / name)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for number in range(40):
            view = DataView(tmp_path / f"view-{number}")
            try:
                found = tree(seen(view, root, "."))
                assert set(found.values()) <= {f"file {n}" for n in range(4)}, found
            except PolicyRefused:
                pass
            view.close()
    finally:
        over.set()
        thread.join()


def test_other_libraries_and_processes_read_a_view(root: Path, view: DataView) -> None:
    np.savez(root / "arrays.npz", x=np.arange(3))
    path = seen(view, root, "arrays.npz")
    (root / "arrays.npz").unlink()
    with np.load(path) as archive:
        assert archive["x"].tolist() == [0, 1, 2]
    read = f"import numpy; print(numpy.load({str(path)!r})['x'].sum())"
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "3"


def test_a_view_ends_with_its_run(root: Path, tmp_path: Path) -> None:
    gc.collect()  # what earlier tests have left open is not to be closed in between
    before = len(list(handles_folder().iterdir()))
    view = DataView(tmp_path / "view")
    seen(view, root, ".")
    view.close()
    assert not (tmp_path / "view").exists() and len(list(handles_folder().iterdir())) == before
    (root / "out").symlink_to("/etc")
    view = DataView(tmp_path / "view")
    with pytest.raises(PolicyRefused):
        seen(view, root, ".")
    view.close()
    assert len(list(handles_folder().iterdir())) == before


def test_a_guard_gives_runs_paths_in_their_view(root: Path, tmp_path: Path) -> None:
    policy = Policy.model_validate({"workloads": {"image_classification": {"data": str(root)}}})
    guard = Guard(policy, Usage(tmp_path / "usage.json", lambda: NOON), views=tmp_path / "views")
    for asked in ("$DATA/a", str(root / "a"), "$DATA/a/../a"):
        data = {"source": "images", "folder": asked}
        values = {
            "rounds": 1,
            "strategy": "fedavg",
            "selection": "uniform",
            "workload": {"name": "image_classification", "data": data},
        }
        view = guard.open_view()
        assert view is not None
        folder = Path(guard.admit_experiment(values, view)["workload"]["data"]["folder"])
        assert folder.is_relative_to(tmp_path / "views") and tree(folder) == tree(root / "a")
        view.close()
    assert list((tmp_path / "views").iterdir()) == []

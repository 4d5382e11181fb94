"""Downloads of a run's files: continued, checked, replaced as a whole, and what a lying or breaking server changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedloom.client.download import PATIENCE_S, Download, RemoteFile
from fedloom.core.errors import BadMessage, NotFound, RunExists, ServerUnreachable, StorageFull
from fedloom.core.run_files import RUN

RUN_JSON = json.dumps({"run_id": "r1"}).encode()


def remote(name: str, content: bytes, **fields: object) -> RemoteFile:
    values = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "length": len(content), **fields}
    return RemoteFile(name=name, kind="records", **values)  # type: ignore[arg-type]


class Source:
    """A server with files; what it was asked is in `asked`."""

    def __init__(self, **files: bytes) -> None:
        self.content = {RUN: RUN_JSON, **{name.replace("__", "/"): data for name, data in files.items()}}
        self.asked: list[tuple[str, int]] = []
        self.breaks = 0
        """How many more times the connection breaks, each after three bytes."""
        self.extra: list[RemoteFile] = []

    def files(self) -> tuple[RemoteFile, ...]:
        return (*(remote(name, data) for name, data in self.content.items()), *self.extra)

    def fetch(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        self.asked.append((file.name, offset))
        data = self.content[file.name][offset : file.length]
        if self.breaks and file.name != RUN:
            self.breaks -= 1
            yield data[:3]
            raise ServerUnreachable("gone")
        yield from (data[at : at + 4] for at in range(0, len(data), 4))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def download(source: Source, folder: Path, said: list[str] | None = None) -> list[Path]:
    clock = Clock()
    say = (said if said is not None else []).append
    return Download(source, "r1", folder, say, sleep=clock.sleep, clock=lambda: clock.now).all()


def test_files_arrive_and_are_not_sent_twice(tmp_path: Path) -> None:
    source = Source(model__model=b"0123456789", empty=b"")
    assert download(source, tmp_path / "r1") == [tmp_path / "r1" / name for name in source.content]
    assert {name: (tmp_path / "r1" / name).read_bytes() for name in source.content} == source.content
    source.asked.clear()
    download(source, tmp_path / "r1")
    assert source.asked == []
    source.content["empty"] = b"no longer"
    download(source, tmp_path / "r1")
    assert source.asked == [("empty", 0)] and (tmp_path / "r1" / "empty").read_bytes() == b"no longer"


def test_a_broken_connection_continues_where_it_broke(tmp_path: Path) -> None:
    source, said = Source(model=b"0123456789"), list[str]()
    source.breaks = 2
    download(source, tmp_path / "r1", said)
    assert source.asked == [(RUN, 0), ("model", 0), ("model", 3), ("model", 6)]
    assert said[0] == "model: the connection broke after 3 of 10 bytes; retrying"
    assert (tmp_path / "r1" / "model").read_bytes() == b"0123456789"


def test_so_does_a_later_call_and_a_server_that_stays_away_ends_this_one(tmp_path: Path) -> None:
    source = Source(model=b"0123456789")
    clock = Clock()

    def gone(file: RemoteFile, offset: int) -> Iterator[bytes]:
        if file.name == RUN or offset < 6:
            yield source.content[file.name][offset : offset + 6]
        if file.name != RUN:
            raise ServerUnreachable("gone")

    class Breaking(Source):
        fetch = staticmethod(gone)

    with pytest.raises(ServerUnreachable):
        Download(
            Breaking(model=b"0123456789"), "r1", tmp_path / "r1", print, sleep=clock.sleep, clock=lambda: clock.now
        ).all()
    assert PATIENCE_S < clock.now < 2 * PATIENCE_S and not (tmp_path / "r1" / "model").exists()
    source.asked.clear()
    download(source, tmp_path / "r1")
    assert source.asked == [("model", 6)]
    assert (tmp_path / "r1" / "model").read_bytes() == b"0123456789"
    assert not list((tmp_path / "r1").glob(".*")), "no part is left"


def test_a_damaged_part_is_fetched_anew(tmp_path: Path) -> None:
    source = Source(model=b"0123456789")
    digest = hashlib.sha256(b"0123456789").hexdigest()[:16]
    for content, asked in ((b"wrong", [("model", 5), ("model", 0)]), (b"far too long for it", [("model", 0)])):
        folder = tmp_path / str(len(content))
        folder.mkdir()
        (folder / RUN).write_bytes(RUN_JSON)
        (folder / f".model.{digest}.part").write_bytes(content)
        (folder / ".model.0000000000000000.part").write_bytes(b"of an older model")
        source.asked.clear()
        download(source, folder)
        assert source.asked == asked and (folder / "model").read_bytes() == b"0123456789"
        assert not list(folder.glob(".*"))


def test_a_file_that_changes_under_the_download_is_listed_again(tmp_path: Path) -> None:
    class Growing(Source):
        def fetch(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
            if file.name == "rounds" and len(self.content["rounds"]) < 20:
                self.content["rounds"] = b"x" * 20
                raise NotFound("it has changed")
            return super().fetch(file, offset)

    download(Growing(rounds=b"0123456789"), tmp_path / "r1")
    assert (tmp_path / "r1" / "rounds").read_bytes() == b"x" * 20

    class Restless(Source):
        def fetch(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
            return iter([b"!" * (file.size - offset)]) if file.name != RUN else super().fetch(file, offset)

    with pytest.raises(BadMessage, match="changed 3 times while they were fetched"):
        download(Restless(rounds=b"0123456789"), tmp_path / "r2")
    assert not (tmp_path / "r2" / "rounds").exists(), "what has not the listed digest is never put in place"


def test_a_full_disk_is_said_with_what_is_missing(tmp_path: Path) -> None:
    source = Source(model=b"0123456789")
    digest = hashlib.sha256(b"0123456789").hexdigest()[:16]
    (tmp_path / "r1").mkdir()
    (tmp_path / "r1" / RUN).write_bytes(RUN_JSON)
    part = tmp_path / "r1" / f".model.{digest}.part"
    part.symlink_to("/dev/full")
    with pytest.raises(
        StorageFull, match=r"No space left on device\. 0 of the 10 bytes of model are there; free at least"
    ):
        download(source, tmp_path / "r1")
    part.unlink()
    download(source, tmp_path / "r1")
    assert (tmp_path / "r1" / "model").read_bytes() == b"0123456789"


@pytest.mark.parametrize("content", [{"x": "y"}, {RUN: json.dumps({"run_id": "another"})}, None])
def test_a_folder_with_anything_else_is_not_written_to(tmp_path: Path, content: dict[str, str] | None) -> None:
    folder = tmp_path / "r1"
    if content is None:
        folder.write_text("a file", encoding="utf-8")
    else:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(RunExists, match="does not have the files of run 'r1'"):
        download(Source(model=b"x"), folder)
    assert content is None or sorted(each.name for each in folder.iterdir()) == sorted(content)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/x",
        "a/../../x",
        "a/" * 16 + "b",
        "",
        ".",
        "..",
        ".x",
        "a/.x",
        "a//b",
        "a/",
        "a\0b",
        "a\nb",
        "x" * 300,
        "~",
    ],
)
def test_a_server_chooses_no_place_outside_the_folder(tmp_path: Path, name: str) -> None:
    source = Source()
    source.extra = [remote(name, b"evil")]
    with pytest.raises(BadMessage, match="the server lists a file"):
        download(source, tmp_path / "r1")
    assert not (tmp_path / "r1").exists()


def test_a_server_that_sends_more_than_it_listed_is_refused(tmp_path: Path) -> None:
    class Endless(Source):
        def fetch(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
            while True:
                yield b"0123456789"

    with pytest.raises(BadMessage, match="sends more than"):
        download(Endless(), tmp_path / "r1")
    source = Source()
    source.extra = [remote("x", b"", sha256="none")]
    with pytest.raises(BadMessage, match="without its SHA-256"):
        download(source, tmp_path / "r2")

"""What a run keeps: the same promises in memory and on disk, and what only a disk can do wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedloom.core.config import Experiment
from fedloom.core.errors import CheckpointCorrupt, FedloomError, NotFound, RunExists, UsageError
from fedloom.core.events import Notice, RoundStarted
from fedloom.core.history import RunSummary
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.server.store.run_store import RunStore
from fedloom.testing.records import assert_same_record, records_of_every_dtype
from fedloom.testing.run_store import RunStoreConformance, checkpoint_of, record_of

Make = Callable[..., Experiment]


@pytest.fixture
def disk(tmp_path: Path, linear: Make) -> DiskRunStore:
    store = DiskRunStore.create(tmp_path / "run", "r1")
    store.begin(linear())
    return store


def files(store: DiskRunStore) -> list[Path]:
    assert store.folder is not None
    return sorted((store.folder / "checkpoints").iterdir())


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


class TestInMemory(RunStoreConformance):
    def make(self) -> RunStore:
        return MemoryRunStore("r1")


class TestOnDisk(RunStoreConformance):
    @pytest.fixture(autouse=True)
    def _somewhere(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "run"

    def make(self) -> RunStore:
        return DiskRunStore.create(self.folder, "r1")


class TestDisk:
    def test_it_reads_what_another_process_wrote(self, disk: DiskRunStore, linear: Make) -> None:
        disk.append_round(record_of(1))
        disk.save_client(5, 1, 0, records_of_every_dtype(100)[0])
        disk.save_checkpoint(checkpoint_of(1), keep=2)
        assert disk.folder is not None
        again = DiskRunStore.open(disk.folder)
        assert again.run_id == "r1" and again.experiment().identity() == linear().identity()
        assert again.rounds() == [record_of(1)]
        found = again.client(5, (2, 0))
        assert found is not None
        assert_same_record(found, records_of_every_dtype(100)[0])
        assert again.latest_checkpoint() is not None

    def test_only_the_newest_checkpoints_stay(self, disk: DiskRunStore) -> None:
        for round in range(1, 6):
            disk.save_checkpoint(checkpoint_of(round), keep=2)
        assert [path.name[:12] for path in files(disk)] == ["round-000004", "round-000005"]

    def test_a_damaged_newest_falls_back_to_the_older_one(self, disk: DiskRunStore) -> None:
        for round in (1, 2):
            disk.save_checkpoint(checkpoint_of(round), keep=2)
        damage(files(disk)[-1])
        found = disk.latest_checkpoint()
        assert found is not None and found.round == 1

    @pytest.mark.parametrize("how", ["bit", "empty", "short"])
    def test_all_damaged_names_every_file_and_what_to_do(self, disk: DiskRunStore, how: str) -> None:
        for round in (1, 2):
            disk.save_checkpoint(checkpoint_of(round), keep=2)
        for path in files(disk):
            if how == "bit":
                damage(path)
            else:
                path.write_bytes(b"" if how == "empty" else path.read_bytes()[:-1])
        with pytest.raises(CheckpointCorrupt) as caught:
            disk.latest_checkpoint()
        assert all(path.name in str(caught.value) for path in files(disk))
        assert "checksum" in str(caught.value) and "backup" in str(caught.value)

    def test_half_written_files_are_not_checkpoints(self, disk: DiskRunStore) -> None:
        disk.save_checkpoint(checkpoint_of(1), keep=2)
        whole = files(disk)[0]
        (whole.parent / f".{whole.name.replace('000001', '000002')}.99.tmp").write_bytes(whole.read_bytes()[:100])
        (whole.parent / "round-000003.safetensors").write_bytes(b"")
        (whole.parent / "round-000004.zz.safetensors").write_bytes(b"")
        found = disk.latest_checkpoint()
        assert found is not None and found.round == 1

    def test_a_torn_last_line_of_the_rounds_is_dropped(self, disk: DiskRunStore) -> None:
        assert disk.folder is not None
        for round in (1, 2, 3):
            disk.append_round(record_of(round))
        path = disk.folder / "rounds.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        assert [r.round for r in disk.rounds()] == [1, 2]
        assert [r.round for r in disk.rounds(upto=3)] == [1, 2]
        disk.append_round(record_of(3))
        assert [r.round for r in disk.rounds()] == [1, 2, 3]

    def test_what_comes_after_the_rounds_a_resume_needs_may_be_damaged(self, disk: DiskRunStore) -> None:
        assert disk.folder is not None
        for round in (1, 2):
            disk.append_round(record_of(round))
        path = disk.folder / "rounds.jsonl"
        path.write_bytes(path.read_bytes() + b"\0\0\0\n" + record_of(4).model_dump_json().encode() + b"\n")
        reads: tuple[Callable[[], object], ...] = (disk.rounds, lambda: disk.rounds(upto=3))
        for read in reads:
            with pytest.raises(UsageError, match=r"rounds\.jsonl, line 3: not JSON"):
                read()
        assert [r.round for r in disk.rounds(upto=2)] == [1, 2]
        assert [r.round for r in disk.rounds()] == [1, 2]

    def test_a_torn_event_does_not_hide_the_others(self, disk: DiskRunStore) -> None:
        assert disk.folder is not None
        disk.append_event(RoundStarted(run_id="r1", round=1, cohort=3))
        with (disk.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"event": "RoundFin')
        disk.append_event(RoundStarted(run_id="r1", round=2, cohort=3))
        disk.append_event(Notice(run_id="r1", message="three"))
        assert [(event["event"], event.get("round")) for event in disk.events()] == [
            ("RoundStarted", 1), ("RoundStarted", 2), ("Notice", None)
        ]  # fmt: skip

    def test_events_carry_their_kind_and_time(self, disk: DiskRunStore) -> None:
        disk.append_event(RoundStarted(run_id="r1", round=1, cohort=3))
        (event,) = disk.events()
        reported = dict(event)
        assert reported.pop("at").startswith("20")
        assert reported == {"event": "RoundStarted", "run_id": "r1", "round": 1, "cohort": 3}

    @pytest.mark.parametrize("there", ["file", "run", "anything"])
    def test_a_folder_in_use_is_refused_and_left_alone(self, tmp_path: Path, there: str) -> None:
        folder = tmp_path / "out"
        if there == "file":
            folder.write_text("mine", encoding="utf-8")
        else:
            folder.mkdir()
            (folder / ("experiment.toml" if there == "run" else "notes.txt")).write_text("mine", encoding="utf-8")
        before = sorted(path.name for path in tmp_path.rglob("*"))
        with pytest.raises(RunExists, match=f"{folder} is {'a file' if there == 'file' else 'not empty'}"):
            DiskRunStore.create(folder, "r2")
        assert sorted(path.name for path in tmp_path.rglob("*")) == before

    def test_an_empty_folder_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        assert DiskRunStore.create(tmp_path / "out", "r2").run_id == "r2"

    def test_a_folder_without_a_run_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="not a run's folder"):
            DiskRunStore.open(tmp_path)

    def test_the_model_opens_with_safetensors(self, disk: DiskRunStore) -> None:
        from safetensors.numpy import load_file

        disk.save_model({"w": np.arange(4, dtype=np.float16)})
        assert disk.folder is not None
        assert load_file(disk.folder / "model" / "model.safetensors")["w"].tolist() == [0, 1, 2, 3]

    def test_the_summary_is_readable_json(self, disk: DiskRunStore) -> None:
        summary = RunSummary(
            run_id="r1", run_dir=None, name="x", status="done", rounds=3, metrics={"loss": 1.0}, bytes_up=1,
            bytes_down=1, params_up=1, params_down=1, wire_bytes_up=1, wire_bytes_down=1, seconds=1, model_sha256="a",
            num_parameters=1, seed=1, group_size=1, runtime="inline", workers=1, failures=0,
        )  # fmt: skip
        disk.save_summary(summary)
        assert disk.folder is not None
        assert RunSummary(**json.loads((disk.folder / "summary.json").read_text(encoding="utf-8"))) == summary

    def test_a_writer_killed_half_way_leaves_the_checkpoint_before(self, disk: DiskRunStore) -> None:
        """The process dies between writing and renaming."""
        disk.save_checkpoint(checkpoint_of(1), keep=1)
        code = (
            "import os, sys, numpy as np; from pathlib import Path\n"
            "from fedloom.core.records import Record\n"
            "from fedloom.server.store.disk_run_store import DiskRunStore\n"
            "from fedloom.server.store.run_store import Checkpoint\n"
            "os.fsync = lambda fd: os.kill(os.getpid(), 9)\n"
            "state = Record({'model': {'w': np.zeros(1000)}})\n"
            "DiskRunStore.open(Path(sys.argv[1])).save_checkpoint(Checkpoint(2, state, Record(), 0.0), 1)\n"
        )
        killed = subprocess.run([sys.executable, "-c", code, str(disk.folder)], check=False)
        assert killed.returncode == -9
        assert len(files(disk)) == 2, "the half-written file lies beside"
        found = disk.latest_checkpoint()
        assert found is not None and found.round == 1


def test_files_are_flushed_before_they_are_renamed(disk: DiskRunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(fd: int) -> None:
        order.append("fsync")
        fsync(fd)

    def renamed(self: Path, to: Path) -> Path:
        order.append("rename")
        return replace(self, to)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    disk.save_checkpoint(checkpoint_of(1), keep=2)
    assert order == ["fsync", "rename", "fsync"], "the file, its place, the folder"


def test_errors_of_a_store_are_of_the_catalogue() -> None:
    with pytest.raises(FedloomError):
        MemoryRunStore("r1").experiment()

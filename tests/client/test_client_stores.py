"""State at the node: versions by exchange, whole files, gone with the run."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

from fedloom.client.client_stores import STALE_S, NodeStore, ServerStore, default_folder
from fedloom.core.config import NODE_STATE_ROUNDS
from fedloom.core.errors import BadFrame, StorageFull
from fedloom.core.messages import Group, GroupKey, PayloadRef
from fedloom.core.records import Record


def at(round: int, exchange: int = 0, run: str = "run", **fields: object) -> Group:
    return Group(key=GroupKey(run, round, exchange, 0), jobs=(), **fields)  # type: ignore[arg-type]


def state(value: float) -> Record:
    return Record({"own": {"w": np.full(2, value)}}, {"value": value})


def value(found: Record | None) -> float | None:
    return None if found is None else float(found.info["value"])


def test_a_job_gets_what_was_kept_before_its_exchange_however_often_it_is_done(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "states")
    assert store.read(at(1), 3) is None
    for group, number in ((at(1), 1.0), (at(1, 1), 1.1), (at(2), 2.0)):
        assert store.keep(group, 3, state(number)) is None, "nothing of it travels"
    assert [value(store.read(group, 3)) for group in (at(1), at(1, 1), at(2), at(2), at(3))] == [
        None,
        1.0,
        1.1,
        1.1,
        2.0,
    ]
    store.keep(at(2), 3, state(2.5))  # done again
    assert value(store.read(at(9), 3)) == 2.5 and store.read(at(9), 4) is None and store.read(at(9, run="b"), 3) is None
    assert value(NodeStore(tmp_path / "states").read(at(9), 3)) == 2.5, "another process of the node finds it"


def test_of_older_rounds_a_few_are_kept_for_a_run_that_is_resumed(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    for round in range(1, 10):
        for exchange in (0, 1):
            store.keep(at(round, exchange), 0, state(round + exchange / 10))
    left = sorted(path.stem for path in tmp_path.rglob("*.safetensors"))
    assert left == [f"{round}-{exchange}" for round in range(10 - NODE_STATE_ROUNDS, 10) for exchange in (0, 1)]
    assert value(store.read(at(7), 0)) == 6.1


def test_a_run_that_is_over_leaves_nothing_and_its_id_names_no_path(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "states")
    for run in ("../../outside", "run"):
        store.keep(at(1, run=run), 0, state(1.0))
    assert not (tmp_path / "outside").exists() and not (tmp_path.parent / "outside").exists()
    assert len(list((tmp_path / "states").iterdir())) == 2
    store.forget("../../outside")
    assert store.read(at(2, run="../../outside"), 0) is None and value(store.read(at(2), 0)) == 1.0
    store.forget("run")
    assert not list((tmp_path / "states").iterdir())


def test_files_are_the_owners_alone_and_a_half_written_one_is_never_read(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "states")
    store.keep(at(1), 0, state(1.0))
    (file,) = tmp_path.rglob("*.safetensors")
    assert file.stat().st_mode & 0o077 == 0 and file.parent.stat().st_mode & 0o077 == 0
    (file.parent / ".2-0.safetensors.77.tmp").write_bytes(b"half")
    assert value(store.read(at(9), 0)) == 1.0
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(BadFrame):
        store.read(at(9), 0)


@pytest.mark.parametrize(("run", "client"), [("other", 0), ("run", 1)])
def test_a_state_that_was_copied_from_another_run_or_client_is_not_trained_on(
    tmp_path: Path, run: str, client: int
) -> None:
    store = NodeStore(tmp_path)
    store.keep(at(1), 0, state(1.0))
    store.keep(at(1, run=run), client, state(2.0))
    (file,) = [path for path in tmp_path.rglob("*.safetensors") if b"2.0" in path.read_bytes()]
    (own,) = set(tmp_path.rglob("*.safetensors")) - {file}
    own.write_bytes(file.read_bytes())
    found = f"expected the state of client 0 of run 'run', found one of {{'run': '{run}', 'client': {client}}}"
    with pytest.raises(BadFrame, match=re.escape(found)):
        store.read(at(2), 0)
    own.unlink()
    assert store.read(at(2), 0) is None


def test_no_room_is_said(tmp_path: Path) -> None:
    (tmp_path / "states").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(StorageFull, match="state of client 5 cannot be written to"):
        NodeStore(tmp_path / "states").keep(at(1), 5, state(1.0))


def test_states_of_a_run_nobody_resumes_are_removed_in_the_end(tmp_path: Path) -> None:
    for run, age in (("old", STALE_S + 60), ("young", STALE_S - 60)):
        NodeStore(tmp_path).keep(at(1, run=run), 0, state(1.0))
        for path in (p for p in tmp_path.rglob("*") if p.stat().st_mtime > time.time() - 60):
            os.utime(path, (time.time() - age,) * 2)
    store = NodeStore(tmp_path)
    store.keep(at(1, run="new"), 0, state(1.0))
    assert [value(store.read(at(2, run=run), 0)) for run in ("old", "young", "new")] == [None, 1.0, 1.0]


def test_by_default_state_travels_with_the_group_and_its_result() -> None:
    sent: list[tuple[Record, str]] = []

    def put(record: Record, run_id: str) -> PayloadRef:
        sent.append((record, run_id))
        return PayloadRef(size=7, record=record)

    store = ServerStore(lambda ref: ref.record or Record(), put)
    group = at(1, states={4: PayloadRef(size=1, record=state(4.0))})
    assert value(store.read(group, 4)) == 4.0 and store.read(group, 5) is None
    assert store.keep(group, 4, state(5.0)) == PayloadRef(size=7, record=sent[0][0]) and sent[0][1] == "run"


def test_an_agent_without_a_folder_keeps_states_by_its_name_below_the_users_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    first, other = default_folder("lab/../8"), default_folder("lab-9")
    assert first.parent == other.parent == tmp_path / "fedloom" / "nodes" and first != other
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder("a").parent == tmp_path / "home" / ".local" / "state" / "fedloom" / "nodes"

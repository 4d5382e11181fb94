"""Pinned inputs on their way: made once, fetched once, counted once for each client, saved once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedloom.client.record_cache import RecordCache
from fedloom.core import frames
from fedloom.core.depot import Depot
from fedloom.core.errors import BadFrame, NotFound
from fedloom.core.layout import Layout
from fedloom.core.messages import PayloadRef
from fedloom.core.pinned import Pinned
from fedloom.core.records import MODEL, Job, Record
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.rounds.pinned_inputs import PinLedger
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.server.store.run_store import Checkpoint
from fedloom.testing.by_hand import prepared_ref


def pinned(value: float = 1.0, size: int = 100_000) -> Pinned:
    return Pinned.of(Record({MODEL: {"w": np.full(size, value, np.float32)}}))


@pytest.fixture
def depot() -> Iterator[Depot]:
    made = Depot.create()
    yield made
    made.close()


class TestOffers:
    def test_one_offer_serves_every_exchange_of_the_run(self, depot: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
        store, base = PayloadStore(depot), pinned()
        written: list[Record] = []
        write = frames.write_into

        def counted(record: Record, buffer: memoryview, layout: Layout | None = None) -> int:
            written.append(record)
            return write(record, buffer, layout)

        monkeypatch.setattr(frames, "write_into", counted)
        monkeypatch.setattr(frames, "digest", lambda record: pytest.fail("hashed again"))
        refs = []
        for _ in range(3):
            offers = store.offer_all("run", {"base": base, MODEL: Record({MODEL: {"x": np.ones(9000)}})})
            refs.append(prepared_ref(store, offers["base"], "host"))
            prepared_ref(store, offers[MODEL], "host")
            for offer in offers.values():
                store.withdraw(offer)
        assert refs[0] == refs[1] == refs[2] and refs[0].pinned and refs[0].sha256 == base.sha256
        assert len(written) == 4  # the base once, the model three times

    def test_there_is_one_copy_on_the_host_and_it_outlives_the_offer(self, depot: Depot) -> None:
        store, base = PayloadStore(depot), pinned()
        before, order = base.groups[MODEL]["w"], list(base.groups[MODEL])
        ref = prepared_ref(store, store.offer_all("run", {"base": base})["base"], "host")
        reader = Depot.join(str(depot.path), depot.nonce)
        assert reader is not None
        mapped = frames.decode(reader.map(ref.shared, ref.size)).groups[MODEL]["w"]
        own = base.groups[MODEL]["w"]
        assert own is not before and np.array_equal(own, before) and list(base.groups[MODEL]) == order
        assert not own.flags.writeable and frames.digest(base) == base.sha256
        store.retain("run", [])
        depot.lease(ref.size).memory[:] = b"\xff" * len(depot.lease(ref.size).memory)  # what comes after is elsewhere
        assert np.array_equal(own, before) and np.array_equal(mapped, before)

    def test_a_small_one_is_not_repeated_inside_every_message(self) -> None:
        store = PayloadStore(None)
        ref = prepared_ref(store, store.offer_all("run", {"fold": pinned(size=4)})["fold"], "remote")
        assert ref.pinned and not ref.inline
        assert b"".join(store.download(ref.sha256, 0)) == bytes(frames.encode(pinned(size=4)))

    def test_what_the_state_no_longer_names_is_no_longer_offered(self, depot: Depot) -> None:
        store, old, new = PayloadStore(depot), pinned(1.0), pinned(2.0)
        first = prepared_ref(store, store.offer_all("run", {"base": old})["base"], "host")
        prepared_ref(store, store.offer_all("run", {"base": old, "new": new})["new"], "remote")
        store.retain("run", [new.sha256])
        again = prepared_ref(store, store.offer_all("run", {"base": old})["base"], "host")
        assert again.shared != first.shared and not (depot.path / first.shared).exists()
        store.retain("run", [])
        assert not list(depot.path.glob("*-*"))
        with pytest.raises(NotFound):
            store.download(new.sha256, 0)


class TestKept:
    def fetcher(self, records: dict[str, Record]) -> tuple[RecordCache, list[str]]:
        fetched: list[str] = []

        def fetch(ref: PayloadRef) -> Record:
            fetched.append(ref.shared or ref.sha256)
            return records[ref.shared or ref.sha256]

        return RecordCache(fetch, limit_bytes=1_000_000), fetched

    def test_a_record_is_fetched_once_and_stays_the_same_object(self) -> None:
        base = pinned()
        kept, fetched = self.fetcher({"buffer": Record(base.groups)})
        ref = PayloadRef(size=1, shared="buffer", sha256=base.sha256, pinned=True)
        first = kept.get(ref)
        assert kept.get(replace(ref)) is first and isinstance(first, Pinned) and fetched == ["buffer"]

    def test_other_bytes_than_the_server_names_are_refused(self) -> None:
        base, other = pinned(1.0), pinned(2.0)
        kept, _ = self.fetcher({base.sha256: Record(other.groups)})
        with pytest.raises(BadFrame, match=f"{base.sha256[:16]}….*{other.sha256[:16]}…"):
            kept.get(PayloadRef(size=1, sha256=base.sha256, pinned=True))

    def test_room_is_made_by_what_was_used_longest_ago(self) -> None:
        records = [pinned(float(value)) for value in range(4)]  # 400 kB each, room for two
        kept, fetched = self.fetcher({record.sha256: record for record in records})
        for index in (0, 1, 0, 2, 0, 1):
            kept.get(PayloadRef(size=1, sha256=records[index].sha256, pinned=True))
        assert fetched == [records[index].sha256 for index in (0, 1, 2, 1)]


class TestHolders:
    def test_a_client_holds_what_it_has_answered_with(self) -> None:
        base, inputs = pinned(), dict[str, Record]()
        inputs = {"base": base, MODEL: Record()}
        jobs = tuple(Job(round=1, client=client, inputs=(MODEL, "base")) for client in (3, 5))
        holders = PinLedger()
        assert holders.mark(jobs, inputs) == jobs
        holders.learn(jobs[1], inputs)  # client 3 failed
        part = Job(round=1, client=3, kind="anything", inputs=("base",), of_client=False)  # part 3 of a test set
        holders.learn(part, inputs)
        assert holders.mark([replace(part, client=5)], inputs)[0].cached_inputs == ()
        marked = holders.mark(jobs, {"renamed": base, **inputs})
        assert [job.cached_inputs for job in marked] == [(), ("base",)]
        again = PinLedger(holders.arrays())
        assert again.mark(jobs, inputs) == marked
        again.retain([])
        assert again.mark(jobs, inputs) == jobs and not again.arrays()


class TestCheckpoints:
    def checkpoint(self, round: int, *records: Pinned) -> Checkpoint:
        named = {record.sha256: record for record in records}
        holders = {record.sha256: np.array([1, 4]) for record in records}
        return Checkpoint(round, Record(), Record(), 0.0, holders, named)

    def test_each_is_written_once_and_removed_with_the_last_checkpoint_that_names_it(self, tmp_path: Path) -> None:
        store, old, new = DiskRunStore.create(tmp_path / "run", "id"), pinned(1.0), pinned(2.0)
        folder = tmp_path / "run" / "checkpoints"
        store.save_checkpoint(self.checkpoint(1, old), keep=2)
        (path,) = folder.glob("pinned-*")
        written = path.stat().st_mtime_ns
        store.save_checkpoint(self.checkpoint(2, old, new), keep=2)
        assert path.stat().st_mtime_ns == written and len(list(folder.glob("pinned-*"))) == 2
        assert max(each.stat().st_size for each in folder.glob("round-*")) < 10_000
        latest = DiskRunStore(tmp_path / "run").latest_checkpoint()
        assert latest is not None and latest.pinned.keys() == {old.sha256, new.sha256}
        assert np.array_equal(latest.pinned[new.sha256].groups[MODEL]["w"], new.groups[MODEL]["w"])
        assert latest.holders[old.sha256].tolist() == [1, 4]
        for round in (3, 4):
            store.save_checkpoint(self.checkpoint(round, new), keep=2)
        assert [each.stem for each in folder.glob("pinned-*")] == [f"pinned-{new.sha256}"]

    def test_a_checkpoint_without_its_base_gives_way_to_the_one_before(self, tmp_path: Path) -> None:
        store = DiskRunStore.create(tmp_path / "run", "id")
        store.save_checkpoint(self.checkpoint(1), keep=2)
        store.save_checkpoint(self.checkpoint(2, pinned()), keep=2)
        (path,) = (tmp_path / "run" / "checkpoints").glob("pinned-*")
        path.unlink()
        latest = store.latest_checkpoint()
        assert latest is not None and latest.round == 1

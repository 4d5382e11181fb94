"""Requirements on every monitor, on the server and on clients with made-up logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.config import PluginSettings, plugin_schema
from fedloom.core.kinds import Kind
from fedloom.core.plugins import build_monitor, build_watch
from fedloom.core.protocols import Inputs, Monitor, MonitorReading, Observation, Shard, Watch
from fedloom.core.records import MODEL, Array, ClientReport, Info
from fedloom.core.seeds import generator
from fedloom.testing.explained import assert_explained
from fedloom.testing.records import NOTHING, model_record

CLIENTS, CLASSES, EXAMPLES = 12, 5, 40


@dataclass(frozen=True)
class MadeUpShard:
    """A client's data, which is only its number."""

    client: int

    @property
    def num_examples(self) -> int:
        """Return the examples in the shard."""
        return EXAMPLES


class MadeUpLogits:
    """A workload that has nothing but logits: right four times in five, by a margin that differs between clients."""

    def logits(self, inputs: Inputs, shard: MadeUpShard) -> tuple[Array, Array | None]:
        """Return logits (n, K) and labels (n,), the same at every call."""
        rng = generator(1, "logits", shard.client)
        labels = rng.integers(CLASSES, size=EXAMPLES)
        shown = np.where(rng.random(EXAMPLES) < 0.8, labels, rng.integers(CLASSES, size=EXAMPLES))
        logits = rng.normal(size=(EXAMPLES, CLASSES))
        logits[np.arange(EXAMPLES), shown] += 2.0 + shard.client % 3
        return logits.astype(np.float32), labels


class MonitorConformance:
    """Tests of one monitor and its watch; subclass it and set `name`, and `settings` if it needs any."""

    name: str
    """The monitor: folder, module or file."""
    settings: Info = NOTHING
    """Its settings."""

    def workload(self) -> object:
        """Make the workload that is watched; one that has only logits by default."""
        return MadeUpLogits()

    def build(self) -> Monitor:
        """Build the server half: the plug-in `name` by default."""
        return build_monitor(self._settings())

    def watch(self) -> Watch:
        """Build the client half: the plug-in `name` by default."""
        return build_watch(self._settings())

    def shard(self, client: int) -> Shard:
        """Make a client's data for it."""
        return MadeUpShard(client)

    def test_it_watches_distinct_clients_of_the_federation(self) -> None:
        """Check that a request names clients of the federation, or parts of the held-out data, each once."""
        for number in range(5):
            request = self.build().request(CLIENTS, generator(1, "request", number))
            limit = request.parts if request.parts is not None else CLIENTS
            assert request.clients, "a request without clients"
            assert all(type(client) is int and 0 <= client < limit for client in request.clients), request
            assert len(set(request.clients)) == len(request.clients), f"a client twice: {request}"

    def test_what_a_client_sends_is_json(self) -> None:
        """Check that an observation is JSON of finite numbers, over the client's examples, and repeatable."""
        one, again = (self._observed(3) for _ in range(2))
        json.dumps(dict(one.info), allow_nan=False)
        assert one == again, "the same client sends another observation the second time"
        size = self.shard(3).num_examples
        assert one.num_examples == size, f"num_examples is {one.num_examples}, the shard has {size}"

    def test_a_reading_follows_from_the_reports(self) -> None:
        """Check that `read` is pure, and that its result is JSON with finite metrics."""
        clients = self.build().request(CLIENTS, generator(1, "request")).clients
        one, again = (self._read(clients, ()) for _ in range(2))
        assert one == again, "the same reports give another reading the second time"
        json.dumps(dict(one.info), allow_nan=False)
        assert all(np.isfinite(value) for value in one.metrics.values()), f"metrics {one.metrics}"

    def test_it_continues_from_what_is_in_the_records(self) -> None:
        """Check that earlier readings restored from JSON give the same next reading."""
        clients = self.build().request(CLIENTS, generator(1, "request")).clients
        earlier: list[Info] = []
        for _ in range(3):
            earlier.append(self._read(clients, earlier).info)
        crossed = [json.loads(json.dumps(dict(info))) for info in earlier]
        assert self._read(clients, crossed) == self._read(clients, earlier), "JSON changes the next reading"

    def test_missing_clients_are_no_trouble(self) -> None:
        """Check that a reading of one report, or of none, does not raise."""
        clients = self.build().request(CLIENTS, generator(1, "request")).clients
        for left in (clients[:1], ()):
            json.dumps(dict(self._read(left, ()).info))

    def test_it_explains_itself(self) -> None:
        """Check that the docstring's first line is a sentence, and that every setting has a description."""
        assert_explained(Kind.MONITOR, self.name)

    def _settings(self) -> PluginSettings:
        return plugin_schema(Kind.MONITOR, self.name).model_validate({**self.settings, "name": self.name})

    def _observed(self, client: int) -> Observation:
        watch, workload = self.watch(), self.workload()
        watch.check(workload)
        return watch(workload, {MODEL: model_record()}, self.shard(client), generator(1, "watch", client))

    def _read(self, clients: Sequence[int], earlier: Sequence[Info]) -> MonitorReading:
        reports = []
        for client in clients:
            seen = self._observed(client)
            reports.append(
                ClientReport(
                    client=client, num_examples=seen.num_examples, seconds=0.1, metrics=seen.metrics, info=seen.info
                )
            )
        return self.build().read(reports, earlier)

"""Runs a Flower `ClientApp`: jobs as messages, replies as updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedloom.core.config import Experiment
from fedloom.core.errors import BadUpdate, ClientFailed, ConfigError, UnsupportedFeature
from fedloom.core.protocols import Action, LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, Arrays, Info, Job, JsonObject, Mean, Metrics, Record, Update
from fedloom.strategies.flower import apps, records
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower.messages import KNOB
from fedloom.strategies.flower.seeding import seeded
from fedloom.strategies.flower.workload.config import Config


@dataclass(frozen=True, slots=True)
class AppShard:
    """A client's data as the platform sees it: the app loads its own, so the size is not known here."""

    client: int
    num_examples: int = 0


class FlowerWorkload:
    """A `ClientApp` as a workload.

    Handlers, mods and the lifespan hook run as under Flower, once per message. The global generators of `random`,
    `numpy` and `torch` are seeded from the job's during the call. Exceptions of a handler are not caught.
    """

    keeps_client_state = True

    def __init__(self, app: flwr.ClientApp, config: Config, clients: int) -> None:
        self._app, self._config, self._clients = app, config, clients
        self._encoded: dict[str, tuple[Record, JsonObject]] = {}

    def describe(self) -> WorkloadInfo:
        return WorkloadInfo(data={"name": Path(self._config.app).name, "kind": "app"})

    def init(self, rng: np.random.Generator) -> Record:
        """Return the model of `initial_arrays`, with the global generators seeded from `rng`; empty if not set."""
        if self._config.initial_arrays is None:
            return Record({MODEL: {}})
        make = apps.load_component(Path(self._config.app), self._config.initial_arrays, "workload.initial_arrays")
        with seeded(rng):
            made = make() if callable(make) else make
        return Record({MODEL: _as_arrays(made, self._config.initial_arrays)})

    def shard(self, client: int) -> AppShard:
        return AppShard(client)

    def held_out(self, part: int, parts: int) -> None:
        return None

    def train(
        self,
        job: Job,
        inputs: Mapping[str, Record],
        shard: AppShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
        state: Record | None = None,
    ) -> Update:
        """Pass the job's message to the app; a strategy's rule has no steps to adjust there."""
        return self._message(job, inputs, state, rng)

    def evaluate(self, inputs: Mapping[str, Record], shard: AppShard, state: Record | None = None) -> Metrics:
        raise UnsupportedFeature("a Flower app has no held-out data; it evaluates on its clients (job `evaluate`)")

    @property
    def actions(self) -> Mapping[str, Action]:
        """`evaluate` and `query`, messages to the app like `train`."""
        return {"evaluate": self._message, "query": self._message}

    def _message(
        self, job: Job, inputs: Mapping[str, Record], state: Record | None, rng: np.random.Generator
    ) -> Update:
        """Pass the job's message to the app, which does all of the work.

        A job made from a Flower message (knob `flower`) gives that message back, record by record. Any other gets the
        form Flower's own strategies use: record `arrays` with the model, record `config` with the knobs and
        `server-round`.

        Returns:
            An update with one group for each ArrayRecord of the reply (`model` if there is one), its numbers as
            metrics, the reply's description in `info`, and the client's `Context.state`.

        Raises:
            ClientFailed: the app (or a mod) replied with an error message.
        """
        described = job.knobs.get(KNOB)
        content = self._content(job, inputs) if described is None else self._described(described, inputs)
        group_id = str(job.round) if described is None else described["group_id"]
        message = flwr.instruction(content, job.client, job.kind, group_id, f"{job.round}-{job.client}-{job.kind}")
        context = self._context(job.client, state)
        with seeded(rng), flwr.quiet():
            reply = self._app(message, context)
        if reply.has_error():
            raise ClientFailed(
                f"client {job.client}, round {job.round}, {job.kind}: the app replied with error "
                f"{reply.error.code}: {reply.error.reason}"
            )
        return self._update(reply.content, context, job, plain=described is None, had_state=state is not None)

    def _context(self, client: int, state: Record | None) -> flwr.Context:
        node_config = {"partition-id": client, "num-partitions": self._clients} | dict(self._config.node_config)
        stored = records.join(state.groups, state.info["content"]) if state is not None else flwr.RecordDict()
        return flwr.make_context(flwr.node_id(client), node_config, self._config.run_config, stored)

    def _content(self, job: Job, inputs: Mapping[str, Record]) -> flwr.RecordDict:
        content = flwr.RecordDict()
        for name in job.inputs:
            key = records.ARRAYS if name == MODEL else name
            content[key] = flwr.ArrayRecord(self._arrays(name, inputs[name]))
        knobs = {name: value for name, value in job.knobs.items() if value is not None}
        content[records.CONFIG] = flwr.ConfigRecord({**knobs, "server-round": job.round})
        return content

    def _described(self, described: Info, inputs: Mapping[str, Record]) -> flwr.RecordDict:
        content = flwr.RecordDict()
        for entry in described["content"]:
            if entry["kind"] != "arrays":
                content[entry["name"]] = records.join({}, [entry])[entry["name"]]
            elif "foreign" in entry:
                content[entry["name"]] = records.join_arrays(inputs[entry["group"]].groups.get(MODEL, {}), entry)
            else:
                encoded = self._arrays(entry["group"], inputs[entry["group"]])
                content[entry["name"]] = flwr.ArrayRecord({name: encoded[name] for name in entry["order"]})
        return content

    def _arrays(self, name: str, record: Record) -> JsonObject:
        """Return an input in Flower's encoding, made once for all clients of a group that share it."""
        known = self._encoded.get(name)
        if known is None or known[0] is not record:
            encoded = dict(records.to_array_record(record.groups.get(MODEL, {})).items())
            known = self._encoded[name] = (record, encoded)
        return known[1]

    def _update(
        self, content: flwr.RecordDict, context: flwr.Context, job: Job, *, plain: bool, had_state: bool
    ) -> Update:
        groups, described = records.split(content)
        if len(groups) == 1:
            groups = {MODEL: next(iter(groups.values()))}
            described = [
                entry | {"group": MODEL} if entry["kind"] == "arrays" else entry for entry in map(dict, described)
            ]
        if plain:
            _check_plain(described, job)
        count = self._examples(content)
        if count is None and plain and groups:
            raise BadUpdate(
                f"client {job.client}, round {job.round}: the app's reply has no metric "
                f"{self._config.weighted_by!r}, by which its update is weighted; return it in a MetricRecord, or set "
                "workload.weighted_by"
            )
        weight = float(count) if count is not None else 1.0
        numbers: dict[str, float] = {}
        for record in content.metric_records.values():
            numbers |= records.scalars(record)
        numbers.pop(self._config.weighted_by, None)
        stored_groups, stored = records.split(context.state)
        return Update(
            num_examples=int(count or 0),
            groups=groups,
            metrics={name: Mean(value * weight, weight) for name, value in numbers.items()},
            info={KNOB: {"content": described}},
            state=Record(stored_groups, {"content": stored}) if stored or had_state else None,
        )

    def _examples(self, content: flwr.RecordDict) -> float | None:
        for record in content.metric_records.values():
            value = record.get(self._config.weighted_by)
            if isinstance(value, int | float):
                return value
        return None


def _check_plain(described: list[Info], job: Job) -> None:
    for entry in described:
        if entry.get("foreign"):
            raise BadUpdate(
                f"client {job.client}, round {job.round}: arrays {sorted(entry['foreign'])} of record "
                f"{entry['name']!r} have an encoding or dtype that cannot be averaged; send NumPy arrays of numbers"
            )


def _as_arrays(made: object, source: str) -> Arrays:
    """Whatever an app calls its initial model, as arrays."""
    if hasattr(made, "state_dict"):
        made = made.state_dict()
    if isinstance(made, Mapping) and all(isinstance(value, np.ndarray) for value in made.values()):
        return dict(made)
    try:
        record = made if isinstance(made, flwr.ArrayRecord) else flwr.ArrayRecord(made)
    except TypeError as exc:
        raise ConfigError(
            f"workload.initial_arrays = {source!r} made a {type(made).__name__}: expected a torch module, a state "
            f"dict, NumPy arrays or an ArrayRecord ({exc})"
        ) from exc
    return records.from_array_record(record)


def build_workload(config: Config, experiment: Experiment) -> FlowerWorkload:
    """Return the workload a `Config` describes."""
    app = apps.load_component(Path(config.app), config.clientapp, "workload.clientapp")
    apps.check_component(app, flwr.ClientApp, flwr.is_legacy_client(app), "workload.clientapp", config.clientapp)
    return FlowerWorkload(app, config, experiment.num_clients)

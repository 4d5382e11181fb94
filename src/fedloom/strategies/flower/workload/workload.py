"""Runs a Flower `ClientApp`: jobs as messages, replies as updates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedloom.core.config import Experiment
from fedloom.core.errors import BadUpdate, ClientFailed, ConfigError, UnsupportedFeature
from fedloom.core.protocols import Action, LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, Arrays, Groups, Info, Job, JsonObject, Mean, Metrics, Record, Update
from fedloom.strategies.flower import apps, records
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower.messages import ERROR, KNOB, SITE, TRAIN, category
from fedloom.strategies.flower.own_lines import own_line
from fedloom.strategies.flower.seeding import seeded
from fedloom.strategies.flower.workload.config import Config

_log = logging.getLogger(__name__)
ARRAYS = "arrays"
"""Kind of an ArrayRecord's entry in a description."""
MAX_MESSAGE = 10_000
"""Characters of an app's error that are sent, at most."""


@dataclass(frozen=True, slots=True)
class AppShard:
    """A client's data as the platform sees it: the app loads its own, so the size is not known here."""

    client: int
    num_examples: int = 0


class FlowerWorkload:
    """A `ClientApp` as a workload.

    Handlers, mods and the lifespan hook run as under Flower, once per message. The global generators of `random`,
    `numpy` and `torch` are seeded from the job's during the call. An exception of a handler is a reply where the app
    decides about errors, as under Flower; otherwise it is the client's failure.
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
        """Return the actions that are messages to the app: evaluations, queries, and two of the API before messages."""
        return dict.fromkeys(("evaluate", "query", "get_parameters", "get_properties"), self._message)

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
        context = self._context(job.client, state, described or {})
        app_decides = bool((described or {}).get("app_decides"))
        try:
            with seeded(rng), flwr.quiet():
                reply = self._app(message, context)
        except Exception as exc:
            if not app_decides:
                raise
            reason = f"{own_line(exc, Path(self._config.app))}{type(exc).__name__}: {exc}"
            _log.warning("client %d, round %d, %s: the app raised: %s", job.client, job.round, job.kind, reason)
            _log.debug("its traceback", exc_info=True)
            return _error(flwr.ERROR_CODE, reason)
        if reply.has_error():
            if app_decides:
                return _error(reply.error.code, reply.error.reason or "")
            raise ClientFailed(
                f"client {job.client}, round {job.round}, {job.kind}: the app replied with error "
                f"{reply.error.code}: {reply.error.reason}"
            )
        return self._update(reply.content, context, job, plain=described is None, had_state=state is not None)

    def _context(self, client: int, state: Record | None, described: Info) -> flwr.Context:
        """Return the context of a client. A site has its number from the message, and no partition but its owner's."""
        site, given = described.get(SITE), self._config.node_config
        node_config: dict[str, object] = dict(given[client] if isinstance(given, list) else given)
        if site is None:
            node_config = {"partition-id": client, "num-partitions": self._clients} | node_config
        stored = records.join(state.groups, state.info["content"]) if state is not None else flwr.RecordDict()
        node, run_id = flwr.node_id(client if site is None else site), described.get("run_id", flwr.RUN)
        return flwr.make_context(node, node_config, self._config.run_config, stored, run_id)

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
                blobs = {entry["group"]: inputs[entry["group"]].groups[MODEL]} if "group" in entry else {}
                content[entry["name"]] = records.join(blobs, [entry])[entry["name"]]
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
        if plain:  # a strategy of ours takes arrays alone
            _check_plain(described, job)
            groups = {entry["group"]: groups.get(entry["group"], {}) for entry in described if entry["kind"] == ARRAYS}
        groups, described = _named_as_model(groups, described)
        count = self._examples(content)
        if count is None and plain and groups:
            raise BadUpdate(
                f"client {job.client}, round {job.round}: the app's reply has no metric "
                f"{self._config.weighted_by!r}, by which its update is weighted; return it in a MetricRecord, or set "
                "workload.weighted_by"
            )
        weight = float(count) if count is not None else 1.0
        numbers = self._train_metrics(described, job)
        stored_groups, stored = records.split(context.state)
        return Update(
            num_examples=int(count or 0),
            groups=groups,
            metrics={name: Mean(value * weight, weight) for name, value in numbers.items()},
            info={KNOB: {"content": described}},
            state=Record(stored_groups, {"content": stored}) if stored or had_state else None,
        )

    def _train_metrics(self, described: list[Info], job: Job) -> dict[str, float]:
        """Return the training metrics of a reply; none of an evaluation's or a query's, which are not training.

        Those of a type such as `train.forward` have names such as `forward/loss`.
        """
        if category(job.kind) != TRAIN:
            return {}
        prefix = job.kind.partition(".")[2]
        numbers = records.numbers(described)
        for name in (self._config.weighted_by, *records.WEIGHTS):
            numbers.pop(name, None)
        return {f"{prefix}/{name}" if prefix else name: value for name, value in numbers.items()}

    def _examples(self, content: flwr.RecordDict) -> float | None:
        for record in content.metric_records.values():
            for name in (self._config.weighted_by, *records.WEIGHTS):
                value = record.get(name)
                if isinstance(value, int | float):
                    return value
        return None


def _error(code: int, reason: str) -> Update:
    """Return the update of a client whose app ended with an error."""
    return Update(num_examples=0, groups={}, info={KNOB: {ERROR: {"code": code, "reason": reason[:MAX_MESSAGE]}}})


def _named_as_model(groups: Groups, described: list[Info]) -> tuple[Groups, list[Info]]:
    """Name the arrays of a reply's only ArrayRecord `model`."""
    names = [entry["group"] for entry in described if entry["kind"] == ARRAYS]
    if len(names) != 1:
        return groups, described
    renamed = {MODEL if group == names[0] else group: arrays for group, arrays in groups.items()}
    entries: list[Info] = [{**entry, "group": MODEL} if entry["kind"] == ARRAYS else entry for entry in described]
    return renamed, entries


def _check_plain(described: list[Info], job: Job) -> None:
    for entry in described:
        if entry.get("foreign"):
            raise BadUpdate(
                f"client {job.client}, round {job.round}: arrays {sorted(entry['foreign'])} of record "
                f"{entry['name']!r} have an encoding or dtype that cannot be averaged; send NumPy arrays of numbers"
            )


def _as_arrays(made: object, source: str) -> Arrays:
    """Convert an app's initial model, of any type, to arrays."""
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
    if isinstance(config.node_config, list) and len(config.node_config) != experiment.num_clients:
        raise ConfigError(
            f"workload.node_config: expected one table for each of {experiment.num_clients} clients, got a list of "
            f"{len(config.node_config)}"
        )
    app = apps.load_component(Path(config.app), config.clientapp, "workload.clientapp")
    apps.check_component(app, flwr.ClientApp, "workload.clientapp", config.clientapp)
    return FlowerWorkload(app, config, experiment.num_clients)

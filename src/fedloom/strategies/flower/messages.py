"""Converts Flower messages to jobs, and updates to replies.

A client that runs a Flower app gets the message itself: the knob `flower` describes it (`records.split`), each
distinct ArrayRecord is an input. Any other workload gets the parts it supports: the input `model`, the values of the
message's ConfigRecords as knobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedloom.core.errors import BadUpdate, UnsupportedFeature
from fedloom.core.records import MODEL, Array, Arrays, Exchange, Info, Job, Record, Update
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower import records

KNOB = "flower"
"""The knob, and the key of an update's info, for a message's description."""
_LEGACY = ("fitins", "fitres", "evaluateins", "evaluateres", "getparametersins", "getpropertiesins", "secaggplus")
"""How record names of the API before messages (and of secure aggregation, which exists only there) begin."""


class Batch:
    """Messages that go out together, as one exchange."""

    def __init__(self, messages: Iterable[flwr.Message], clients: Iterable[int]) -> None:
        """Check the messages and put them in the order of `clients`.

        Raises:
            UnsupportedFeature: a message of the older API, two messages to one client, or an unknown node.
        """
        self.messages: dict[int, flwr.Message] = {}
        given = list(messages)
        places = {client: place for place, client in enumerate(clients)}
        for message in given:
            client = flwr.client_of(message.metadata.dst_node_id)
            if client not in places:
                raise UnsupportedFeature(
                    f"a message to node {message.metadata.dst_node_id}, which is not one of this round's; nodes have "
                    "the ids that grid.get_node_ids() returns"
                )
            if client in self.messages:
                raise UnsupportedFeature(
                    f"two messages to node {message.metadata.dst_node_id} in one batch: a client has one job at a "
                    "time. Send them one after the other"
                )
            _refuse_legacy(message)
            self.messages[client] = message
        self.messages = dict(sorted(self.messages.items(), key=lambda item: places[item[0]]))

    @property
    def kinds(self) -> frozenset[str]:
        """Categories of the messages: `train`, `evaluate`, `query`."""
        return frozenset(message.metadata.message_type.split(".")[0] for message in self.messages.values())

    def exchange(self, round_number: int, deadline_s: float | None = None) -> Exchange:
        """Return the jobs for clients that run a Flower app."""
        inputs = _Inputs()
        jobs = []
        for client, message in self.messages.items():
            described, names = inputs.describe(message.content)
            knobs = {KNOB: {"content": described, "group_id": message.metadata.group_id}}
            kind = message.metadata.message_type
            jobs.append(Job(round=round_number, client=client, kind=kind, inputs=names, knobs=knobs))
        return _exchange(jobs, inputs.payloads, deadline_s=deadline_s)

    def plain_exchange(self, round_number: int, model: Arrays) -> Exchange:
        """Return the jobs for clients with a fedloom workload: one model, and the config records' values as knobs.

        Args:
            round_number: the round.
            model: the global model, for the dtypes the workload's arrays have.
        """
        inputs = _Inputs()
        jobs = []
        for client, message in self.messages.items():
            _, names = inputs.describe(message.content)
            if len(names) != 1:
                raise UnsupportedFeature(
                    f"the Flower strategy sends {len(names)} ArrayRecords to client {client}; this workload takes "
                    'one, the model. Use workload.name = "flower"'
                )
            knobs: dict[str, object] = {}
            for record in message.content.config_records.values():
                knobs |= {key: value for key, value in record.items() if not _holds_bytes(value)}
            jobs.append(Job(round=round_number, client=client, inputs=names, knobs=_with_mu(knobs)))
        if len(inputs.payloads) != 1:
            raise UnsupportedFeature(
                "the Flower strategy sends different models to different clients; this workload reads the one "
                'model. Use workload.name = "flower"'
            )
        payload = Record({MODEL: cast_like(inputs.payloads[MODEL].groups[MODEL], model)})
        rules = ("fedprox",) if any("mu" in job.knobs for job in jobs) else ()
        return _exchange(jobs, {MODEL: payload}, rules=rules)

    def replies(self, updates: Sequence[tuple[int, Update]]) -> list[flwr.Message]:
        """Return the updates of clients that run a Flower app as messages; clients without an update are omitted."""
        return [self._reply(client, app_content(update)) for client, update in updates]

    def plain_replies(
        self, updates: Sequence[tuple[int, Update]], weighted_by: str, loss_name: str | None
    ) -> list[flwr.Message]:
        """Return the updates of a fedloom workload in the form of Flower's aggregation rules."""
        return [
            self._reply(client, plain_content(update, client, weighted_by, loss_name)) for client, update in updates
        ]

    def _reply(self, client: int, content: flwr.RecordDict) -> flwr.Message:
        message = flwr.reply(content, self.messages[client])
        flwr.set_message_id(message, f"reply-{client}")
        return message


def app_content(update: Update) -> flwr.RecordDict:
    """Return the RecordDict of an app's client's reply."""
    described = update.info.get(KNOB)
    if described is None:
        raise BadUpdate(
            f"an update without the description of a Flower reply (info {sorted(update.info)}): do the clients run "
            'workload.name = "flower"?'
        )
    return records.join(update.groups, described["content"])


def plain_content(update: Update, client: int, weighted_by: str, loss_name: str | None) -> flwr.RecordDict:
    """Return a fedloom update as a reply: one ArrayRecord, one MetricRecord with the examples under `weighted_by`."""
    metrics: dict[str, int | float] = {name: float(mean.value) for name, mean in update.metrics.items()}
    metrics[weighted_by] = int(update.num_examples)
    if loss_name is not None and loss_name not in metrics:
        if "loss" not in metrics:
            raise BadUpdate(
                f"client {client}: the Flower strategy weights clients by their training loss, metric {loss_name!r} "
                f"or 'loss'; the workload reported {sorted(update.metrics)}"
            )
        metrics[loss_name] = metrics["loss"]
    content = flwr.RecordDict()
    if update.groups:
        if list(update.groups) != [MODEL]:
            raise BadUpdate(f"client {client}: groups {sorted(update.groups)}; a Flower strategy takes one, 'model'")
        content[records.ARRAYS] = records.to_array_record(update.groups[MODEL])
    content["metrics"] = flwr.MetricRecord(metrics)
    return content


def cast_like(arrays: Arrays, model: Arrays) -> dict[str, Array]:
    """Arrays in the dtypes of the model; integers are rounded. Flower's rules widen float32 and integers to float64."""
    return {
        name: _cast(array, model[name]) if name in model and model[name].dtype != array.dtype else array
        for name, array in arrays.items()
    }


def _cast(array: Array, like: Array) -> Array:
    return np.asarray(np.rint(array) if like.dtype.kind in "iu" else array).astype(like.dtype)


class _Inputs:
    """The exchange's inputs: each distinct ArrayRecord once, the first one under `model`."""

    def __init__(self) -> None:
        self.payloads: dict[str, Record] = {}
        self._seen: dict[int, tuple[flwr.ArrayRecord, str, Info]] = {}

    def describe(self, content: flwr.RecordDict) -> tuple[list[Info], tuple[str, ...]]:
        """Return a message's description, and the inputs it needs."""
        described: list[Info] = []
        names: list[str] = []
        for key, record in content.items():
            if isinstance(record, flwr.ArrayRecord):
                name, entry = self._payload(record)
                names += [name] if name not in names else []
                described.append(dict(entry) | {"name": key})
            else:
                described += records.split(flwr.RecordDict({key: record}))[1]
        return described, tuple(names)

    def _payload(self, record: flwr.ArrayRecord) -> tuple[str, Info]:
        if id(record) not in self._seen:
            name = MODEL if not self.payloads else f"{MODEL}-{len(self.payloads)}"
            groups, (entry,) = records.split(flwr.RecordDict({name: record}))
            for known, payload in self.payloads.items():  # equal arrays in another object: a copy per message
                if _same(payload.groups[MODEL], groups[name]):
                    name = known
            self.payloads.setdefault(name, Record({MODEL: groups.get(name, {})}))
            entry = dict(entry) | {"group": name}
            self._seen[id(record)] = (record, name, entry)
        _, name, entry = self._seen[id(record)]
        return name, entry


def _exchange(
    jobs: list[Job], inputs: Mapping[str, Record], rules: tuple[str, ...] = (), deadline_s: float | None = None
) -> Exchange:
    """Return an exchange of jobs; knobs they all have are given once."""
    shared = jobs[0].knobs if jobs and all(job.knobs == jobs[0].knobs for job in jobs) else None
    return Exchange(
        jobs=tuple(jobs if shared is None else [replace(job, knobs={}) for job in jobs]),
        inputs=inputs,
        knobs=shared or {},
        accumulator="separate",
        rules=rules,
        updates="accumulator",
        deadline_s=deadline_s,
    )


def _same(left: Arrays, right: Arrays) -> bool:
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def _with_mu(knobs: Info) -> Info:
    """Add fedloom's name of FedProx's coefficient to Flower's, so that the client half of FedProx applies it."""
    return {**knobs, "mu": float(knobs["proximal-mu"])} if "proximal-mu" in knobs else knobs


def _holds_bytes(value: object) -> bool:
    return isinstance(value, bytes) or (isinstance(value, list) and any(isinstance(item, bytes) for item in value))


def _refuse_legacy(message: flwr.Message) -> None:
    for name in message.content if message.has_content() else ():
        if name.split(".")[0].lower().startswith(_LEGACY):
            raise UnsupportedFeature(
                f"a message of Flower's older API (record {name!r}: NumPyClient, workflows, SecAgg and SecAgg+ use "
                "it). Only the message API (ClientApp.train(), ServerApp.main(grid, context)) is hosted"
            )

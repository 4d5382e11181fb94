"""Converts Flower messages to jobs, and updates to replies.

A client that runs a Flower app gets the message itself: the knob `flower` describes it (`records.split`), each
distinct ArrayRecord is an input, and so are the bytes of a ConfigRecord. Any other workload gets the parts it supports:
the input `model`, the values of the message's ConfigRecords as knobs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedloom.core.errors import BadUpdate, UnsupportedFeature
from fedloom.core.records import MODEL, Array, Arrays, Exchange, Info, Job, Record, Update
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower import records

KNOB = "flower"
"""The knob, and the key of an update's info, for a message's description."""
TRAIN, EVALUATE, QUERY = "train", "evaluate", "query"
"""Categories of messages; a type such as `train.forward` belongs to the first."""
SITE = "site"
"""Key of a message's description: the client's number, where clients are sites, which do not know their own."""
ERROR = "error"
"""Key of a reply's description if the client's app raised: its code and reason."""
_NO_REPLY = "the client sent no reply: it failed outside the app, or was too late; the log of the run says which"


class Batch:
    """Messages that go out together, as one exchange."""

    def __init__(self, messages: Iterable[flwr.Message], clients: Iterable[int]) -> None:
        """Check the messages and put them in the order of `clients`.

        Raises:
            UnsupportedFeature: two messages to one client (see `waves`), or an unknown node.
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
                raise UnsupportedFeature(f"two messages to node {message.metadata.dst_node_id} in one exchange")
            self.messages[client] = message
        self.messages = dict(sorted(self.messages.items(), key=lambda item: places[item[0]]))

    @property
    def kinds(self) -> frozenset[str]:
        """Return the categories of the messages: `train`, `evaluate`, `query`."""
        return frozenset(category(each) for each in self.types)

    @property
    def types(self) -> frozenset[str]:
        """Return the types of the messages, such as `train` and `train.forward`."""
        return frozenset(message.metadata.message_type for message in self.messages.values())

    def exchange(
        self,
        round_number: int,
        deadline_s: float | None = None,
        *,
        run_id: int = flwr.RUN,
        app_decides: bool = False,
        present: Collection[int] | None = None,
    ) -> Exchange:
        """Return the jobs for clients that run a Flower app.

        Args:
            round_number: the round.
            deadline_s: the app's time-out, in seconds.
            run_id: the run's, as the app sees it.
            app_decides: whether an app's error is a reply, and missing replies are the app's own business, as under
                Flower; otherwise each counts as a failure of the round.
            present: sites that are connected; messages to others are not sent. None if clients are not sites.
        """
        inputs = _Inputs()
        jobs = []
        for client, message in self.messages.items():
            if present is not None and client not in present:
                continue
            described, names = inputs.describe(message.content)
            head = {"content": described, "group_id": message.metadata.group_id}
            head |= {} if present is None else {SITE: client}
            knobs = {KNOB: {**head, "run_id": run_id, "app_decides": app_decides}}
            kind = message.metadata.message_type
            jobs.append(Job(round=round_number, client=client, kind=kind, inputs=names, knobs=knobs))
        planned = _exchange(jobs, inputs.payloads, deadline_s=deadline_s)
        return replace(planned, quorum_fraction=0.0) if app_decides else planned

    def plain_exchange(self, round_number: int, model: Arrays) -> Exchange:
        """Return the jobs for clients with a fedloom workload: one model, and the config records' values as knobs.

        Args:
            round_number: the round.
            model: the global model, for the dtypes the workload's arrays have.
        """
        inputs = _Inputs()
        jobs = []
        for client, message in self.messages.items():
            names = inputs.models(message.content)
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

    def replies(self, updates: Sequence[tuple[int, Update]], *, app_decides: bool = False) -> list[flwr.Message]:
        """Return the updates of clients that run a Flower app as messages.

        Clients without an update are omitted, or answer with an error where the app decides about those.
        """
        found = [self._reply(client, app_content(update)) for client, update in updates]
        if app_decides:
            missing = self.messages.keys() - {client for client, _ in updates}
            found += [self._reply(client, flwr.error(flwr.NO_REPLY_CODE, _NO_REPLY)) for client in sorted(missing)]
        return found

    def plain_replies(
        self, updates: Sequence[tuple[int, Update]], weighted_by: str, loss_name: str | None
    ) -> list[flwr.Message]:
        """Return the updates of a fedloom workload in the form of Flower's aggregation rules."""
        return [
            self._reply(client, plain_content(update, client, weighted_by, loss_name)) for client, update in updates
        ]

    def _reply(self, client: int, content: flwr.RecordDict | flwr.Error) -> flwr.Message:
        message = flwr.reply(content, self.messages[client])
        flwr.set_message_id(message, f"reply-{client}")
        return message


def waves(messages: Iterable[flwr.Message], clients: Sequence[int]) -> list[Batch]:
    """Return messages as batches to be exchanged one after another: the second message to a node is in the second."""
    rows: list[list[flwr.Message]] = []
    sent: dict[int, int] = {}
    for message in messages:
        node = message.metadata.dst_node_id
        place = sent[node] = sent.get(node, -1) + 1
        if place == len(rows):
            rows.append([])
        rows[place].append(message)
    return [Batch(row, clients) for row in rows]


def category(message_type: str) -> str:
    """Return the category of a message type: `train` for `train.forward`."""
    return message_type.partition(".")[0]


def app_content(update: Update) -> flwr.RecordDict | flwr.Error:
    """Return the content of an app's client's reply: a RecordDict, or the error its app ended with."""
    described = update.info.get(KNOB)
    if described is None:
        raise BadUpdate(
            f"an update without the description of a Flower reply (info {sorted(update.info)}): do the clients run "
            'workload.name = "flower"?'
        )
    if (error := described.get(ERROR)) is not None:
        return flwr.error(int(error["code"]), str(error["reason"]))
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
    """The exchange's inputs: each distinct set of arrays once, the first one under `model`."""

    def __init__(self) -> None:
        self.payloads: dict[str, Record] = {}
        self._seen: dict[int, tuple[flwr.ArrayRecord, str, Info]] = {}

    def describe(self, content: flwr.RecordDict) -> tuple[list[Info], tuple[str, ...]]:
        """Return a message's description, and the inputs it needs."""
        described: list[Info] = []
        names: list[str] = []
        for key, record in content.items():
            if isinstance(record, flwr.ArrayRecord):
                name, entry = self._arrays(record)
                described.append(dict(entry) | {"name": key})
                names.append(name)
                continue
            groups, (entry,) = records.split(flwr.RecordDict({key: record}))
            if "group" in entry:
                name = self._payload(groups[entry["group"]])
                entry = dict(entry) | {"group": name}
                names.append(name)
            described.append(entry)
        return described, tuple(dict.fromkeys(names))

    def models(self, content: flwr.RecordDict) -> tuple[str, ...]:
        """Return the inputs that a message's ArrayRecords are."""
        found = [self._arrays(record)[0] for record in content.values() if isinstance(record, flwr.ArrayRecord)]
        return tuple(dict.fromkeys(found))

    def _arrays(self, record: flwr.ArrayRecord) -> tuple[str, Info]:
        """Return the input that has an ArrayRecord's arrays, and its description. Equal objects are split once."""
        if id(record) not in self._seen:
            groups, (entry,) = records.split(flwr.RecordDict({MODEL: record}))
            name = self._payload(groups.get(MODEL, {}))
            self._seen[id(record)] = (record, name, dict(entry) | {"group": name})
        _, name, entry = self._seen[id(record)]
        return name, entry

    def _payload(self, arrays: Arrays) -> str:
        """Return the name of the input with these arrays, which may be equal to those of another record."""
        for known, payload in self.payloads.items():
            if _same(payload.groups[MODEL], arrays):
                return known
        name = MODEL if not self.payloads else f"{MODEL}-{len(self.payloads)}"
        self.payloads[name] = Record({MODEL: arrays})
        return name


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

"""Describes every field of every message a node sends: the page on trust is generated from this.

A message or a field that the wire gains needs its words here; one that it has lost must go. Neither can be overlooked:
the messages are found from the services' own descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from fedloom.proto.v1 import enroll_pb2, fleet_pb2

_KEY = "run, round, exchange and number of the group"
_WORDS: Mapping[str, Mapping[str, str]] = {
    "RegisterRequest": {
        "protocol": "version of the wire",
        "node": "the node's name",
        "session": "a random word for this connection",
        "facts_json": "facts about the machine, listed below",
    },
    "FromAgentBatch": {"messages": "results, heartbeats, refusals, verdicts and goodbyes, in order"},
    "FromAgent": {
        "result": "see GroupResult",
        "heartbeat": "see Heartbeat",
        "goodbye": "see Goodbye",
        "refusal": "see Refusal",
        "verdict": "see Verdict",
    },
    "GroupKey": {
        "run_id": "the run's id, as the server gave it",
        "round": "the round's number",
        "exchange": "number of the exchange in the round",
        "index": "number of the group in the exchange",
    },
    "GroupResult": {
        "key": _KEY,
        "total": "the sum of its clients' updates, or each update where the strategy needs them apart; after the "
        "node's `filters`. With `share_local_model = true`, after the last round: the global model trained on its data "
        "alone. For the initial model: the model, and what the workload says about the data, listed below",
        "reports": "one for each client, see Report",
        "failures": "one for each client that failed, see Failure",
        "states": "state of a stateful client for its next job, stored by the server. With `round.state_home = "
        '"node"` it stays in the folder `client-states` of the node\'s identity, and nothing of it is sent',
        "busy_s": "seconds spent on the group",
        "notices": "sentences for the user of the run; without an error's text unless `tracebacks = true`",
    },
    "Payload": {
        "size": "bytes",
        "inline": "the arrays and numbers themselves, where they are small",
        "shared": "empty on a node that has joined: it shares no memory with a server",
        "sha256": "their digest, under which they are uploaded where they are large",
        "pinned": "false in what a node sends",
    },
    "Report": {
        "client": "the client's number",
        "num_examples": "its number of examples; with `withhold.sizes` rounded up, or 1",
        "seconds": "seconds its job took",
        "metrics": "see Metric",
        "info_json": "numbers and texts that the workload, the selection's measure or the monitor's watch reports",
        "bytes_down": "bytes it read",
        "bytes_up": "bytes it sends",
        "params_down": "parameters it read",
        "params_up": "parameters it sends",
        "num_trained": "1 where it trained",
        "num_retrained": "1 where it trained again because its parked update was gone",
    },
    "Metric": {
        "name": "the metric's name",
        "sum": "the sum over the client's examples",
        "weight": "the weight of the sum, such as the number of examples; with `withhold.sizes` scaled like it, or 1",
    },
    "Failure": {
        "client": "the client's number",
        "stage": "stage of the work",
        "error": "the exception's type",
        "message": "its message, only with `tracebacks = true`",
        "traceback": "its traceback, only with `tracebacks = true`",
        "seconds": "seconds until then",
        "bytes_down": "bytes it had read",
    },
    "Heartbeat": {
        "held": "keys of the groups the node has",
        "missing_runs": "ids of runs whose experiment it has not received",
    },
    "Refusal": {
        "key": _KEY,
        "reason": "why, in words: names of allowed workloads, working hours, bytes of today and their limit, SHA-256 "
        "of listed code of the same name, limits of runs and rounds, or the first line that the hook or the approval "
        "command printed",
        "retry_s": "seconds after which asking again may help",
        "kind": "which part of the policy is against it",
    },
    "Verdict": {
        "id": "of the server's question whether the policy allows a run that is being submitted",
        "kind": "which part of the policy is against it; empty if none is",
        "reason": "as in a refusal; of an experiment that cannot be read here the error's type, and its message only "
        "with `tracebacks = true`",
        "retry_s": "seconds after which asking again may help",
    },
    "Goodbye": {"reason": "why the node leaves", "come_back": "false in what a node sends"},
    "DownloadRequest": {"sha256": "digest of what the node needs", "offset": "bytes it has already"},
    "UploadRequest": {
        "sha256": "digest of a sum or state too large for a message, whose bytes follow",
        "size": "its bytes",
        "offset": "bytes the server has already",
    },
    "AuthorityRequest": {},
    "JoinRequest": {
        "protocol": "version of the wire",
        "secret": "the token's secret, once",
        "csr_pem": "a certificate request: the public key",
        "place": "a random word for the folder that the key is in; a copy of the folder has another one",
    },
    "RenewRequest": {
        "csr_pem": "a certificate request with the new public key",
        "place": "as in JoinRequest",
        "only_if_due": "true where the node only asks whether its certificate is due, by the server's clock",
    },
    "ConfirmRequest": {},
}
RAW: Mapping[str, Descriptor] = {
    "Fleet.Download": fleet_pb2.DownloadRequest.DESCRIPTOR,
    "Fleet.Upload": fleet_pb2.UploadRequest.DESCRIPTOR,
}
"""Calls whose messages are raw bytes after the first one."""
_SERVICES = (
    fleet_pb2.DESCRIPTOR.services_by_name["Fleet"],
    enroll_pb2.DESCRIPTOR.services_by_name["Enroll"],
    enroll_pb2.DESCRIPTOR.services_by_name["Credentials"],
)
"""Services that nodes call."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One field of a message that a node sends."""

    message: str
    field: str
    words: str


def sent_fields() -> list[Sent]:
    """Return every field a node sends, messages in the order in which they are met.

    Raises:
        LookupError: a message or field of the wire has no words here, or words are left of one that is gone.
    """
    found = [
        Sent(message.name, field.name, _words(message, field)) for message in _messages() for field in message.fields
    ]
    known = {(name, field) for name, fields in _WORDS.items() for field in fields}
    left = sorted(known - {(sent.message, sent.field) for sent in found})
    if left:
        raise LookupError(f"nodes send no {left}; remove their words from {__file__}")
    return found


def calls() -> list[tuple[str, str]]:
    """Return the calls a node makes, each with the message it sends."""
    listed = [
        (f"{service.name}.{method.name}", method.input_type.name) for service in _SERVICES for method in service.methods
    ]
    return [*listed, *((name, message.name) for name, message in RAW.items())]


def _messages() -> Sequence[Descriptor]:
    """Return the messages nodes send, and those inside them."""
    found: dict[str, Descriptor] = {}

    def walk(message: Descriptor) -> None:
        if message.name not in found:
            found[message.name] = message
            for inner in _inside(message):
                walk(inner)

    for service in _SERVICES:
        for method in service.methods:
            walk(method.input_type)
    for message in RAW.values():
        walk(message)
    return [message for message in found.values() if not message.GetOptions().map_entry]


def _inside(message: Descriptor) -> Iterator[Descriptor]:
    yield from (field.message_type for field in message.fields if field.message_type is not None)


def _words(message: Descriptor, field: FieldDescriptor) -> str:
    words = _WORDS.get(message.name, {}).get(field.name)
    if words is None:
        raise LookupError(
            f"nodes send {message.name}.{field.name}: say what it is in {__file__}, for the page on trust"
        )
    return words

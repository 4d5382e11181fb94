"""A server with certificates of its own that answers every call of people and of machines that join with any words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fedloom.core.identity import Identity, JoinToken, authority_sha256, key_pem, make_key, pem
from fedloom.proto.v1 import control_pb2, enroll_pb2, results_pb2
from fedloom.server.access.authority import Authority

SERVICES = [
    service
    for module in (control_pb2, results_pb2, enroll_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]
STREAMS = ("Watch", "Logs", "Fetch")


class Lies:
    """The server.

    Args:
        folder: for its authority, and for identities.
        words: what it says wherever it may say a text.
    """

    def __init__(self, folder: Path, words: str) -> None:
        self._folder, self._words = folder, words
        self.authority = Authority.open(folder / "authority")
        self.join: Callable[[enroll_pb2.JoinRequest], enroll_pb2.JoinReply] = self.admitted
        self.renew: Callable[[enroll_pb2.RenewRequest], enroll_pb2.RenewReply] = lambda request: enroll_pb2.RenewReply()
        self._server = grpc.server(ThreadPoolExecutor(4))
        for service in SERVICES:
            handlers = {method.name: self._handler(service.name, method) for method in service.methods}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
        pair = [self.authority.server_pair()]
        self.port = self._server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials(pair, self.authority.certificate_pem, True)
        )
        self.join_port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
        self._server.start()

    def token(self) -> str:
        """Return a token for joining it."""
        digest = authority_sha256(self.authority.certificate_pem)
        return JoinToken(address=f"127.0.0.1:{self.join_port}", authority_sha256=digest, secret="s").encode()

    def identity(self, role: str) -> Identity:
        """Return a saved identity of a member."""
        key = make_key()
        made = Identity(
            folder=self._folder / role, name=role, role=role, address=f"127.0.0.1:{self.port}", key=key_pem(key),
            certificate=pem(self.authority.sign_key(key.public_key(), role, role, 86400.0)),
            authority=self.authority.certificate_pem,
        )  # fmt: skip
        made.save()
        return made

    def admitted(self, request: enroll_pb2.JoinRequest, name: str = "n", role: str = "node") -> enroll_pb2.JoinReply:
        """Return what a member is answered, with any name and role beside a sound certificate."""
        signed = self.authority.sign_request(request.csr_pem, "n", "node", 600.0)
        return enroll_pb2.JoinReply(name=name, role=role, certificate_pem=pem(signed).decode(), port=self.port)

    def close(self) -> None:
        """End it."""
        self._server.stop(None)

    def _handler(self, service: str, method: Any) -> grpc.RpcMethodHandler[Any, Any]:
        read, write = GetMessageClass(method.input_type).FromString, GetMessageClass(method.output_type)
        if method.name in STREAMS:

            def several(request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
                yield from self._stream(method.name, write)

            return grpc.unary_stream_rpc_method_handler(several, read, write.SerializeToString)

        def one(request: Any, context: grpc.ServicerContext) -> Message:
            if service == "Enroll":
                known = enroll_pb2.AuthorityReply(certificate_pem=self.authority.certificate_pem.decode())
                return known if method.name == "Authority" else self.join(request)
            if method.name == "Renew":
                return self.renew(request)
            reply: Message = self._filled(write())
            return reply

        return grpc.unary_unary_rpc_method_handler(one, read, write.SerializeToString)

    def _stream(self, name: str, kind: Any) -> Iterator[Message]:
        if name == "Fetch":
            yield kind(data=b"x")
            return
        words = self._words
        failure = {"client": 1, "round": 1, "stage": words, "error": words, "message": words, "traceback": words,
                   "node": words}  # fmt: skip
        for event in (
            {"event": "Notice", "run_id": words, "message": words},
            {"event": "ClientLost", "run_id": words, "failure": failure},
            {"event": "NodeChanged", "node": words, "state": "lost", "reason": words},
            {"event": "NodeRefused", "run_id": words, "node": words, "kind": words, "round": 1, "reason": words},
        ):
            yield kind(event_json=json.dumps({"at": words, **event}))

    def _filled(self, message: Any) -> Any:
        """Fill every text of a reply, at any depth."""
        for field in message.DESCRIPTOR.fields:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                getattr(message, field.name)["key"] = self._words
            elif field.message_type is not None:
                inner = getattr(message, field.name)
                self._filled(inner.add() if field.is_repeated else inner)
            elif field.type == field.TYPE_STRING:
                json_text = json.dumps({"event": self._words, "who": self._words, "host": self._words})
                text = json_text if field.name in ("facts_json", "lines") else self._words
                if field.is_repeated:
                    getattr(message, field.name).append(text)
                else:
                    setattr(message, field.name, text)
            elif not field.is_repeated:
                setattr(message, field.name, 1)
        return message

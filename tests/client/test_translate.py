"""Statuses of the wire and errors of the catalogue, both ways."""

from __future__ import annotations

import grpc
import pytest

from fedloom.client.grpc_channel import GrpcChannel
from fedloom.client.link import translate
from fedloom.core.errors import (
    BadMessage,
    FedloomError,
    Forbidden,
    LimitExceeded,
    NotFound,
    RunExists,
    ServerUnreachable,
    Unauthenticated,
    catalogue,
)
from fedloom.core.messages import Hello

WANT = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: RunExists,
    grpc.StatusCode.INVALID_ARGUMENT: BadMessage,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
}


class Refused(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str = "because") -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize("kind", catalogue(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_of_grpc(kind: type[FedloomError]) -> None:
    assert grpc.StatusCode[kind.status]


@pytest.mark.parametrize("code", grpc.StatusCode, ids=lambda code: code.name)
def test_every_status_is_an_error_that_names_the_server_and_the_reason(code: grpc.StatusCode) -> None:
    error = translate(Refused(code), "10.0.0.1:7")
    assert type(error) is WANT.get(code, ServerUnreachable)
    assert "10.0.0.1:7" in str(error) and "because" in str(error)


def test_a_refusal_goes_out_and_comes_back_as_the_same_kind() -> None:
    for kind in (Unauthenticated, Forbidden, NotFound, BadMessage, LimitExceeded, ServerUnreachable):
        assert type(translate(Refused(grpc.StatusCode[kind.status]), "s")) is kind


def test_an_error_without_a_code_counts_as_unreachable() -> None:
    assert isinstance(translate(grpc.RpcError("odd"), "s"), ServerUnreachable)


def test_nobody_listening_is_said_with_the_address() -> None:
    channel = GrpcChannel("127.0.0.1:9", connect_s=0.2)
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:9"):
        channel.open(Hello(node="a", session="b"))
    channel.close()

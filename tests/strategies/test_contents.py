"""An exchange declares which arrays its updates contain: compared with what made-up clients send, over two rounds."""

import pytest
from made_up_clients import COMMON, VARIANTS, Federation

from fedloom.client.update_check import check_update
from fedloom.core import registry
from fedloom.core.messages import Group, GroupKey
from fedloom.core.records import MODEL, Exchange, Job, Record, Update
from fedloom.testing.federation import declared_arrays, initial_model

SECOND = Record({**initial_model().groups, "second": dict(initial_model().groups[MODEL])}, initial_model().info)
CASES = [(name, settings) for name in registry.names("strategies") for settings in VARIANTS.get(name, [{}])]
OPEN = {"flower", "meat", "partial"}
"""Strategies of whose updates something is not known beforehand: Flower's own, whether clients keep an average, and
which arrays a client has trained."""


def check(federation: Federation) -> None:
    federation.run(2)
    for exchange, job, update in federation.answers:
        declared = declared_arrays(exchange)
        sent = {group: set(arrays) for group, arrays in update.groups.items()}
        assert declared is None or sent == declared, (job.round, job.kind)
        if job.kind == "train":
            check_on_client(exchange, job, update)


def check_on_client(exchange: Exchange, job: Job, update: Update) -> None:
    """As the client itself checks what it is about to send."""
    group = Group(key=GroupKey("run", job.round, 0, 0), jobs=(job,), updates=exchange.updates)
    check_update(update, group, job.client, lambda: exchange.inputs)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_updates_contain_what_their_exchange_declares(name: str, settings: dict[str, object]) -> None:
    if name == "flower_app":
        pytest.skip("its exchanges are an app's messages, which only the app's clients can answer")
    if name == "forgetting":
        pytest.skip("its clients do more than train: tests/strategies/forgetting")
    federation = Federation(name, settings)
    check(federation)
    undeclared = {(job.round, job.kind) for exchange, job, _ in federation.answers if declared_arrays(exchange) is None}
    assert undeclared <= ({(1, "train"), (2, "train"), (1, "statistics"), (2, "statistics")} if name in OPEN else set())


@pytest.mark.parametrize("wire", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", [*COMMON])
def test_packed_updates_contain_what_their_exchange_declares(name: str, wire: str) -> None:
    federation = Federation(name, {"wire": wire})
    check(federation)
    assert any("scales" in group for _, _, update in federation.answers for group in update.groups) == (wire == "int8")


def test_a_second_model_is_declared() -> None:
    federation = Federation("mano", {}, SECOND)
    check(federation)
    assert {tuple(update.groups) for _, _, update in federation.answers} == {(MODEL, "second")}


def test_only_the_first_round_leaves_open_whether_clients_keep_an_average() -> None:
    federation = Federation("meat", {})
    state = federation.round(federation.strategy.init(federation.model), 1)
    exchange = federation.strategy.plan(state, federation.context(2))
    assert exchange is not None and declared_arrays(exchange) == {MODEL: set(federation.model.groups[MODEL])}


def test_what_is_declared_differs_from_what_an_odd_client_sends() -> None:
    federation = Federation("fedlora", {})
    odd = Update(num_examples=1, groups={MODEL: federation.model.groups[MODEL]})
    exchange = federation.strategy.plan(federation.strategy.init(federation.model), federation.context(1))
    assert exchange is not None
    federation.answers.append((exchange, exchange.jobs[0], odd))
    with pytest.raises(AssertionError):
        check(federation)

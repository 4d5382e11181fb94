"""A message counts only from the node it was asked of: results, claims, requests for runs, uploads, downloads.

A run belongs to a member, not to a name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from members import Members, members

from fedloom.client.control import ControlClient
from fedloom.client.enroll import join
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.config import Experiment
from fedloom.core.errors import Forbidden, NotFound, ServerUnreachable
from fedloom.core.identity import Identity
from fedloom.core.messages import (
    Ack,
    FromAgent,
    Goodbye,
    Group,
    GroupKey,
    GroupResult,
    Heartbeat,
    Hello,
    PayloadRef,
    Refusal,
    RunSpec,
)
from fedloom.core.records import ClientFailure
from fedloom.server.fleet.choosing import MAX_ASSIGNED
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.fleet.planned import RunFacts
from fedloom.simulation.in_process import InProcessChannel
from fedloom.testing.by_hand import (
    ManualAgent,
    group_result,
    next_answer,
    open_exchange,
    planned_groups,
    run_spec,
    sum_of_one,
)
from fedloom.testing.fleet import wait_until
from fedloom.testing.records import model_record

Make = Callable[..., Experiment]
SITE = {"site": "b"}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Members]:
    with members(tmp_path, by_labels=True) as fleet:
        yield fleet


@contextlib.contextmanager
def node(fleet: Members, name: str, site: str) -> Iterator[ManualAgent]:
    """A member moved by hand."""
    token = fleet.token(name, role="node", labels={"site": site})
    identity = join(token, fleet.folder / "identities" / f"{name}-at-{site}")
    hand = ManualAgent(GrpcChannel(fleet.address, identity=lambda: identity), name)
    hand.start()
    wait_until(lambda: fleet.server.coordinator.nodes()[name].online)
    try:
        yield hand
    finally:
        hand.channel.close()


def send(hand: ManualAgent, name: GroupKey, client: int) -> None:
    """Send a sound result."""
    hand.channel.send(group_result(name, client, total=hand.store(sum_of_one(client))))


def key(group: int, round: int = 1) -> GroupKey:
    return GroupKey("run", round, 0, group)


class TestOverTheNetwork:
    def test_no_result_counts_that_was_assigned_to_another(self, fleet: Members) -> None:
        with node(fleet, "evil", "e") as evil, node(fleet, "good", "b") as good:
            groups = planned_groups(1.0, 1.0)
            with open_exchange(fleet.server.coordinator, groups, labels=SITE) as opened:
                given = good.take(Group)[0].key
                for group in (0, 1, 2, 4_000_000_000):
                    send(evil, key(group), min(group, 1))
                acks = evil.take(Ack, 4)
                assert {ack.status for ack in acks} == {"rejected"}
                assert all("was not assigned to node 'evil'" in ack.message for ack in acks)
                assert opened.answers.empty() and not opened.done and not opened.refusals and not opened.duplicates
                send(good, given, given.group)
                assert next_answer(opened).node == "good"

    def test_no_run_is_announced_to_a_node_it_is_not_for(self, fleet: Members) -> None:
        with node(fleet, "evil", "e") as evil, node(fleet, "good", "b") as good:
            coordinator = fleet.server.coordinator
            coordinator.announce(RunFacts(spec=run_spec("announced"), labels=SITE))
            assert good.take(RunSpec)[0].run_id == "announced"
            with open_exchange(coordinator, planned_groups(1.0), labels=SITE):
                evil.channel.send(Heartbeat(missing_runs=("run", "announced")))
                good.take(Group)
                assert not [message for message in evil.drain() if not isinstance(message, Ack)]

    def test_a_claim_takes_no_group_from_anybody(self, fleet: Members) -> None:
        with (
            node(fleet, "evil", "e") as evil,
            node(fleet, "good", "b") as good,
            open_exchange(fleet.server.coordinator, planned_groups(*[1.0] * 40), labels=SITE) as opened,
        ):
            evil.channel.send(Heartbeat(groups=tuple(key(group) for group in range(40))))
            assert {ack.status for ack in evil.take(Ack, 40)} == {"stale"}
            for count in range(40):
                group = good.take(Group, count + 1)[count]
                send(good, group.key, group.jobs[0].client)
            assert {next_answer(opened).node for _ in range(40)} == {"good"}

    def test_no_payload_goes_to_or_comes_from_who_has_no_group(self, fleet: Members) -> None:
        model = {"model": model_record(100_000)}
        with (
            node(fleet, "evil", "e") as evil,
            node(fleet, "good", "b") as good,
            open_exchange(fleet.server.coordinator, planned_groups(1.0), labels=SITE, inputs=model),
        ):
            ref = good.take(Group)[0].inputs["model"]
            assert ref.sha256 and good.channel.fetch(ref).num_elements == 100_000
            with pytest.raises(NotFound, match="no group of node 'evil' reads"):
                evil.channel.fetch(ref)
            with pytest.raises(ServerUnreachable):
                evil.channel.store(model["model"], "run")
            assert not fleet.server.payloads._uploads
            assert good.channel.store(model["model"], "run").sha256

    def test_whoever_gets_a_revoked_nodes_name_inherits_none_of_its_groups(self, fleet: Members) -> None:
        with open_exchange(fleet.server.coordinator, planned_groups(1.0), labels=SITE) as opened:
            with node(fleet, "n1", "b") as old:
                given = old.take(Group)[0].key
                fleet.revoke("n1")
            with node(fleet, "n1", "e") as new:
                send(new, given, 0)
                assert new.take(Ack)[0].status == "rejected" and not opened.done


class TestOwners:
    def test_a_name_that_is_given_again_inherits_no_runs(self, fleet: Members, linear: Make) -> None:
        first = fleet.joined("ann", "user")
        with ControlClient(fleet.address, identity=first) as control:
            run_id = control.submit(linear(rounds=1, workload={"name": "image_classification"}))
        fleet.revoke("ann")
        second = self._joined_again(fleet, "ann")
        with ControlClient(fleet.address, identity=second) as control:
            assert control.runs() == []
            for call in (lambda: list(control.watch(run_id)), lambda: control.stop(run_id)):
                with pytest.raises(Forbidden, match="does not belong to 'ann'"):
                    call()
        with ControlClient(fleet.address, identity=fleet.admin) as control:
            assert [(row.run_id, row.owner) for row in control.runs()] == [(run_id, "ann")]

    def test_a_refusal_does_not_name_the_owner(self, fleet: Members, linear: Make) -> None:
        with ControlClient(fleet.address, identity=fleet.joined("ann-of-the-board", "user")) as control:
            run_id = control.submit(linear(rounds=1, workload={"name": "image_classification"}))
        with ControlClient(fleet.address, identity=fleet.joined("bob", "user")) as control:
            for call in (lambda: list(control.watch(run_id)), lambda: control.stop(run_id)):
                with pytest.raises(Forbidden) as caught:
                    call()
                assert "ann" not in str(caught.value)

    def _joined_again(self, fleet: Members, name: str) -> Identity:
        return join(fleet.token(name, role="user"), fleet.folder / "identities" / f"{name}-again")


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    coordinator = Coordinator(PayloadStore(None), heartbeat_s=60.0, grace_s=60.0, lost_after_s=60.0, by_labels=True)
    yield coordinator
    coordinator.close()


class TestAfterARestart:
    """A server that was restarted does not know what the one before it assigned."""

    def _claims(self, coordinator: Coordinator, site: str, *groups: int) -> tuple[ManualAgent, list[GroupKey]]:
        hand = ManualAgent(InProcessChannel(coordinator), "n")
        hand.open()
        coordinator.label("n", {"site": site})
        hand.channel.send(Heartbeat(groups=tuple(key(group) for group in groups)))
        return hand, sorted(coordinator.nodes()["n"].assigned)

    def test_a_nodes_first_claim_stands_for_as_many_groups_as_it_would_be_assigned(
        self, coordinator: Coordinator
    ) -> None:
        with open_exchange(coordinator, planned_groups(*[1.0] * 9), labels=SITE) as opened:
            hand, held = self._claims(coordinator, "b", 8, 7, 6, 5, 4)
            assert held == [key(4), key(5), key(6)] and len(held) == MAX_ASSIGNED
            hand.channel.send(group_result(key(6), 6))
            assert next_answer(opened).index == 6

    def test_but_only_for_a_node_the_run_is_for(self, coordinator: Coordinator) -> None:
        with open_exchange(coordinator, planned_groups(*[1.0] * 9), labels=SITE) as opened:
            assert self._claims(coordinator, "e", 8, 7)[1] == [] and len(opened.pending) == 9

    def test_and_only_once(self, coordinator: Coordinator) -> None:
        hand, _ = self._claims(coordinator, "b")
        with open_exchange(coordinator, planned_groups(*[1.0] * 9), labels=SITE):
            before = sorted(coordinator.nodes()["n"].assigned)
            hand.start()
            hand.channel.send(Heartbeat(groups=(*before, key(8))))
            assert key(8) not in coordinator.nodes()["n"].assigned


KEYS = st.builds(
    GroupKey,
    st.sampled_from(["run", "other"]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([0, 1]),
    st.sampled_from([0, 1, 2, 3, 2**32 - 1]),
)
FAILURE = ClientFailure(client=0, round=1, stage="load", error="OSError", message="x")
MESSAGES = st.one_of(
    st.builds(lambda name: group_result(name, name.group % 4), KEYS),
    st.builds(lambda name: GroupResult(key=name, total=None, failures=(FAILURE,)), KEYS),
    st.builds(
        lambda name: group_result(name, 0, states={0: PayloadRef(size=1, record=sum_of_one(0))}, busy_s=1e308), KEYS
    ),
    st.builds(
        lambda held, runs: Heartbeat(groups=tuple(held), missing_runs=tuple(runs)),
        st.lists(KEYS, max_size=5),
        st.lists(st.sampled_from(["run", "other"]), max_size=2),
    ),
    st.builds(lambda name, retry: Refusal(key=name, kind="hours", reason="no", retry_s=retry), KEYS, st.floats()),
    st.builds(Goodbye),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(MESSAGES, max_size=12))
def test_whatever_a_stranger_to_a_run_says_changes_nothing_in_it(
    coordinator: Coordinator, messages: list[FromAgent]
) -> None:
    """Of two nodes the run is for one; the other says anything, in any order."""
    good = ManualAgent(InProcessChannel(coordinator), "good")
    good.open()
    coordinator.label("good", SITE)
    good.channel.send(Heartbeat())
    with open_exchange(coordinator, planned_groups(1.0, 1.0, 1.0, 1.0), labels=SITE) as opened:

        def state() -> object:
            held = {name: sorted(known.assigned) for name, known in coordinator.nodes().items()}
            return held, list(opened.pending), set(opened.done), dict(opened.refusals), opened.duplicates

        coordinator.register(Hello(node="evil", session="s"), "remote", {"site": "e"})
        coordinator.attach("evil", "s")
        before = state()
        for message in messages:
            if coordinator.nodes()["evil"].online:
                coordinator.receive("evil", "s", message)
        assert state() == before and opened.answers.empty()
        reported = coordinator.nodes()["evil"].announced_runs
        assert not reported, json.dumps(sorted(reported))
    assert coordinator.take_stale("run") == 0
    coordinator.leave("good", "", "the test is over")

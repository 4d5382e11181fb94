"""Mutated frames, uploads, requests and names straight into the plain functions behind the services: refused or taken,
never broken."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.fuzz import csr
from benchmarks.fuzz.certificates import excess
from benchmarks.fuzz.disclosure import fuzz_disclosure
from benchmarks.fuzz.settings import CANARY, SettingsFuzz
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedloom.core import frames
from fedloom.core.errors import (
    BadFrame,
    BadMessage,
    FedloomError,
    LimitExceeded,
    NotFound,
    RunExists,
    Unauthenticated,
)
from fedloom.core.identity import ROLES, make_key, pem
from fedloom.core.messages import Ack, Group, Heartbeat, PayloadRef
from fedloom.core.seeds import generator
from fedloom.server.access.authority import Authority
from fedloom.server.access.members import Registry
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.simulation.in_process import InProcessChannel
from fedloom.testing.by_hand import ManualAgent, group_result, next_answer, open_exchange, planned_groups, sum_of_one
from fedloom.testing.records import assert_same_record, records_of_every_dtype

SUM = bytes(frames.encode(sum_of_one(0)))
FRAMES = [SUM, *(bytes(frames.encode(record)) for record in records_of_every_dtype(200))]
fast = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A sound frame with bytes flipped, cut out, put in, or with a part of another one."""
    frame = bytearray(draw(st.sampled_from(FRAMES)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        match draw(st.sampled_from(["flip", "cut", "insert", "truncate", "splice"])):
            case "flip" if at < len(frame):
                frame[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del frame[at : at + draw(st.integers(1, 40))]
            case "insert":
                frame[at:at] = draw(st.binary(min_size=1, max_size=20))
            case "truncate":
                del frame[at:]
            case "splice":
                other = draw(st.sampled_from(FRAMES))
                frame[at:] = other[draw(st.integers(0, len(other))) :]
            case _:
                pass
    return bytes(frame)


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    coordinator = Coordinator(PayloadStore(None), heartbeat_s=5.0)
    yield coordinator
    coordinator.close()


@fast
@given(mutated())
def test_a_mutated_sum_is_refused_or_a_sound_frame(coordinator: Coordinator, frame: bytes) -> None:
    hand = ManualAgent(InProcessChannel(coordinator), "n")
    hand.open()
    hand.channel.send(Heartbeat())
    with open_exchange(coordinator, planned_groups(1.0)) as opened:
        key = hand.take(Group)[0].key
        hand.channel.send(group_result(key, 0, total=PayloadRef(size=len(frame), inline=frame or b"\0")))
        (ack,) = hand.take(Ack)
        if ack.status == "accepted":
            total = next_answer(opened).total
            assert total is not None
            assert_same_record(total, frames.decode(frame))
        else:
            assert ack.status == "rejected" and ack.message
            assert opened.answers.empty() and not opened.done


@fast
@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=4), st.integers(-3, 3), st.booleans())
def test_any_cutting_of_an_upload_gives_the_frame_or_an_error(
    data: bytes, cuts: list[int], wrong: int, flip: bool
) -> None:
    store = PayloadStore(None, max_payload_bytes=2900)
    digest = hashlib.sha256(data).hexdigest()
    sent = bytearray(data)
    if flip and sent:
        sent[0] ^= 1
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    chunks = [bytes(sent[start:end]) for start, end in itertools.pairwise(edges)]
    size = max(0, len(data) + wrong)
    try:
        received = store.upload("n", digest, size, 0, chunks)
    except FedloomError as exc:
        assert isinstance(exc, BadFrame | BadMessage | LimitExceeded)
        assert not any(upload.complete for upload in store._uploads.values())
    else:
        if received == size:
            assert bytes(store._uploads["n", digest].data) == data
        else:
            assert wrong > 0 and received == len(data)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.open(tmp_path_factory.mktemp("authority"))


@fast
@given(st.integers(0, 2**32 - 1))
def test_a_strange_request_is_refused_or_signed_for_its_key_alone(authority: Authority, seed: int) -> None:
    own = x509.load_pem_x509_certificate(authority.certificate_pem)
    text = csr.strange(own, generator(seed, "requests"))
    try:
        signed = authority.sign_request(text, "of-the-token", "node", 60.0)
    except BadMessage:
        assert not csr.is_sound(text)
    else:
        key = x509.load_pem_x509_csr(text.encode()).public_key()
        assert csr.is_sound(text) and not excess(pem(signed).decode(), "of-the-token", "node", key, own)


@pytest.mark.parametrize("what", ["its subject", "its key", "an authority's right", "its other name", "its end"])
def test_what_a_token_did_not_give_is_seen(authority: Authority, what: str) -> None:
    """The oracle of the test above, on certificates that have too much."""
    own = x509.load_pem_x509_certificate(authority.certificate_pem)
    key, name, role = make_key().public_key(), "n", "node"
    signed = authority.sign_key(key, name, role, 60.0)
    match what:
        case "its subject":
            name = "other"
        case "its key":
            key = make_key().public_key()
        case "an authority's right":
            signed = own
        case "its other name":
            role = "admin"
        case _:
            signed = authority.sign_key(key, name, role, 31 * 86400.0)
    assert what in excess(pem(signed).decode(), name, role, key, own)


texts = st.text(max_size=80) | st.sampled_from(["..", "a/b", "\0", "x" * 64, "x" * 65, "x" * 5000, "node", "é"])
numbers = st.floats() | st.sampled_from([-1.0, 0.0, 5e-324, 60.0, 2592000.0, 2592001.0, 1e308])


@fast
@given(texts, texts, st.dictionaries(texts, texts, max_size=20), numbers, st.integers(-1, 2**64), st.lists(texts))
def test_the_registry_refuses_or_keeps_what_can_be_read_again(
    registry: Registry, name: str, role: str, labels: dict[str, str], ttl_s: float, uses: int, remove: list[str]
) -> None:
    with contextlib.suppress(BadMessage, RunExists):
        registry.create_token(name, role, labels, ttl_s, uses)
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) and role in ROLES and 1 <= uses <= 10_000
    with contextlib.suppress(BadMessage, NotFound):
        registry.label(name, labels, remove)
    with contextlib.suppress(BadMessage):
        assert registry.label("member", labels, remove).items() >= labels.items()
    with contextlib.suppress(NotFound):
        registry.revoke(name)
        assert name != "member"
    with pytest.raises(Unauthenticated):
        registry.join(name, lambda name, role: pytest.fail("a name is no secret"))
    with contextlib.closing(Registry(_file(registry))) as again:
        (member,) = again.members()
    assert member.name == "member" and not member.revoked_at and len(member.labels) <= 16


def _file(registry: Registry) -> str:
    return str(registry._database.execute("pragma database_list").fetchone()[2])


@pytest.fixture(scope="module")
def registry(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with contextlib.closing(Registry(tmp_path_factory.mktemp("registry") / "file.sqlite")) as registry:
        secret = registry.create_token("member", "node", {}, 60.0, 1)
        registry.join(secret, lambda name, role: authority.sign_key(make_key().public_key(), name, role, 60.0))
        yield registry


@pytest.fixture
def settings_fuzz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SettingsFuzz:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "fuzz").mkdir()
    return SettingsFuzz(tmp_path / "fuzz")


def test_no_text_in_any_setting_runs_code_or_leads_out(settings_fuzz: SettingsFuzz) -> None:
    assert settings_fuzz.run(100, seed=7) == []


def test_code_that_runs_and_paths_that_pass_are_seen(
    settings_fuzz: SettingsFuzz, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle of the test above, with checks that let everything by."""
    monkeypatch.setattr("benchmarks.fuzz.settings.check_submission", lambda values, allowed: None)
    monkeypatch.setattr("benchmarks.fuzz.settings.text", lambda rng, extra=(): f"./{CANARY}.py")
    assert any("ran code" in wrong for wrong in settings_fuzz.run(100, seed=7))
    monkeypatch.setattr("benchmarks.fuzz.settings.Guard.admit_experiment", lambda guard, values: values)
    assert any("passes" in wrong for wrong in settings_fuzz.run(100, seed=8))


def test_no_class_leaves_that_the_policy_does_not_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fuzz_disclosure(60, seed=7) == []
    monkeypatch.setattr("benchmarks.fuzz.disclosure.disclosed", lambda info, listed, run_id: info)
    assert fuzz_disclosure(60, seed=7)

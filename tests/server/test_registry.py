"""What the registry keeps, and no more: tokens, members and certificates have an end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from fedloom.core.errors import BadMessage, LimitExceeded, NotFound, Unauthenticated
from fedloom.core.identity import certificate_request, make_key
from fedloom.server.access import member_table as module
from fedloom.server.access import tokens
from fedloom.server.access.authority import Authority
from fedloom.server.access.certificates import MAX_CERTIFICATES, fingerprint_of
from fedloom.server.access.member_names import MAX_NAME, MAX_STEM
from fedloom.server.access.member_table import Member
from fedloom.server.access.members import Registry


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.open(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock) -> Iterator[Registry]:
    made = Registry(tmp_path / "file.sqlite", clock)
    yield made
    made.close()


def certificate(authority: Authority, name: str, role: str = "node") -> x509.Certificate:
    return authority.sign_key(make_key().public_key(), name, role, 1e9)


def joined(registry: Registry, authority: Authority, name: str) -> Member:
    secret = registry.create_token(name, "node", {}, 60.0, 1)
    member, _ = registry.join(secret, lambda name, role: certificate(authority, name, role))
    return member


def kept(registry: Registry, table: str) -> int:
    return int(registry._database.execute(f"select count(*) from {table}").fetchone()[0])


def test_a_name_that_may_be_given_fits_into_a_certificate(registry: Registry, authority: Authority) -> None:
    csr = certificate_request(make_key())

    def sign(name: str, role: str) -> x509.Certificate:
        return authority.sign_request(csr, name, role, 60.0)

    assert joined(registry, authority, "a" * MAX_NAME).name == "a" * MAX_NAME
    secret = registry.create_token("b" * MAX_STEM, "node", {}, 60.0, 10_000)
    registry._database.execute("update tokens set used = 9998 where uses = 10000")
    for number in (9999, 10_000):
        member, _ = registry.join(secret, sign)
        assert member.name == f"{'b' * MAX_STEM}-{number}" and len(member.name) <= MAX_NAME
    with pytest.raises(BadMessage, match=r"name: expected 1 to 56 .* must be shorter, because a number is appended"):
        registry.create_token("b" * (MAX_STEM + 1), "node", {}, 60.0, 2)


def test_tokens_that_may_not_be_spent_any_more_are_forgotten_for_new_ones(
    registry: Registry, authority: Authority, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_TOKENS", 4)
    joined(registry, authority, "one")
    registry.create_token("soon", "node", {}, 5.0, 3)
    registry.create_token("ended", "node", {}, 50.0, 3)
    registry.end_token(registry.tokens()[-1].id)
    later = registry.create_token("later", "node", {}, 50.0, 2)
    assert [token.name for token in registry.tokens()] == ["one", "soon", "ended", "later"]
    clock.now += 6.0
    registry.create_token("last", "node", {}, 5.0, 1)
    assert [token.name for token in registry.tokens()] == ["later", "last"]
    registry.join(later, lambda name, role: certificate(authority, name, role))


def test_there_is_an_end_to_tokens(registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_TOKENS", 3)
    for number in range(3):
        registry.create_token(f"n{number}", "node", {}, 60.0, 1)
    with pytest.raises(LimitExceeded, match="3 join tokens are usable"):
        registry.create_token("more", "node", {}, 60.0, 1)
    clock.now += 61.0
    registry.create_token("more", "node", {}, 60.0, 1)


def test_there_is_an_end_to_members_and_the_longest_revoked_make_room(
    registry: Registry, authority: Authority, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    for name in ("a", "b", "c"):
        joined(registry, authority, name)
    secret = registry.create_token("d", "node", {}, 600.0, 1)
    with pytest.raises(LimitExceeded, match="3 members, the limit; ask an administrator to revoke some"):
        registry.join(secret, lambda name, role: certificate(authority, name, role))
    for name in ("b", "a"):
        clock.now += 1.0
        registry.revoke(name)
    registry.join(secret, lambda name, role: certificate(authority, name, role))
    assert [member.name for member in registry.members()] == ["a", "c", "d"], "the token was not spent in vain"
    joined(registry, authority, "a")  # a name that is known takes no more room
    assert [member.revoked_at for member in registry.members()] == [0.0, 0.0, 0.0]
    assert kept(registry, "certificates") == 4, "those of b are gone, and a has an old and a new one"


def test_renewing_for_ever_keeps_the_newest_and_the_one_that_is_shown(registry: Registry, authority: Authority) -> None:
    shown = joined(registry, authority, "n")
    (first,) = [member.fingerprint for member in registry.members()]
    other = joined(registry, authority, "other")
    fresh = [certificate(authority, "n") for _ in range(3 * MAX_CERTIFICATES)]
    for each in fresh:
        registry.renew(first, each)
    assert kept(registry, "certificates") == MAX_CERTIFICATES + 2, "the one shown, and another member's"
    assert registry.admit(first).name == shown.name
    for each in fresh[-MAX_CERTIFICATES:]:  # each is newer than those before, which it ends
        assert registry.admit(fingerprint_of(each)).name == "n"
    with pytest.raises(Unauthenticated, match="does not know the caller's certificate"):
        registry.admit(fingerprint_of(fresh[0]))
    for old in (first, fingerprint_of(fresh[-2])):
        with pytest.raises(Unauthenticated, match="a newer certificate of 'n' has been used"):
            registry.admit(old)
    with pytest.raises(Unauthenticated, match="a newer certificate"):
        registry.renew(first, certificate(authority, "n"))
    assert other.name == "other"


def test_a_member_revoked_while_it_renews_has_no_certificate_for_whoever_gets_its_name(
    registry: Registry, authority: Authority
) -> None:
    joined(registry, authority, "n")
    (shown,) = [member.fingerprint for member in registry.members()]
    fresh = certificate(authority, "n")  # signed; the registry is told after the revocation
    registry.revoke("n")
    with pytest.raises(Unauthenticated, match="'n' was revoked"):
        registry.renew(shown, fresh)
    joined(registry, authority, "n")
    with pytest.raises(Unauthenticated):
        registry.admit(fingerprint_of(fresh))


@pytest.mark.parametrize("name", ["x" * 20_000, "é" * 5_000, "\0"])
def test_names_nobody_has_are_quoted_in_short(registry: Registry, name: str) -> None:
    for call in (lambda: registry.revoke(name), lambda: registry.label(name, {}, [])):
        with pytest.raises(NotFound, match="list them with `fedloom node list`") as caught:
            call()
        assert len(str(caught.value)) < 500

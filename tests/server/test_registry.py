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


class TestPlaces:
    """Copies of one identity: the original is the place of the oldest certificate in use."""

    @pytest.fixture
    def place(self, registry: Registry, authority: Authority) -> Places:
        return Places(registry, authority)

    def test_a_copys_renewal_ends_nothing_of_the_originals_and_the_originals_ends_the_copys(
        self, registry: Registry, place: Places
    ) -> None:
        first = place.join("here")
        copied = place.renew(first, "there")
        again = place.renew(copied, "there")
        assert place.good(first, copied, again) == [True, False, True], "the original works on with what it has"
        fresh = place.renew(first, "here")
        assert place.good(first, copied, again, fresh) == [False, False, False, True]
        with pytest.raises(Unauthenticated, match="If this is a copy or an old backup of its identity"):
            registry.admit(again)

    def test_a_place_that_has_been_left_makes_way(self, place: Places, clock: Clock) -> None:
        """An identity that was moved to another machine; the certificates here are valid for 60 s."""
        first = place.join("old machine")
        clock.now += 45.0
        moved = place.renew(first, "new machine")
        assert place.good(first, moved) == [True, True]
        clock.now += 20.0
        assert place.good(first, moved) == [False, True], "the first one has expired"
        clock.now += 30.0
        assert place.good(place.renew(moved, "new machine"), moved) == [True, False]

    @pytest.mark.parametrize(("before", "ends"), [("", False), ("here", False), ("there", True)])
    def test_only_the_place_that_a_certificate_is_for_ends_it(self, place: Places, before: str, ends: bool) -> None:
        first = place.join(before)
        assert place.good(place.renew(first, "there"), first) == [True, not ends]

    def test_however_often_a_copy_renews_the_original_is_not_forgotten(self, place: Places) -> None:
        first = place.join("here")
        place.good(first)
        shown = place.renew(first, "copy")
        for number in range(3 * MAX_CERTIFICATES):
            shown = place.renew(shown, f"copy {number}")
        assert place.good(first, shown) == [True, True]


class Places:
    """Certificates of the member `n`, each used as soon as it is there."""

    def __init__(self, registry: Registry, authority: Authority) -> None:
        self._registry, self._authority = registry, authority

    def join(self, place: str) -> str:
        secret = self._registry.create_token("n", "node", {}, 60.0, 1)
        self._registry.join(secret, lambda name, role: certificate(self._authority, name, role), place)
        (member,) = self._registry.members()
        return self._for_a_minute(member.fingerprint)

    def renew(self, shown: str, place: str) -> str:
        fresh = certificate(self._authority, "n")
        self._registry.renew(shown, fresh, place)
        self._registry.admit(fingerprint_of(fresh))
        return self._for_a_minute(fingerprint_of(fresh))

    def _for_a_minute(self, fingerprint: str) -> str:
        self._registry._database.execute(
            "update certificates set expires = issued + 60 where fingerprint = ?", (fingerprint,)
        )
        return fingerprint

    def good(self, *fingerprints: str) -> list[bool]:
        return [self._is_good(fingerprint) for fingerprint in fingerprints]

    def _is_good(self, fingerprint: str) -> bool:
        try:
            return self._registry.admit(fingerprint).name == "n"
        except Unauthenticated:
            return False

"""Who is asking: what is shown decides, nothing else, and whoever guesses is slowed down without harm to others."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaivaultd.api.tokens import RANDOMNESS, TokenText, make_token, parse_token
from scaivaultd.model.errors import RateLimited
from scaivaultd.plugin import Secret
from scaivaultd.services.identifying import ADDRESSES_MAX, Identifying
from scaivaultd.services.policies import LOCAL_ADMINS
from tests.fakes.token_house import House

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.api.tokens import TokenKind
    from scaivaultd.store.sqlite import SqliteStore

OWN_UID = 990
ADMIN_GID = 991
HERE = "192.0.2.1"
STRANGER = make_token(bytes(RANDOMNESS)).reveal()


@pytest.fixture
def house(sqlite: SqliteStore, log: FilteringBoundLogger, logged: list[EventDict]) -> House:
    return House(sqlite=sqlite, log=log, logged=logged)


@pytest.fixture
def identifying(house: House) -> Identifying:
    return Identifying(tokens=house.tokens, own_uid=OWN_UID, admin_gid=ADMIN_GID, clock=house.clock, log=house.log)


def fail(identifying: Identifying, address: str | None, times: int = 1) -> None:
    for _ in range(times):
        assert identifying.by_token(Secret(STRANGER), address) is None


class TestByUid:
    @pytest.mark.parametrize(
        ("uid", "gids", "is_admin"),
        [
            (0, (), True),
            (OWN_UID, (), True),
            (1000, (1000, ADMIN_GID), True),
            (1000, (1000, OWN_UID), False),
            (ADMIN_GID, (100,), False),
            (4294967294, (0,), False),
        ],
    )
    async def test_root_the_daemon_and_the_admin_group_are_administrators(
        self, identifying: Identifying, uid: int, gids: tuple[int, ...], is_admin: bool
    ) -> None:
        """Nobody else is: a uid is no gid, and the group of root is not root."""
        principal = await identifying.identify(token=None, address=None, uid=uid, gids=gids)
        assert principal is not None
        assert str(principal) == f"unix:{uid}"
        assert principal.policies == ((LOCAL_ADMINS,) if is_admin else ())

    def test_without_an_admin_group_nobody_is_in_it(self, house: House) -> None:
        """A group that is missing on this host must not let anybody in."""
        identifying = Identifying(
            tokens=house.tokens, own_uid=OWN_UID, admin_gid=None, clock=house.clock, log=house.log
        )
        assert identifying.by_uid(1000, (0, 1000)).policies == ()

    async def test_whoever_shows_nothing_is_nobody(self, identifying: Identifying) -> None:
        """There is no anonymous user."""
        assert await identifying.identify(token=None, address=HERE, uid=None, gids=()) is None


class TestByToken:
    async def test_a_good_token_is_its_principal(self, house: House, identifying: Identifying) -> None:
        """With its name, policies and scopes: all that policies are judged by."""
        made = await house.create(policies=["issuer"], scopes=["cert.*"])
        house.clock.advance(61)
        principal = await identifying.identify(token=Secret(made.token), address=HERE, uid=None, gids=())
        assert principal is not None
        assert (str(principal), principal.name) == (f"token:{made.id}", "web-ci")
        assert (principal.policies, principal.scopes) == (("issuer",), ("cert.*",))
        assert (await house.get(made.id)).last_used_at == house.clock.now() - timedelta(seconds=1)

    async def test_a_token_counts_before_the_uid_of_its_sender(self, house: House, identifying: Identifying) -> None:
        """Root with a token of little right has that right, and with a bad one none."""
        made = await house.create()
        for text, who in ((made.token, f"token:{made.id}"), (STRANGER, "None")):
            found = await identifying.identify(token=Secret(text), address=None, uid=0, gids=(0,))
            assert str(found) == who

    async def test_all_that_is_wrong_is_the_same_to_the_caller(
        self, house: House, identifying: Identifying, logged: list[EventDict]
    ) -> None:
        """A thief must not learn that a token was good once; the log tells the administrator."""
        tokens = {name: await house.create(name) for name in ("revoked", "wrong", "replaced")}
        tokens["expired"] = await house.create("expired", lifetime="1h")
        tokens["elsewhere"] = await house.create("elsewhere", networks=["198.51.100.0/24"])
        await house.revoke("revoked")
        await house.rotate("replaced", overlap="1h")
        house.clock.advance(3600)
        other_secret = make_token(bytes(range(RANDOMNESS)), token_id=tokens["wrong"].id).reveal()
        shown = {
            "malformed": tokens["wrong"].token[:-1],
            "unknown": STRANGER,
            "wrong": other_secret,
            "revoked": tokens["revoked"].token,
            "expired": tokens["expired"].token,
            "elsewhere": tokens["elsewhere"].token,
        }
        del logged[:]
        for text in (*shown.values(), tokens["replaced"].token):
            assert identifying.by_token(Secret(text), HERE) is None
        told = [each for each in logged if each["event"] == "authentication.failed"]
        assert [each["reason"] for each in told] == [*shown, "expired"]
        assert {each["address"] for each in told} == {HERE}
        assert [each["claimed"] for each in told] == [
            None,
            *(f"token:{text[5:13]}" for text in (*shown.values(), tokens["replaced"].token) if len(text) == 63),
        ]
        assert not any(text[14:30] in repr(logged) for text in shown.values())

    @pytest.mark.parametrize("kind", ["session", "bootstrap"])
    async def test_a_session_is_no_token(self, house: House, identifying: Identifying, kind: TokenKind) -> None:
        """Even with the id and the secret of one: its checksum is right, and it is made for something else."""
        made = parse_token((await house.create()).token)
        with_that_secret = TokenText(kind, made.id, made.reveal()[14:57]).reveal()
        assert identifying.by_token(Secret(with_that_secret), HERE) is None
        assert identifying.by_token(Secret(made.reveal()), HERE) is not None

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
    @given(data=st.data())
    def test_a_mangled_token_is_nobodys(self, mangling: tuple[House, str], data: st.DataObject) -> None:
        """Whatever a client, a terminal or an attacker makes of a token, it is this token or none."""
        house, good = mangling
        identifying = Identifying(
            tokens=house.tokens, own_uid=OWN_UID, admin_gid=None, clock=house.clock, log=house.log
        )
        start, end = sorted(data.draw(st.tuples(st.integers(0, 63), st.integers(0, 63))))
        middle = data.draw(st.text(max_size=8) | st.sampled_from([good, "\n", " ", "\x00", good[start:end].swapcase()]))
        text = good[:start] + middle + good[end:]
        found = identifying.by_token(Secret(text), HERE)
        assert (found is not None) == (text == good)

    async def test_a_token_bound_to_networks_is_good_there_only(self, house: House, identifying: Identifying) -> None:
        """A socket for both families shows an IPv4 caller in the form of IPv6; a UNIX socket is nowhere."""
        made = await house.create(networks=["192.0.2.0/24"])
        found = [
            identifying.by_token(Secret(made.token), address) is not None
            for address in (HERE, f"::ffff:{HERE}", "192.0.3.1", None, "")
        ]
        assert found == [True, True, False, False, False]


@pytest.fixture
async def mangling(house: House) -> tuple[House, str]:
    return house, (await house.create()).token


class TestTooMany:
    async def test_after_ten_failures_in_a_minute_the_others_are_too_many(
        self, house: House, identifying: Identifying
    ) -> None:
        """Guessing is hopeless, and must not be cheap for the guesser and dear for us."""
        house.clock.advance(12345)
        fail(identifying, HERE, 10)
        for passed, left in ((0, 60.0), (59, 1.0)):
            house.clock.advance(passed)
            with pytest.raises(RateLimited) as caught:
                fail(identifying, HERE)
            assert caught.value.retry_after == left
        house.clock.advance(1)
        fail(identifying, HERE, 10)
        with pytest.raises(RateLimited):
            fail(identifying, HERE)

    async def test_ten_failures_count_in_any_sixty_seconds(self, house: House, identifying: Identifying) -> None:
        """Not by the minute of the clock, and not for ever."""
        fail(identifying, HERE, 1)
        house.clock.advance(50)
        fail(identifying, HERE, 8)
        house.clock.advance(10)
        fail(identifying, HERE, 2)
        with pytest.raises(RateLimited):
            fail(identifying, HERE)

    async def test_a_good_token_is_taken_all_the_same(self, house: House, identifying: Identifying) -> None:
        """Many share an address behind a proxy, and one bad client must not lock the others out."""
        made = await house.create()
        fail(identifying, HERE, 10)
        assert identifying.by_token(Secret(made.token), HERE) is not None
        with pytest.raises(RateLimited):
            fail(identifying, HERE)

    @pytest.mark.parametrize(
        ("one", "other", "are_one"),
        [
            (HERE, "192.0.2.2", False),
            (HERE, f"::ffff:{HERE}", True),
            ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
            ("2001:db8::1", "2001:db8:0:1::1", False),
            ("fe80::1%eth0", "fe80::2%eth1", True),
            (None, "", False),
            (None, None, True),
            ("no address", "no address", True),
        ],
    )
    async def test_who_counts_as_one(
        self, identifying: Identifying, one: str | None, other: str | None, are_one: bool
    ) -> None:
        """A /64 is one customer's, who would otherwise have as many tries as he likes."""
        fail(identifying, one, 10)
        if are_one:
            with pytest.raises(RateLimited):
                fail(identifying, other)
        else:
            fail(identifying, other)

    async def test_the_log_is_not_flooded(self, identifying: Identifying, logged: list[EventDict]) -> None:
        """Ten lines and one that says that more are not told."""
        fail(identifying, HERE, 10)
        for _ in range(1000):
            with pytest.raises(RateLimited):
                fail(identifying, HERE)
        assert [each["event"] for each in logged] == ["authentication.failed"] * 10 + ["authentication.limited"]
        assert logged[-1]["log_level"] == "warning"

    async def test_ten_thousand_addresses_are_remembered_and_no_more(self, identifying: Identifying) -> None:
        """A botnet must not fill the memory; whoever failed last is remembered longest."""
        fail(identifying, HERE, 10)
        fail(identifying, "192.0.2.2", 9)
        for number in range(ADDRESSES_MAX - 2):
            fail(identifying, f"10.0.{number >> 8}.{number & 255}")
        for address in (HERE,):
            with pytest.raises(RateLimited):
                fail(identifying, address)
        fail(identifying, "198.51.100.1")
        fail(identifying, "192.0.2.2", 9)
        with pytest.raises(RateLimited):
            fail(identifying, HERE)


class TestByTokenId:
    async def test_a_good_token_is_its_principal(self, house: House, identifying: Identifying) -> None:
        """A NATS server has seen the token itself."""
        made = await house.create(policies=["issuer"], networks=["198.51.100.0/24"])
        assert identifying.by_token_id(made.id) == identifying.by_token(Secret(made.token), "198.51.100.1")
        house.clock.advance(3600)
        assert identifying.by_token_id(made.id) is not None
        assert (await house.get(made.id)).last_used_at == house.clock.now()

    async def test_what_has_ended_is_nobody_at_the_next_request(self, house: House, identifying: Identifying) -> None:
        """A connection that was opened before must not outlive the token."""
        revoked = await house.create("revoked")
        expired = await house.create("expired", lifetime="1h")
        assert identifying.by_token_id(revoked.id) is not None
        await house.revoke(revoked.id)
        assert identifying.by_token_id(revoked.id) is None
        house.clock.advance(3599)
        assert identifying.by_token_id(expired.id) is not None
        house.clock.advance(1)
        assert identifying.by_token_id(expired.id) is None
        assert (await house.get(expired.id)).last_used_at == house.clock.now() - timedelta(minutes=1)

    @pytest.mark.parametrize("token_id", ["web-ci", "Ab3dEf9h", "", "*", ">"])
    async def test_nothing_but_an_id_counts(self, house: House, identifying: Identifying, token_id: str) -> None:
        """A name stands in no subject that the server has granted."""
        await house.create()
        assert identifying.by_token_id(token_id) is None

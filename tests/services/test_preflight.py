"""Checks before a CA is asked: what is looked at, what follows by mode, and what may never stop an order."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.model.dns import CaaRecord, CaaSet, Delegation, NameServer, Route
from scaivaultd.model.errors import DnsError, PreflightFailed
from scaivaultd.model.ids import AccountId, KeyId, OrderId
from scaivaultd.model.names import Identifier
from scaivaultd.model.resources import Account, CaDescription, Order, PreflightVerdict
from scaivaultd.plugin import ChallengeResponse
from scaivaultd.services.preflight import DETAIL_MAX, Preflight, PreflightModes
from tests.fakes.scripted_ca import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.model.resources import ChallengeType

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NO_RECORDS = CaaSet(owner=None, records=())
OTHER_CA = CaaSet(owner="example.test", records=(CaaRecord(flags=0, tag="issue", value="other.test"),))
FORBIDDEN = 'example.test CAA 0 issue "other.test" does not permit this CA: add issue "ca.test"'
BOGUS = DnsError("example.test does not pass DNSSEC validation", "dnssec_bogus")


class Dns:
    """`caa_sets` and `routes` hold what is said of a name, and else all is well; nothing answers `slow` questions."""

    def __init__(self) -> None:
        self.caa_sets: dict[str, CaaSet | DnsError] = {}
        self.routes: dict[str, DnsError] = {}
        self.asked: list[str] = []
        self.slow: set[str] = set()
        self.busy = 0
        self.busiest = 0
        self.is_stuck = asyncio.Event()
        self.is_freed = asyncio.Event()

    async def caa(self, name: str) -> CaaSet:
        await self._work(f"caa {name}")
        found = self.caa_sets.get(name, NO_RECORDS)
        if isinstance(found, DnsError):
            raise found
        return found

    async def route(self, name: str, *, follow_cname: bool = True) -> Route:
        await self._work(f"route {name}{'' if follow_cname else ' as it is'}")
        if name in self.routes:
            raise self.routes[name]
        servers = (NameServer(name="ns1.example.test", addresses=("192.0.2.1",)),)
        return Route(name=name, chain=(), target=name, delegation=Delegation(zone="example.test", servers=servers))

    async def _work(self, question: str) -> None:
        self.asked.append(question)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            if question in self.slow:
                await self._stick()
        finally:
            self.busy -= 1

    async def _stick(self) -> None:
        self.is_stuck.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.is_freed.set()

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


class Looks:
    """What is seen of our own answers: nothing in the way unless `sees` says so."""

    def __init__(self) -> None:
        self.sees: dict[str, str] = {}
        self.asked: list[tuple[str, ...]] = []
        self.slow: set[str] = set()

    async def http01(self, host: str, token: str, expected: str) -> str | None:
        return await self._look(host, "http-01", token, expected)

    async def tlsalpn01(self, host: str, expected_digest: bytes) -> str | None:
        return await self._look(host, "tls-alpn-01", expected_digest.hex())

    async def _look(self, host: str, *asked: str) -> str | None:
        self.asked.append((host, *asked))
        await asyncio.sleep(0)
        if host in self.slow:
            await asyncio.Event().wait()
        return self.sees.get(host)


@pytest.fixture
def dns() -> Dns:
    return Dns()


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def checks(dns: Dns, looks: Looks, log: FilteringBoundLogger) -> Callable[..., Preflight]:
    """The checks with these modes; all others are off."""

    def make(**modes: Any) -> Preflight:
        return Preflight(
            PreflightModes(**{"caa": "off", "delegation": "off", "reachability": "off", **modes}),
            name_servers=dns,
            own_answer=looks,
            clock=FakeClock(),
            log=log,
        )

    return make


def order(*names: str, challenge_type: ChallengeType = "http-01") -> Order:
    return Order(
        account_id=AccountId("acme_1"),
        identifiers=tuple(
            Identifier("ip" if each[0].isdigit() else "dns", each) for each in names or ("a.example.test",)
        ),
        challenge_type=challenge_type,
        key_type="ec-p256",
        id=OrderId("acme_order_1"),
        auto_renew=True,
        status="pending",
        created_at=NOW,
        give_up_at=NOW + timedelta(hours=1),
    )


def account(*caa_identities: str, url: str | None = "https://ca.test/account/1") -> Account:
    return Account(
        id=AccountId("acme_1"),
        name="main",
        provider="custom",
        environment="production",
        directory_url="https://ca.test/directory",
        status="valid",
        key_id=KeyId("key_1"),
        key_thumbprint="x",
        created_at=NOW,
        url=url,
        ca=CaDescription(caa_identities=caa_identities),
    )


CA = account("ca.test")


def told(verdicts: Sequence[PreflightVerdict]) -> list[tuple[str, str, str]]:
    return [(each.check, each.identifier, each.status) for each in verdicts]


async def failure(checking: Any) -> PreflightFailed:
    with pytest.raises(PreflightFailed) as caught:
        await checking
    return caught.value


class TestOff:
    async def test_nothing_is_done(self, checks: Callable[..., Preflight], dns: Dns, looks: Looks) -> None:
        """Whoever switches it off means it: no packet leaves."""
        preflight = checks()
        assert await preflight.before_order(order(), CA) == []
        assert await preflight.before_answer(order(), {"u": response()}) == []
        assert (dns.asked, looks.asked) == ([], [])

    async def test_what_is_on_by_default(self) -> None:
        """Reachability connects to hosts that callers name: never unasked."""
        modes = PreflightModes()
        assert (modes.caa, modes.delegation, modes.reachability) == ("warn", "warn", "off")


class TestCaa:
    async def test_names_that_may_be_issued_are_ok(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """The verdict stands in the order, and names the record that permits."""
        own = CaaRecord(flags=0, tag="issue", value="ca.test; accounturi=https://ca.test/account/1")
        dns.caa_sets["a.example.test"] = CaaSet(owner="example.test", records=(own,))
        [verdict] = await checks(caa="block").before_order(order(), CA)
        assert verdict == PreflightVerdict(
            check="caa",
            identifier="a.example.test",
            status="ok",
            detail='example.test CAA 0 issue "ca.test; accounturi=https://ca.test/account/1"',
        )

    async def test_warn_writes_into_the_order(
        self, checks: Callable[..., Preflight], dns: Dns, logged: list[EventDict]
    ) -> None:
        """The CA decides; but when it refuses everybody can see why, and beforehand too."""
        dns.caa_sets["a.example.test"] = OTHER_CA
        [verdict] = await checks(caa="warn").before_order(order(), CA)
        assert (verdict.status, verdict.detail) == ("warning", FORBIDDEN)
        assert logged == [
            {
                "event": "preflight.problem",
                "log_level": "warning",
                "order_id": "acme_order_1",
                "check": "caa",
                "identifier": "a.example.test",
                "detail": FORBIDDEN,
                "more": 0,
            }
        ]

    async def test_block_ends_the_order_with_all_verdicts(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """No attempt at the CA is spent, and every name is judged at once."""
        dns.caa_sets.update({"b.example.test": OTHER_CA, "c.example.test": OTHER_CA})
        asked = order("a.example.test", "b.example.test", "c.example.test")
        error = await failure(checks(caa="block").before_order(asked, CA))
        assert error.detail == f"b.example.test: {FORBIDDEN} (and 1 more, see preflight)"
        assert error.identifier == "b.example.test"
        assert not error.may_pass
        assert told(error.verdicts) == [
            ("caa", "a.example.test", "ok"),
            ("caa", "b.example.test", "failed"),
            ("caa", "c.example.test", "failed"),
        ]

    async def test_account_and_method_count(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """RFC 8657: the account that will ask, and the challenge type of the order."""
        value = "ca.test; accounturi=https://ca.test/account/1; validationmethods=dns-01"
        dns.caa_sets["a.example.test"] = CaaSet(
            owner="a.example.test", records=(CaaRecord(flags=0, tag="issue", value=value),)
        )
        preflight = checks(caa="warn")
        asked: list[tuple[ChallengeType, Account]] = [
            ("dns-01", CA),
            ("http-01", CA),
            ("dns-01", account("ca.test", url="https://ca.test/account/2")),
        ]
        statuses = [(await preflight.before_order(order(challenge_type=kind), who))[0].status for kind, who in asked]
        assert statuses == ["ok", "warning", "warning"]

    async def test_a_wildcard_is_judged_as_one(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """Its base name shares the look-up, not the verdict."""
        records = tuple(
            CaaRecord(flags=0, tag=tag, value=value) for tag, value in (("issue", "ca.test"), ("issuewild", ";"))
        )
        dns.caa_sets["example.test"] = CaaSet(owner="example.test", records=records)
        asked = order("*.example.test", "example.test", challenge_type="dns-01")
        verdicts = await checks(caa="warn").before_order(asked, CA)
        assert told(verdicts) == [("caa", "*.example.test", "warning"), ("caa", "example.test", "ok")]
        assert dns.asked == ["caa test", "caa example.test"]

    async def test_a_ca_that_does_not_say_its_name_cannot_be_judged(
        self, checks: Callable[..., Preflight], dns: Dns
    ) -> None:
        """Private CAs have no caaIdentities; that must not end their orders."""
        dns.caa_sets["a.example.test"] = OTHER_CA
        [verdict] = await checks(caa="block").before_order(order(), account())
        assert verdict.status == "skipped"
        assert "caaIdentities" in verdict.detail

    async def test_addresses_are_left_out(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """They have neither CAA records nor a zone."""
        assert await checks(caa="block", delegation="block").before_order(order("192.0.2.1"), CA) == []
        assert dns.asked == []

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (DnsError("no answer within 3 s", "unreachable"), "skipped"),
            (DnsError("the resolvers do not tell: SERVFAIL", "lame_delegation"), "skipped"),
            (BOGUS, "failed"),
            (DnsError("a circle", "cname_loop"), "failed"),
            (DnsError("more than ten", "cname_too_long"), "failed"),
        ],
    )
    async def test_only_what_every_ca_meets_blocks(
        self, checks: Callable[..., Preflight], dns: Dns, error: DnsError, status: str
    ) -> None:
        """Our own resolver's trouble is not the CA's; a zone that does not validate is everybody's."""
        dns.caa_sets["a.example.test"] = error
        asking = checks(caa="block").before_order(order(), CA)
        if status == "failed":
            assert (await failure(asking)).verdicts[0].detail == error.detail
        else:
            [verdict] = await asking
            assert (verdict.status, verdict.detail) == ("skipped", error.detail)


class TestDelegation:
    async def test_for_dns_01_the_challenge_name_is_followed(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """A delegated challenge lies in another zone than its name."""
        asked = order("*.example.test", "example.test", challenge_type="dns-01")
        verdicts = await checks(delegation="warn").before_order(asked, CA)
        assert told(verdicts) == [("delegation", "*.example.test", "ok"), ("delegation", "example.test", "ok")]
        assert verdicts[0].detail == "zone example.test"
        assert dns.asked == ["caa test", "route _acme-challenge.example.test"]

    async def test_for_others_the_name_itself_counts(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """Where its CNAME leads is the web server's business."""
        await checks(delegation="warn").before_order(order(), CA)
        assert dns.asked == ["caa test", "route a.example.test as it is"]

    @pytest.mark.parametrize(
        ("reason", "status"),
        [
            ("no_zone", "warning"),
            ("lame_delegation", "warning"),
            ("dnssec_bogus", "warning"),
            ("cname_loop", "warning"),
            ("unreachable", "skipped"),
        ],
    )
    async def test_what_stands_in_the_way_is_told_in_its_words(
        self, checks: Callable[..., Preflight], dns: Dns, reason: Any, status: str
    ) -> None:
        """The text names the zone and the server that does not serve it."""
        dns.routes["a.example.test"] = DnsError("ns1.example.test: REFUSED", reason)
        [verdict] = await checks(delegation="warn").before_order(order(), CA)
        assert (verdict.status, verdict.detail) == (status, "ns1.example.test: REFUSED")

    async def test_modes_are_each_its_own(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """One check may block while the other only warns."""
        dns.caa_sets["a.example.test"] = OTHER_CA
        dns.routes["a.example.test"] = DnsError("no zone", "no_zone")
        error = await failure(checks(caa="warn", delegation="block").before_order(order(), CA))
        assert told(error.verdicts) == [
            ("caa", "a.example.test", "warning"),
            ("delegation", "a.example.test", "failed"),
        ]
        assert error.detail == "a.example.test: no zone"

    async def test_long_words_are_cut(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """A hundred names with two verdicts each have to fit into an order."""
        dns.routes["a.example.test"] = DnsError("x" * 5000, "no_zone")
        [verdict] = await checks(delegation="warn").before_order(order(), CA)
        assert len(verdict.detail) == DETAIL_MAX


class TestTime:
    async def test_what_is_not_finished_is_skipped(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """A slow server of one name holds no order back, and blocks none."""
        dns.slow.add("caa b.example.test")
        preflight = checks(caa="block", timeout_seconds=0.1)
        verdicts = await preflight.before_order(order("a.example.test", "b.example.test"), CA)
        assert told(verdicts) == [("caa", "a.example.test", "ok"), ("caa", "b.example.test", "skipped")]
        assert verdicts[1].detail == "not finished within 0.1 s"
        assert dns.busy == 0

    async def test_without_dns_nothing_is_waited_for(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """The first order learns it, in less than its time; the others are told."""
        dns.slow.add("caa test")
        preflight = checks(caa="block", delegation="block", timeout_seconds=0.1)
        for _ in range(1000):
            verdicts = await preflight.before_order(order(), CA)
            assert {each.status for each in verdicts} == {"skipped"}
            assert verdicts[0].detail == "no resolver answers; not looked again before 00:01:00 UTC"
        assert dns.asked == ["caa test"]

    async def test_eight_look_ups_run_side_by_side(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """A hundred names in a row would take a minute, and all at once would be a burst."""
        names = [f"a{number}.example.test" for number in range(40)]
        verdicts = await checks(caa="warn", delegation="warn").before_order(order(*names), CA)
        assert len(verdicts) == 80
        assert dns.busiest == 8

    async def test_a_cancelled_order_ends_its_look_ups(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """Cancelling must not hang, and nothing may go on for nobody."""
        dns.slow.add("caa a.example.test")
        checking = asyncio.create_task(checks(caa="warn", timeout_seconds=60).before_order(order(), CA))
        await asyncio.wait_for(dns.is_stuck.wait(), 10)
        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking
        await asyncio.wait_for(dns.is_freed.wait(), 10)


def response(identifier: str = "a.example.test", kind: str = "http-01") -> ChallengeResponse:
    return ChallengeResponse(identifier=identifier, type=kind, token="token", key_authorization="token.thumbprint")


class TestReachability:
    async def test_our_answers_are_looked_at_by_type(self, checks: Callable[..., Preflight], looks: Looks) -> None:
        """The token's body for one, the digest's certificate for the other; dns-01 has a check of its own."""
        responses = {
            "u1": response("a.example.test"),
            "u2": response("b.example.test", "tls-alpn-01"),
            "u3": response("c.example.test", "dns-01"),
        }
        verdicts = await checks(reachability="block").before_answer(order(), responses)
        assert told(verdicts) == [("reachability", "a.example.test", "ok"), ("reachability", "b.example.test", "ok")]
        digest = hashlib.sha256(b"token.thumbprint").hexdigest()
        assert looks.asked == [
            ("a.example.test", "http-01", "token", "token.thumbprint"),
            ("b.example.test", "tls-alpn-01", digest),
        ]

    async def test_block_ends_the_attempt_and_may_pass(self, checks: Callable[..., Preflight], looks: Looks) -> None:
        """A listener or a route may be there in a moment: the order tries again."""
        looks.sees["a.example.test"] = "192.0.2.1:80: connection refused"
        error = await failure(checks(reachability="block").before_answer(order(), {"u": response()}))
        assert error.detail == "a.example.test: 192.0.2.1:80: connection refused"
        assert (error.identifier, error.may_pass) == ("a.example.test", True)

    async def test_warn_goes_on(self, checks: Callable[..., Preflight], looks: Looks) -> None:
        """Many hosts do not reach themselves by their public names; the CA may."""
        looks.sees["a.example.test"] = "192.0.2.1:80: status 404"
        [verdict] = await checks(reachability="warn").before_answer(order(), {"u": response()})
        assert (verdict.status, verdict.detail) == ("warning", "192.0.2.1:80: status 404")

    async def test_what_takes_too_long_is_skipped(self, checks: Callable[..., Preflight], looks: Looks) -> None:
        """Nobody knows then."""
        looks.slow.add("a.example.test")
        preflight = checks(reachability="block", timeout_seconds=0.05)
        [verdict] = await preflight.before_answer(order(), {"u": response()})
        assert (verdict.status, verdict.detail) == ("skipped", "not finished within 0.05 s")


class TestCaaForbids:
    @pytest.mark.parametrize("mode", ["off", "warn", "block"])
    async def test_it_is_told_whatever_the_mode(self, checks: Callable[..., Preflight], dns: Dns, mode: str) -> None:
        """Whoever chooses among accounts wants to know, and decides by themselves."""
        dns.caa_sets["b.example.test"] = OTHER_CA
        preflight = checks(caa=mode)
        assert await preflight.caa_forbids(order("a.example.test", "b.example.test"), CA) == (
            f"b.example.test: {FORBIDDEN}"
        )
        assert await preflight.caa_forbids(order("a.example.test"), CA) is None

    @pytest.mark.parametrize("found", [OTHER_CA, DnsError("no answer", "unreachable")])
    async def test_what_nobody_knows_forbids_nothing(
        self, checks: Callable[..., Preflight], dns: Dns, found: CaaSet | DnsError
    ) -> None:
        """An account is passed over for a reason only."""
        dns.caa_sets["a.example.test"] = found
        assert await checks().caa_forbids(order(), account()) is None

    async def test_it_is_bounded(self, checks: Callable[..., Preflight], dns: Dns) -> None:
        """An order waits for it."""
        dns.slow.add("caa a.example.test")
        assert await checks(timeout_seconds=0.05).caa_forbids(order(), CA) is None

"""What is seen of refused names: at what the CA looks at, shortly, and never to the order's harm."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.model.dns import Delegation, NameServer, Route, ServerVerdict
from scaivaultd.model.errors import DnsError
from scaivaultd.model.ids import AccountId, OrderId
from scaivaultd.model.names import parse_identifiers
from scaivaultd.model.resources import Challenge, IdentifierTrouble, Order, Sighting, Trouble
from scaivaultd.services import evidence
from scaivaultd.services.evidence import Witness

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.dns import Answer, CaaSet
    from scaivaultd.model.resources import ChallengeType

ACME = "urn:ietf:params:acme:error:"
NOW = datetime(2026, 11, 1, tzinfo=UTC)
ACCOUNT: Any = None
"""Only where a CAA record is found is anything of it looked at."""


class Sight:
    """Tells what it was told to tell, and writes down what it was asked."""

    def __init__(self, *seen: Sighting, hangs: bool = False) -> None:
        self.seen = seen
        self.asked: list[tuple[Any, ...]] = []
        self._hangs = hangs

    async def see_http01(self, host: str, token: str, expected: str) -> Sequence[Sighting]:
        return await self._see(host, token, expected)

    async def see_tlsalpn01(self, host: str, expected_digest: bytes) -> Sequence[Sighting]:
        return await self._see(host, expected_digest)

    async def _see(self, *asked: Any) -> Sequence[Sighting]:
        self.asked.append(asked)
        if self._hangs:
            await asyncio.Event().wait()
        return self.seen


class Dns:
    """Two servers, of which the second may lag."""

    def __init__(self, second: Answer = "complete", target: str | None = None, error: DnsError | None = None) -> None:
        self.second, self.target, self.error = second, target, error
        self.values: Collection[str] = ()
        self.bogus_zone: str | None = None

    async def route(self, name: str, *, follow_cname: bool = True) -> Route:
        if self.error is not None:
            raise self.error
        servers = tuple(NameServer(name=f"ns{each}", addresses=(f"192.0.2.{each}",)) for each in (1, 2))
        zone = Delegation(zone="example.test", servers=servers)
        return Route(name=name, chain=(), target=self.target or name, delegation=zone)

    async def look(self, delegation: Delegation, name: str, values: Collection[str]) -> Sequence[ServerVerdict]:
        self.values = values
        return [
            ServerVerdict(server="ns1", address="192.0.2.1", answer="complete"),
            ServerVerdict(server="ns2", address="192.0.2.2", answer=self.second, detail=f"says {self.second}"),
        ]

    async def look_at_resolvers(
        self, resolvers: Sequence[str], name: str, values: Collection[str]
    ) -> Sequence[ServerVerdict]:
        raise AssertionError("a resolver remembers what was not there yet")

    async def caa(self, name: str) -> CaaSet:
        raise DnsError("the servers do not answer for CAA", "unreachable")

    async def bogus(self, zone: str) -> str | None:
        return self.bogus_zone


def order(*names: str, kind: ChallengeType = "http-01") -> Order:
    identifiers = parse_identifiers(names, public_ca=False)
    return Order(
        id=OrderId("order_1"),
        account_id=AccountId("acme_1"),
        identifiers=tuple(identifiers),
        challenge_type=kind,
        key_type="ec-p256",
        auto_renew=True,
        status="pending",
        created_at=NOW,
        give_up_at=NOW,
        challenges=tuple(
            Challenge(
                identifier=each.base,
                type=kind,
                url=f"https://ca.test/{place}",
                status="invalid",
                token=f"t{place}",
                key_authorization=f"t{place}.thumb",
            )
            for place, each in enumerate(identifiers)
        ),
    )


def refused(*names: str, problem: str = "unauthorized") -> Trouble:
    return Trouble(
        code="challenge_failed",
        detail="no",
        identifiers=tuple(IdentifierTrouble(identifier=each, type=f"{ACME}{problem}") for each in names),
    )


def seen(saw: str = "status 404", *, ok: bool | None = False) -> Sighting:
    return Sighting(where="192.0.2.7:80", saw=saw, ok=ok)


def witness(log: FilteringBoundLogger, sight: Sight | None = None, dns: Dns | None = None) -> Witness:
    return Witness(own_sight=sight or Sight(), name_servers=dns or Dns(), log=log)


async def test_the_path_of_a_refused_name_is_seen_and_no_other(log: FilteringBoundLogger) -> None:
    """The other names have nothing to explain."""
    sight = Sight(seen())
    told = await witness(log, sight).look(order("a.example.test", "b.example.test"), ACCOUNT, refused("b.example.test"))
    assert sight.asked == [("b.example.test", "t1", "t1.thumb")]
    assert [(each.identifier, each.check, each.where, each.saw, each.ok) for each in told] == [
        ("b.example.test", "http-01", "192.0.2.7:80", "status 404", False)
    ]


async def test_for_tls_alpn_01_the_certificate_is_seen(log: FilteringBoundLogger) -> None:
    """By the digest that it has to hold."""
    sight = Sight(seen())
    told = await witness(log, sight).look(
        order("a.example.test", kind="tls-alpn-01"), ACCOUNT, refused("a.example.test")
    )
    assert sight.asked == [("a.example.test", hashlib.sha256(b"t0.thumb").digest())]
    assert told[0].check == "tls-alpn-01"


async def test_for_dns_01_every_server_is_seen(log: FilteringBoundLogger) -> None:
    """With the value that it should have; one that lags is told by its name."""
    dns = Dns(second="absent")
    told = await witness(log, dns=dns).look(order("a.example.test", kind="dns-01"), ACCOUNT, refused("a.example.test"))
    assert [(each.where, each.saw, each.ok) for each in told] == [
        ("ns1 (192.0.2.1)", "complete", True),
        ("ns2 (192.0.2.2)", "says absent", False),
    ]
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"t0.thumb").digest()).rstrip(b"=").decode()
    assert list(dns.values) == [digest]


async def test_a_server_that_cannot_be_asked_is_no_witness(log: FilteringBoundLogger) -> None:
    """An IPv6 address, where this host has none."""
    dns = Dns(second="skipped")
    told = await witness(log, dns=dns).look(order("a.example.test", kind="dns-01"), ACCOUNT, refused("a.example.test"))
    assert told[1].ok is None


@pytest.mark.parametrize(("reason", "ok"), [("no_zone", False), ("unreachable", None)])
async def test_a_look_that_fails_is_told_and_not_raised(
    log: FilteringBoundLogger, reason: Any, ok: bool | None
) -> None:
    """The order's fate is settled; what is not known stays unknown."""
    dns = Dns(error=DnsError("it is in no zone", reason))
    told = await witness(log, dns=dns).look(order("a.example.test", kind="dns-01"), ACCOUNT, refused("a.example.test"))
    assert [(each.saw, each.ok) for each in told] == [("it is in no zone", ok)]


async def test_a_bogus_zone_is_told(log: FilteringBoundLogger) -> None:
    """The CA says only `dns`."""
    dns = Dns()
    dns.bogus_zone = "signatures have expired"
    told = await witness(log, dns=dns).look(order("a.example.test"), ACCOUNT, refused("a.example.test", problem="dns"))
    assert [(each.check, each.where, each.saw) for each in told] == [
        ("dnssec", "example.test", "signatures have expired")
    ]


async def test_caa_is_looked_at_when_the_ca_speaks_of_it(log: FilteringBoundLogger) -> None:
    """What cannot be seen is told as such."""
    told = await witness(log).look(order("a.example.test"), ACCOUNT, refused("a.example.test", problem="caa"))
    assert [(each.check, each.saw, each.ok) for each in told] == [("caa", "the servers do not answer for CAA", None)]


async def test_a_look_that_hangs_ends_in_time(log: FilteringBoundLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    """All names together have one deadline."""
    monkeypatch.setattr(evidence, "LOOK_SECONDS", 0.05)
    names = ("a.example.test", "b.example.test")
    told = await witness(log, Sight(hangs=True)).look(order(*names), ACCOUNT, refused(*names))
    assert [(each.identifier, each.saw, each.ok) for each in told] == [
        (name, "nothing was seen within 0.05 s", None) for name in names
    ]


async def test_of_many_names_some_are_seen(log: FilteringBoundLogger) -> None:
    """And of what is seen no more is kept than anybody reads."""
    names = [f"n{each}.example.test" for each in range(20)]
    sight = Sight(seen("x" * 5000))
    told = await witness(log, sight).look(order(*names), ACCOUNT, refused(*names))
    assert (len(sight.asked), {len(each.saw) for each in told}) == (evidence.NAMES_MAX, {evidence.SAW_MAX})

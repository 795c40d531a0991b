"""Routes, CAA and DNSSEC through a small world of real BIND servers on loopback."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from scaivaultd.model.dns import CaaRecord, NameServer
from scaivaultd.model.errors import DnsError
from scaivaultd.net.authoritative import AuthoritativeDns
from scaivaultd.net.dns_exchange import Patience

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, FilteringBoundLogger

pytestmark = pytest.mark.asyncio(loop_scope="module")

# The resolver gives up on silent servers after more than a second; whoever is alive answers in milliseconds.
PATIENCE = Patience(udp_seconds=0.4, tcp_seconds=1.0, look_seconds=5.0, route_seconds=20.0)


@pytest.fixture
def dns_of(world: Any, clock: Any, log: FilteringBoundLogger) -> Callable[..., AuthoritativeDns]:
    """A look at the world through given resolvers."""

    def make(*resolvers: str, **more: Any) -> AuthoritativeDns:
        settings = {"authoritative_port": world.port, "clock": clock, "log": log, "patience": PATIENCE, **more}
        return AuthoritativeDns(resolvers or (world.resolver,), **settings)

    return make


@pytest.mark.parametrize(
    ("name", "chain", "zone"),
    [
        ("_acme-challenge.example.test", (), "example.test"),
        ("_acme-challenge.new.example.test", (), "example.test"),
        ("_acme-challenge.a.b.c.new.example.test", (), "example.test"),
        ("_acme-challenge.www.example.test", ("www.acme.other.test",), "other.test"),
        (
            "_acme-challenge.long.example.test",
            ("_acme-challenge.www.example.test", "www.acme.other.test"),
            "other.test",
        ),
        ("x.tree.example.test", ("x.acme.other.test",), "other.test"),
        ("_acme-challenge.alias.example.test", (), "example.test"),
        ("_acme-challenge.x.wild.example.test", (), "example.test"),
        ("_acme-challenge.cwild.example.test", ("wild.acme.other.test",), "other.test"),
        ("_acme-challenge.www.sub.example.test", (), "sub.example.test"),
        ("_acme-challenge.sub.example.test", (), "sub.example.test"),
        ("_acme-challenge.own.example.test", (), "_acme-challenge.own.example.test"),
        ("_acme-challenge.inner.example.test", (), "inner.example.test"),
        ("there.inner.example.test", (), "inner.example.test"),
        ("values.example.test", (), "example.test"),
        ("_acme-challenge.same.other.test", (), "_acme-challenge.same.other.test"),
        ("_acme-challenge.empty.other.test", (), "_acme-challenge.empty.other.test"),
        ("new.late.test", ("x.other.test",), "other.test"),
        ("zone.late.test", (), "zone.late.test"),
        ("_acme-challenge.half.test", (), "half.test"),
        ("_acme-challenge.signed.test", (), "signed.test"),
    ],
)
async def test_route_ends_where_the_records_have_to_be(
    dns_of: Callable[..., AuthoritativeDns], name: str, chain: tuple[str, ...], zone: str
) -> None:
    """Target and zone choose the provider: a wrong one writes where no CA looks."""
    route = await dns_of().route(name)
    assert (route.name, route.chain, route.delegation.zone) == (name, chain, zone)
    assert route.target == (chain[-1] if chain else name)


async def test_route_knows_every_address_of_every_server(world: Any, dns_of: Callable[..., AuthoritativeDns]) -> None:
    """A server that is left out may be the one that the CA asks."""
    route = await dns_of().route("_acme-challenge.example.test")
    assert route.delegation.servers == (
        NameServer(name="ns1.example.test", addresses=(world.FIRST,)),
        NameServer(name="ns2.example.test", addresses=(world.SECOND,)),
    )


async def test_route_goes_on_by_ipv6_where_there_is_no_other_way(dns_of: Callable[..., AuthoritativeDns]) -> None:
    """Zones may be served over IPv6 only; an address out of reach must not stand in the way of another."""
    route = await dns_of().route("_acme-challenge.six.test")
    (server,) = route.delegation.servers
    assert sorted(server.addresses) == ["2001:db8::53", "::1"]


async def test_route_leaves_cnames_alone_when_told_so(dns_of: Callable[..., AuthoritativeDns]) -> None:
    """`follow_cname = false` is for providers that write beside a CNAME."""
    route = await dns_of().route("_acme-challenge.www.example.test", follow_cname=False)
    assert (route.chain, route.target) == ((), "_acme-challenge.www.example.test")
    assert route.delegation.zone == "example.test"


async def test_route_takes_ten_hops(dns_of: Callable[..., AuthoritativeDns]) -> None:
    """Long chains are odd but work at CAs, too."""
    route = await dns_of().route("hop2.example.test")
    assert (len(route.chain), route.target) == (10, "hop12.example.test")


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("hop1.example.test", "cname_too_long", ["more than 10", "hop11"]),
        ("loop1.example.test", "cname_loop", ["loop1.example.test -> loop2.example.test -> loop1.example.test"]),
        ("into.example.test", "cname_loop", ["into.example.test -> loop1", "loop2.example.test -> loop1.example.test"]),
        ("selfish.example.test", "cname_loop", ["selfish.example.test -> selfish.example.test"]),
        ("_acme-challenge.missing.test", "no_zone", ["top-level zone test", "missing.test does not exist"]),
        ("_acme-challenge.www.nosuchtld", "no_zone", ["the root", "does not exist"]),
        ("_acme-challenge.nosuchtld", "no_zone", ["the root", "nosuchtld does not exist"]),
        ("nowhere.example.test", "no_zone", ["x.y.missing"]),
        ("_acme-challenge.lame.test", "lame_delegation", ["lame.test", "ns1.example.test (127.0.0.2", "REFUSED"]),
        ("dead.example.test", "lame_delegation", ["ns.stranger.test (127.0.0.4", "REFUSED"]),
        ("_acme-challenge.homeless.test", "lame_delegation", ["ns.nowhere.invalid: no address: NXDOMAIN"]),
        ("_acme-challenge.expired.test", "dnssec_bogus", ["expired.test does not pass DNSSEC"]),
        ("_acme-challenge.x.y.expired.test", "dnssec_bogus", ["y.expired.test"]),
        (
            "_acme-challenge.silent.test",
            "unreachable",
            ["no name server of silent.test answers", "no answer within 0.4 s", "connection refused"],
        ),
        (f"_acme-challenge.{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 50}.test", "no_zone", ["cannot be a name"]),
    ],
)
async def test_route_names_what_is_wrong(
    dns_of: Callable[..., AuthoritativeDns], name: str, reason: str, words: list[str]
) -> None:
    """Who reads the error at night learns which zone and which servers to look at."""
    with pytest.raises(DnsError) as caught:
        await dns_of().route(name)
    assert caught.value.reason == reason
    assert [word for word in words if word not in caught.value.detail] == [], caught.value.detail


async def test_route_names_resolvers_that_are_silent(world: Any, dns_of: Callable[..., AuthoritativeDns]) -> None:
    """No DNS at all is not the fault of the zone."""
    with pytest.raises(DnsError, match="no resolver can be asked") as caught:
        await dns_of(world.at(world.SILENT), world.at(world.CLOSED)).route("_acme-challenge.example.test")
    assert caught.value.reason == "unreachable"
    assert f"{world.at(world.SILENT)}: no answer within 0.4 s" in caught.value.detail
    assert f"{world.at(world.CLOSED)}: connection refused" in caught.value.detail


async def test_route_ends_in_time(world: Any, dns_of: Callable[..., AuthoritativeDns]) -> None:
    """A caller waits for this; silent servers behind silent servers must not add up."""
    patience = Patience(udp_seconds=60.0, route_seconds=0.2)
    with pytest.raises(DnsError, match="did not lead to a zone within") as caught:
        await dns_of(world.at(world.SILENT), patience=patience).route("_acme-challenge.example.test")
    assert caught.value.reason == "unreachable"


async def test_a_silent_resolver_costs_its_time_once(world: Any, dns_of: Callable[..., AuthoritativeDns]) -> None:
    """The first of two resolvers may be down for days; a route takes too long if every lookup waits for it."""
    patience = Patience(udp_seconds=1.0, route_seconds=2.5)
    dns = dns_of(world.at(world.SILENT), world.resolver, patience=patience)
    route = await dns.route("_acme-challenge.a.b.example.test")
    assert route.delegation.zone == "example.test"


async def test_an_authoritative_server_will_do_as_a_resolver(
    world: Any, dns_of: Callable[..., AuthoritativeDns], logged: list[EventDict]
) -> None:
    """In test set-ups the only resolver often is the name server itself; its referrals show the way."""
    dns = dns_of(world.at(world.ROOT))
    route = await dns.route("_acme-challenge.www.sub.example.test")
    assert route.delegation.zone == "sub.example.test"
    assert [server.addresses for server in route.delegation.servers] == [(world.SECOND,)]
    assert logged == []


async def test_the_challenge_name_is_kept_from_resolvers(world: Any, dns_of: Callable[..., AuthoritativeDns]) -> None:
    """A resolver that was asked too early remembers that the name was not there, and the CA may ask the same one."""
    async with Eavesdropper(world.resolver) as ear:
        dns = dns_of(ear.address)
        await dns.route("_acme-challenge.fresh.example.test")
        await dns.route("_acme-challenge.own.example.test")
        await dns.route("_acme-challenge.www.example.test")
    assert ear.names
    heard = [name for name in ear.names if name.startswith("_acme-challenge") or name == "www.acme.other.test"]
    assert heard == []


@pytest.mark.parametrize("server", ["resolv.conf", "changed"])
async def test_the_systems_resolvers_are_read_when_they_change(
    world: Any, log: FilteringBoundLogger, clock: Any, tmp_path: Path, server: str
) -> None:
    """Laptops and containers get new resolvers while the daemon runs."""
    file = tmp_path / "resolv.conf"
    file.write_text(f"nameserver {world.CLOSED}\n")
    dns = AuthoritativeDns((), authoritative_port=world.port, clock=clock, log=log, patience=PATIENCE, resolv_conf=file)
    address = world.CLOSED
    if server == "changed":
        await dns.bogus("example.test")
        address = "127.0.0.8"
        file.write_text(f"# by dhcp\nnameserver {address}\nnameserver ::1\n")
    with pytest.raises(DnsError, match=address):
        await dns.route("_acme-challenge.example.test")


async def test_a_resolver_that_is_none_stands_in_for_the_zone(
    world: Any, dns_of: Callable[..., AuthoritativeDns], logged: list[EventDict]
) -> None:
    """Pebble's test server knows no zones and never claims authority, and yet it is what the CA asks."""
    async with Answerer(challtestsrv) as server:
        dns = dns_of(server.address)
        route = await dns.route("_acme-challenge.www.example.test")
        again = await dns.route("_acme-challenge.www.example.test")
        verdicts = await dns.look(route.delegation, route.target, ["value"])
    assert route == again
    assert (route.chain, route.delegation.zone) == ((), "www.example.test")
    assert route.delegation.servers == (NameServer(name=server.address, addresses=(server.address,)),)
    assert [(each.address, each.answer) for each in verdicts] == [(server.address, "complete")]
    assert [(each["event"], each["log_level"], each["name"]) for each in logged] == [
        ("dns.resolvers_stand_in", "warning", "_acme-challenge.www.example.test")
    ]


async def test_a_stand_in_is_followed_through_its_cnames(dns_of: Callable[..., AuthoritativeDns]) -> None:
    """Delegation by CNAME has to be testable with such a server as well."""
    async with Answerer(challtestsrv) as server:
        route = await dns_of(server.address).route("_acme-challenge.alias.example.test")
    assert (route.chain, route.delegation.zone) == (("x.other.test",), "other.test")


async def test_a_server_that_refuses_does_not_stand_in(world: Any, dns_of: Callable[..., AuthoritativeDns]) -> None:
    """A name server that has nothing to do with the name is a mistake in the configuration, not a zone."""
    with pytest.raises(DnsError, match="the resolvers do not tell the zone") as caught:
        await dns_of(world.at(world.STRANGER)).route("_acme-challenge.example.test")
    assert caught.value.reason == "unreachable"


async def test_a_real_resolver_never_stands_in(world: Any, dns_of: Callable[..., AuthoritativeDns]) -> None:
    """It would be asked for the challenge name, and the error would be hidden."""
    with pytest.raises(DnsError) as caught:
        await dns_of().route("_acme-challenge.missing.test")
    assert caught.value.reason == "no_zone"


@pytest.mark.parametrize(
    ("name", "owner", "records"),
    [
        ("example.test", "example.test", [(0, "issue", "ca.test"), (128, "issuewild", ";")]),
        ("a.b.example.test", "example.test", [(0, "issue", "ca.test"), (128, "issuewild", ";")]),
        ("*.awild.example.test", "example.test", [(0, "issue", "ca.test"), (128, "issuewild", ";")]),
        ("alias.example.test", "alias.example.test", [(0, "issue", "other-ca.test")]),
        ("below.alias.example.test", "alias.example.test", [(0, "issue", "other-ca.test")]),
        ("other.test", None, []),
        ("missing.test", None, []),
    ],
)
async def test_caa_is_found_by_climbing(
    dns_of: Callable[..., AuthoritativeDns], name: str, owner: str | None, records: list[tuple[int, str, str]]
) -> None:
    """The same climb as the CA's (RFC 8659 section 3), so that its refusal is foreseen."""
    found = await dns_of().caa(name)
    assert found.owner == owner
    expected = [CaaRecord(flags=flags, tag=tag, value=value) for flags, tag, value in records]
    assert sorted(found.records, key=repr) == sorted(expected, key=repr)


@pytest.mark.parametrize(
    ("name", "reason"), [("www.expired.test", "dnssec_bogus"), ("www.lame.test", "lame_delegation")]
)
async def test_caa_that_cannot_be_had_is_an_error(
    dns_of: Callable[..., AuthoritativeDns], name: str, reason: str
) -> None:
    """A CA must not issue when the lookup fails; "no records" would be a false comfort."""
    with pytest.raises(DnsError) as caught:
        await dns_of().caa(name)
    assert caught.value.reason == reason


async def test_bogus_zones_are_told_from_sound_ones(world: Any, dns_of: Callable[..., AuthoritativeDns]) -> None:
    """The CA validates, even if the resolver that we ask first does not."""
    dns = dns_of(world.at(world.SILENT), world.resolver)
    why = await dns.bogus("expired.test")
    assert why is not None
    assert world.resolver in why
    assert await dns.bogus("signed.test") is None
    assert await dns.bogus("example.test") is None
    assert await dns.bogus("lame.test") is None


class Answerer(asyncio.DatagramProtocol):
    """A DNS server whose answers come from a function."""

    def __init__(self, answer: Callable[[dns.message.Message], dns.message.Message]) -> None:
        self._answer = answer
        self._transport: Any = None
        self.address = ""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.address = "127.0.0.1:{}".format(self._transport.get_extra_info("sockname")[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(self._answer(dns.message.from_wire(data)).to_wire(), addr)


def challtestsrv(query: dns.message.Message) -> dns.message.Message:
    """As measured: no AA, no RA, a SOA from nowhere in every answer, NOTIMP for SOA and NS, no EDNS."""
    answer = dns.message.make_response(query)
    answer.use_edns(False)
    soa = "ns.challtestsrv.invalid. master.challtestsrv.invalid. 1 1 1 1 1"
    answer.authority.append(dns.rrset.from_text("challtestsrv.invalid.", 0, "IN", "SOA", soa))
    name = query.question[0].name.to_text()
    kind = dns.rdatatype.to_text(query.question[0].rdtype)
    if kind in ("SOA", "NS"):
        answer.set_rcode(dns.rcode.NOTIMP)
    elif name == "_acme-challenge.alias.example.test.":
        answer.answer.append(dns.rrset.from_text(name, 0, "IN", "CNAME", "x.other.test."))
    elif kind == "TXT":
        answer.answer.append(dns.rrset.from_text(name, 0, "IN", "TXT", '"value"'))
    return answer


class Eavesdropper(Answerer):
    """Hands everything on to a resolver, and remembers which names were asked for."""

    def __init__(self, resolver: str) -> None:
        super().__init__(self._hand_on)
        host, port = resolver.split(":")
        self._resolver = (host, int(port))
        self._asked: set[asyncio.Task[None]] = set()
        self.names: list[str] = []

    def _hand_on(self, query: dns.message.Message) -> dns.message.Message:
        raise NotImplementedError

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.names.append(dns.message.from_wire(data).question[0].name.to_text(omit_final_dot=True))
        self._asked.add(asyncio.create_task(self._pass(data, addr)))

    async def _pass(self, data: bytes, addr: Any) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, self._resolver)
            await loop.sock_sendall(sock, data)
            async with asyncio.timeout(5):
                self._transport.sendto(await loop.sock_recv(sock, 65535), addr)

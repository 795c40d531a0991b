"""The development DNS server: what it answers, to whom, and how slowly if it is told to be slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from scaivaultd.demo.dns import DevelopmentDns, Fault


class HandClock:
    """Moves when a test moves it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("the server never waits")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def server(clock: HandClock) -> AsyncIterator[DevelopmentDns]:
    server = DevelopmentDns(["example.test", "sub.example.test"], addresses=["127.0.0.1", "127.0.0.2"], clock=clock)
    server.add_a("www.example.test", "127.0.0.7")
    server.put("alias.example.test", "CNAME", "b.alias.example.test.")
    server.put("b.alias.example.test", "CNAME", "www.sub.example.test.")
    server.put("lost.example.test", "CNAME", "nothing.sub.example.test.")
    server.put("abroad.example.test", "CNAME", "www.elsewhere.invalid.")
    server.put("loop.example.test", "CNAME", "loop.example.test.")
    server.put("away.example.test", "NS", "ns.away.example.test.", "ns.elsewhere.invalid.")
    server.add_a("ns.away.example.test", "127.0.0.9")
    server.put("*.wild.example.test", "A", "127.0.0.8")
    server.add_a("www.sub.example.test", "127.0.0.6")
    server.set_txt("a.b.c.example.test", ["deep"])
    async with server:
        yield server


async def ask(
    server: DevelopmentDns, name: str, rdtype: str, *, at: str = "127.0.0.1", over_tcp: bool = False, payload: int = 0
) -> dns.message.Message:
    query = dns.message.make_query(name, rdtype, use_edns=0 if payload else False, payload=payload or 1232)
    exchange = dns.asyncquery.tcp if over_tcp else dns.asyncquery.udp
    return await exchange(query, at, port=server.port, timeout=5)


def lines(section: list[dns.rrset.RRset]) -> list[str]:
    """Sets in their order; records of a set have none."""
    return [
        f"{rrset.name.to_text(True)} {dns.rdatatype.to_text(rrset.rdtype)} {record}"
        for rrset in section
        for record in sorted(str(each) for each in rrset)
    ]


@pytest.mark.parametrize("over_tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize(
    ("name", "rdtype", "rcode", "answer"),
    [
        ("www.example.test", "A", "NOERROR", ["www.example.test A 127.0.0.7"]),
        ("WWW.Example.TEST", "A", "NOERROR", ["WWW.Example.TEST A 127.0.0.7"]),
        ("example.test", "NS", "NOERROR", ["example.test NS ns1.example.test.", "example.test NS ns2.example.test."]),
        ("ns2.example.test", "A", "NOERROR", ["ns2.example.test A 127.0.0.2"]),
        ("www.example.test", "AAAA", "NOERROR", []),
        ("c.example.test", "TXT", "NOERROR", []),
        ("a.b.c.example.test", "TXT", "NOERROR", ['a.b.c.example.test TXT "deep"']),
        ("nothing.example.test", "TXT", "NXDOMAIN", []),
        ("x.y.wild.example.test", "A", "NOERROR", ["x.y.wild.example.test A 127.0.0.8"]),
        ("x.wild.example.test", "TXT", "NOERROR", []),
        ("alias.example.test", "CNAME", "NOERROR", ["alias.example.test CNAME b.alias.example.test."]),
        ("abroad.example.test", "A", "NOERROR", ["abroad.example.test CNAME www.elsewhere.invalid."]),
        ("lost.example.test", "A", "NXDOMAIN", ["lost.example.test CNAME nothing.sub.example.test."]),
    ],
)
async def test_answers_are_those_of_an_authoritative_server(
    server: DevelopmentDns, name: str, rdtype: str, rcode: str, answer: list[str], over_tcp: bool
) -> None:
    """Clients judge propagation by these details: AA, NODATA against NXDOMAIN, SOA in denials."""
    found = await ask(server, name, rdtype, over_tcp=over_tcp)
    assert (dns.rcode.to_text(found.rcode()), lines(found.answer)) == (rcode, answer)
    assert found.flags & dns.flags.AA
    assert not found.flags & dns.flags.RA
    is_denial = not answer or rcode == "NXDOMAIN"
    assert [dns.rdatatype.to_text(each.rdtype) for each in found.authority] == (["SOA"] if is_denial else [])


async def test_cnames_are_followed_through_all_zones(server: DevelopmentDns) -> None:
    """A CA's resolver sees the whole chain in one answer."""
    found = await ask(server, "alias.example.test", "A")
    assert lines(found.answer) == [
        "alias.example.test CNAME b.alias.example.test.",
        "b.alias.example.test CNAME www.sub.example.test.",
        "www.sub.example.test A 127.0.0.6",
    ]
    assert (await ask(server, "loop.example.test", "A")).rcode() == dns.rcode.NOERROR


async def test_a_delegation_is_referred_to_with_glue(server: DevelopmentDns) -> None:
    """A referral is no answer: no AA, and the name servers stand in the authority section."""
    found = await ask(server, "www.away.example.test", "TXT")
    assert not found.flags & dns.flags.AA
    assert lines(found.authority) == [
        "away.example.test NS ns.away.example.test.",
        "away.example.test NS ns.elsewhere.invalid.",
    ]
    assert lines(found.additional) == ["ns.away.example.test A 127.0.0.9"]


async def test_other_peoples_zones_are_refused(server: DevelopmentDns) -> None:
    """It is no resolver for the world; neither does it hand out whole zones."""
    found = await ask(server, "www.elsewhere.invalid", "A")
    assert found.rcode() == dns.rcode.REFUSED
    assert not found.flags & dns.flags.AA
    assert (await ask(server, "example.test", "AXFR", over_tcp=True)).rcode() == dns.rcode.REFUSED


@pytest.mark.parametrize(
    ("payload", "values", "is_cut"), [(0, 3, True), (0, 1, False), (1232, 3, False), (4096, 9, True)]
)
async def test_answers_too_large_for_a_datagram_are_cut(
    server: DevelopmentDns, payload: int, values: int, is_cut: bool
) -> None:
    """512 bytes without EDNS, what the client takes with it, and never more than gets through unfragmented."""
    wished = {f"{number}{'x' * 254}" for number in range(values)}
    server.set_txt("big.example.test", sorted(wished))
    found = await ask(server, "big.example.test", "TXT", payload=payload)
    assert bool(found.flags & dns.flags.TC) == is_cut
    whole = await ask(server, "big.example.test", "TXT", payload=payload, over_tcp=True)
    assert {record.strings[0].decode() for record in whole.answer[0]} == wished


async def test_unknown_versions_and_garbage_are_answered_as_such(server: DevelopmentDns) -> None:
    """Clients fall back by these statuses."""
    query = dns.message.make_query("www.example.test", "A", use_edns=1)
    assert (await dns.asyncquery.udp(query, "127.0.0.1", port=server.port, timeout=5)).rcode() == dns.rcode.BADVERS
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    garbage = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xff"
    writer.write(len(garbage).to_bytes(2, "big") + garbage)
    async with asyncio.timeout(5):
        answer = dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        assert (answer.id, answer.rcode()) == (0x1234, dns.rcode.FORMERR)
        # An answer is no question: two servers must not be able to talk to each other for ever.
        writer.write(len(garbage).to_bytes(2, "big") + b"\x12\x34\x81" + garbage[3:])
        assert await reader.read() == b""
    writer.close()


async def test_hosts_without_an_address_get_the_default_one(server: DevelopmentDns) -> None:
    """A CA that validates by http-01 asks for addresses; nobody wants to list all names of a test."""
    server.default_address = "127.0.0.1"
    assert lines((await ask(server, "any.thing.example.test", "A")).answer) == ["any.thing.example.test A 127.0.0.1"]
    assert lines((await ask(server, "www.example.test", "A")).answer) == ["www.example.test A 127.0.0.7"]
    for name, rdtype in (("any.example.test", "AAAA"), ("any.example.test", "CAA"), ("www.example.test", "CAA")):
        found = await ask(server, name, rdtype)
        assert (found.rcode(), found.answer) == (dns.rcode.NOERROR, [])
    assert (await ask(server, "_acme-challenge.any.example.test", "TXT")).rcode() == dns.rcode.NXDOMAIN
    assert (await ask(server, "example.test", "A")).answer == []


async def test_values_are_set_and_told_in_process(server: DevelopmentDns) -> None:
    """What a fake provider holds is shown to the CA this way, odd texts included."""
    odd = ['say "hello", c:\\new', "x" * 300]
    server.set_txt("_acme-challenge.example.test", odd)
    assert server.txt("_acme-challenge.example.test.") == tuple(odd)
    found = await ask(server, "_acme-challenge.example.test", "TXT", over_tcp=True)
    assert {b"".join(record.strings).decode() for record in found.answer[0]} == set(odd)
    server.set_txt("_acme-challenge.example.test", [])
    assert (await ask(server, "_acme-challenge.example.test", "TXT")).rcode() == dns.rcode.NXDOMAIN
    with pytest.raises(LookupError):
        server.set_txt("www.elsewhere.invalid", ["x"])


async def test_every_change_counts_the_serial_up(server: DevelopmentDns) -> None:
    """Secondaries, and people, see by it that something has changed."""
    before = (await ask(server, "example.test", "SOA")).answer[0][0].serial
    server.add_a("new.example.test", "127.0.0.1")
    assert (await ask(server, "example.test", "SOA")).answer[0][0].serial == before + 1


async def test_a_zone_comes_and_goes(server: DevelopmentDns) -> None:
    """Zones are deleted while values are still to be cleaned up."""
    server.remove_zone("sub.example.test")
    assert (await ask(server, "www.sub.example.test", "A")).rcode() == dns.rcode.NXDOMAIN
    server.add_zone("sub.example.test")
    assert lines((await ask(server, "sub.example.test", "SOA")).answer)[0].startswith("sub.example.test SOA ns1.sub")


# Several servers


async def seen_at(server: DevelopmentDns, at: str) -> tuple[str, ...]:
    found = await ask(server, "_acme-challenge.example.test", "TXT", at=at)
    values = tuple(record.strings[0].decode() for rrset in found.answer for record in rrset)
    assert values == server.txt("_acme-challenge.example.test", at)
    return values


async def test_a_lagging_server_shows_each_change_later(server: DevelopmentDns, clock: HandClock) -> None:
    """Propagation is waited for because secondaries are like this."""
    server.lag("127.0.0.2", 30)
    for number in range(3):
        server.set_txt("_acme-challenge.example.test", [f"{number}"])
        clock.seconds += 10
    assert await seen_at(server, "127.0.0.1") == ("2",)
    assert await seen_at(server, "127.0.0.2") == ("0",)
    clock.seconds += 10
    assert await seen_at(server, "127.0.0.2") == ("1",)
    clock.seconds += 10
    assert await seen_at(server, "127.0.0.2") == ("2",)
    server.set_txt("_acme-challenge.example.test", ["3"])
    server.lag("127.0.0.2", 0)
    assert await seen_at(server, "127.0.0.2") == ("3",)


async def test_a_held_server_shows_nothing_new_until_it_is_released(server: DevelopmentDns) -> None:
    """A secondary that never follows is how propagation fails."""
    server.hold("127.0.0.2")
    server.set_txt("_acme-challenge.example.test", ["new"])
    assert (await seen_at(server, "127.0.0.1"), await seen_at(server, "127.0.0.2")) == (("new",), ())
    server.release("127.0.0.2")
    assert await seen_at(server, "127.0.0.2") == ("new",)


async def test_an_unknown_server_is_an_error(server: DevelopmentDns) -> None:
    """A misspelt address would lag nowhere."""
    with pytest.raises(KeyError):
        server.lag("127.0.0.3", 1)
    with pytest.raises(KeyError):
        server.hold("127.0.0.3")


async def test_it_serves_ipv6_too() -> None:
    """The same port there."""
    async with DevelopmentDns(["example.test"], addresses=["::1", "127.0.0.1"]) as server:
        assert server.address == f"[::1]:{server.port}"
        for over_tcp in (False, True):
            found = await ask(server, "ns1.example.test", "AAAA", at="::1", over_tcp=over_tcp)
            assert lines(found.answer) == ["ns1.example.test AAAA ::1"]


# Faults


async def test_faults_strike_as_often_as_they_are_meant(server: DevelopmentDns) -> None:
    """What a client does after one bad answer is seen only if the next one is good."""
    server.fail(Fault(rcode="REFUSED"), times=2)
    rcodes = [(await ask(server, "www.example.test", "A")).rcode() for _ in range(3)]
    assert rcodes == [dns.rcode.REFUSED, dns.rcode.REFUSED, dns.rcode.NOERROR]
    server.fail(Fault(), times=5)
    server.fail(Fault(), times=0)
    assert (await ask(server, "www.example.test", "A")).rcode() == dns.rcode.NOERROR
    server.fail(Fault(updates_only=True))
    assert (await ask(server, "www.example.test", "A")).rcode() == dns.rcode.NOERROR
    assert [each.rdtype for each in server.seen] == ["A"] * 5


@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
async def test_a_dropped_connection_ends_without_an_answer(server: DevelopmentDns, kind: str) -> None:
    """It ends at once, so clients need not wait for a deadline."""
    server.fail(Fault(kind=kind))  # type: ignore[arg-type]  # one of its literals
    with pytest.raises((EOFError, ConnectionError)):
        await ask(server, "www.example.test", "A", over_tcp=True)


async def test_it_closes_with_a_client_that_it_never_answers() -> None:
    """Whoever waits for a hanging server must not keep a test from ending."""
    async with DevelopmentDns(["example.test"]) as server:
        server.fail(Fault(kind="hang"))
        waiting = asyncio.create_task(ask(server, "example.test", "SOA", over_tcp=True))
        async with asyncio.timeout(5):
            while not server.seen:  # noqa: ASYNC110  # it tells nobody when something comes in
                await asyncio.sleep(0)
    with pytest.raises((EOFError, ConnectionError)):
        await waiting

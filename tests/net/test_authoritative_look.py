"""Verdicts on real BIND servers, on one that is silent, and on addresses where there is nothing."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.model.dns import Delegation, NameServer
from scaivaultd.net import dns_exchange
from scaivaultd.net.authoritative import AuthoritativeDns
from scaivaultd.net.dns_exchange import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.dns import ServerVerdict

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATIENCE = Patience(udp_seconds=0.4, tcp_seconds=1.0)
NAME = "values.example.test"


@pytest.fixture
def dns(world: Any, clock: Any, log: FilteringBoundLogger) -> AuthoritativeDns:
    return AuthoritativeDns([world.resolver], authoritative_port=world.port, clock=clock, log=log, patience=PATIENCE)


@pytest.fixture
def look_at(dns: AuthoritativeDns) -> Callable[..., Any]:
    """The verdicts on some addresses, as servers of example.test."""

    async def look(
        *addresses: str, name: str = NAME, values: Sequence[str] = ("one", "two")
    ) -> Sequence[ServerVerdict]:
        server = NameServer(name="ns.example.test", addresses=addresses)
        return await dns.look(Delegation(zone="example.test", servers=(server,)), name, values)

    return look


async def test_a_secondary_that_lags_is_told_by_its_serial(world: Any, dns: AuthoritativeDns) -> None:
    """The CA may ask just this one; the serial shows that it was not told of the change."""
    route = await dns.route("_acme-challenge.example.test")
    first, second = await dns.look(route.delegation, NAME, ["one", "two"])
    assert (first.server, first.address) == ("ns1.example.test", world.at(world.FIRST))
    assert (first.answer, first.detail) == ("complete", "NOERROR, has 2 of 2 values (and 1 other)")
    assert (second.server, second.address) == ("ns2.example.test", world.at(world.SECOND))
    assert (second.answer, second.detail, second.serial) == ("partial", "NOERROR, has 1 of 2 values", 19)


async def test_many_values_are_fetched_over_tcp(world: Any, look_at: Callable[..., Any]) -> None:
    """Values pile up where cleaning fails; then an answer does not fit into a datagram."""
    wanted = ["{:02}-{}{}".format(number, "x" * 200, "y" * 40) for number in range(40)]
    (verdict,) = await look_at(world.FIRST, name="big.example.test", values=wanted)
    assert (verdict.answer, verdict.detail) == ("complete", "NOERROR, has 40 of 40 values")


async def test_ipv6_addresses_are_asked(world: Any, look_at: Callable[..., Any]) -> None:
    """CAs prefer IPv6 where there is some."""
    (verdict,) = await look_at("::1")
    assert (verdict.address, verdict.answer) == (f"[::1]:{world.port}", "complete")


@pytest.mark.parametrize(
    ("server", "name", "answer", "detail"),
    [
        ("FIRST", "nothing.example.test", "absent", "NXDOMAIN"),
        ("FIRST", "www.example.test", "absent", "NOERROR, no TXT records"),
        ("FIRST", "loop1.example.test", "absent", "a CNAME to loop2.example.test stands there now"),
        ("FIRST", "x.sub.example.test", "not_authoritative", "NOERROR without authority (lame)"),
        ("STRANGER", NAME, "refused", "REFUSED"),
        ("SILENT", NAME, "unreachable", "no answer within 0.4 s"),
        ("CLOSED", NAME, "unreachable", "connection refused"),
    ],
)
async def test_each_trouble_has_its_verdict(
    world: Any, look_at: Callable[..., Any], server: str, name: str, answer: str, detail: str
) -> None:
    """What stands in the order's error is all that a person at 3 a.m. has."""
    (verdict,) = await look_at(getattr(world, server), name=name)
    assert verdict.answer == answer
    assert detail in verdict.detail


async def test_a_server_without_address_is_not_forgotten(dns: AuthoritativeDns) -> None:
    """It would look as if all servers agreed."""
    delegation = Delegation(zone="example.test", servers=(NameServer(name="ns.gone.test", error="NXDOMAIN"),))
    (verdict,) = await dns.look(delegation, NAME, ["one"])
    assert (verdict.server, verdict.answer, verdict.detail) == ("ns.gone.test", "failed", "NXDOMAIN")


@pytest.mark.parametrize(
    ("number", "answer", "detail"),
    [
        (errno.ENETUNREACH, "skipped", "this host has no IPv6 route"),
        (errno.EADDRNOTAVAIL, "skipped", "this host has no IPv6 route"),
        (errno.EACCES, "unreachable", "permission denied"),
    ],
)
async def test_an_address_family_without_route_is_skipped(
    look_at: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, number: int, answer: str, detail: str
) -> None:
    """Hosts without IPv6 must be able to issue for zones whose servers have it; a firewall is another matter."""

    async def connect(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    # Whether this host has a route is not for a test to choose, so the kernel's answer is given for it.
    monkeypatch.setattr(asyncio.get_running_loop(), "create_datagram_endpoint", connect)
    (verdict,) = await look_at("2001:db8::53")
    assert (verdict.answer, verdict.detail) == (answer, detail)


async def test_many_addresses_are_asked_side_by_side(world: Any, look_at: Callable[..., Any]) -> None:
    """A look takes as long as its slowest server, however many are silent; far more than are asked at once."""
    verdicts = await look_at(*[world.FIRST] * 60, *[world.SILENT] * 60)
    assert [each.answer for each in verdicts] == ["complete"] * 60 + ["unreachable"] * 60


async def test_resolvers_are_asked_as_such(world: Any, dns: AuthoritativeDns) -> None:
    """They answer from what they find out, without authority."""
    resolvers = [world.resolver, world.at(world.SILENT), world.at(world.CLOSED)]
    verdicts = await dns.look_at_resolvers(resolvers, NAME, ["one"])
    assert [each.answer for each in verdicts] == ["complete", "unreachable", "unreachable"]
    assert [each.server for each in verdicts] == resolvers


async def test_silent_servers_do_not_use_up_the_time_of_the_others(
    world: Any, clock: Any, log: FilteringBoundLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a hundred names to look at, the dead ones fill every place; who waits for one is not mute."""
    monkeypatch.setattr(dns_exchange, "IN_FLIGHT_MAX", 2)
    patience = Patience(udp_seconds=0.2, tcp_seconds=1.0, look_seconds=0.7)
    crowded = AuthoritativeDns([world.resolver], authoritative_port=world.port, clock=clock, log=log, patience=patience)
    dead = NameServer(name="ns.silent", addresses=(world.SILENT,) * 8)
    live = NameServer(name="ns1.example.test", addresses=(world.FIRST,))
    verdicts = await crowded.look(Delegation(zone="example.test", servers=(dead, live)), NAME, ("one", "two"))
    assert [each.answer for each in verdicts] == ["unreachable"] * 8 + ["complete"]


async def test_an_address_that_cannot_be_one_is_a_verdict(dns: AuthoritativeDns) -> None:
    """An IPv6 zone may be any text; it is looked up like a name, and some texts are refused there."""
    (verdict,) = await dns.look_at_resolvers([f"fe80::1%{'é' * 80}"], NAME, ("one",))
    assert (verdict.answer, verdict.detail) == ("unreachable", "no such address")

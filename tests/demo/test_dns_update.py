"""Dynamic updates to the development DNS server: RFC 2136 and TSIG as BIND does them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import dns.asyncquery
import dns.message
import dns.rcode
import dns.tsig
import dns.update
import pytest

from scaivaultd.demo.dns import DevelopmentDns, Fault
from scaivaultd.model.clock import SystemClock

SECRET = "b25lIHNlY3JldCBvZiB0aGlydHktdHdvIGJ5dGVzLi4="
OTHER_SECRET = "YW5vdGhlciBzZWNyZXQgb2YgdGhpcnR5LXR3byBieXQ="
KEY = dns.tsig.Key("key", SECRET)

Change = Callable[[dns.update.UpdateMessage], None]


@pytest.fixture
async def server() -> AsyncIterator[DevelopmentDns]:
    server = DevelopmentDns(
        ["example.test", "sub.example.test"], addresses=["127.0.0.1", "127.0.0.2"], keys={"key": SECRET}
    )
    server.put("alias.example.test", "CNAME", "www.elsewhere.invalid.")
    server.set_txt("set.example.test", ["one", "two"], ttl=777)
    server.add_a("set.example.test", "127.0.0.1")
    async with server:
        yield server


async def update(
    server: DevelopmentDns,
    change: Change,
    *,
    zone: str = "example.test",
    key: dns.tsig.Key | None = KEY,
    at: str = "127.0.0.1",
) -> str:
    """Send, and return the status; answers to signed updates have to be signed."""
    message = dns.update.UpdateMessage(zone, keyring=key)
    change(message)
    answer = await dns.asyncquery.tcp(message, at, port=server.port, timeout=5)
    assert answer.had_tsig == (key is not None)
    return dns.rcode.to_text(answer.rcode())


async def exists(server: DevelopmentDns, name: str, rdtype: str) -> bool:
    answer = await dns.asyncquery.udp(dns.message.make_query(name, rdtype), "127.0.0.1", port=server.port, timeout=5)
    return bool(answer.answer)


async def test_records_are_added_beside_those_that_are_there(server: DevelopmentDns) -> None:
    """A set gets the TTL of what is added last, as at BIND; the same record twice is one."""
    for _ in range(2):
        assert await update(server, lambda message: message.add("set", 60, "TXT", "three", "one")) == "NOERROR"
    assert set(server.txt("set.example.test")) == {"one", "two", "three"}
    query = dns.message.make_query("set.example.test", "TXT")
    assert (await dns.asyncquery.udp(query, "127.0.0.1", port=server.port, timeout=5)).answer[0].ttl == 60


@pytest.mark.parametrize(
    ("change", "txt", "has_address"),
    [
        (lambda message: message.delete("set", "TXT", "one"), ("two",), True),
        (lambda message: message.delete("set", "TXT", "other"), ("one", "two"), True),
        (lambda message: message.delete("set", "TXT"), (), True),
        (lambda message: message.delete("set"), (), False),
        (lambda message: message.delete("nothing", "TXT", "one"), ("one", "two"), True),
    ],
    ids=["record", "absent record", "set", "name", "absent name"],
)
async def test_what_is_deleted_is_gone_and_nothing_else(
    server: DevelopmentDns, change: Change, txt: tuple[str, ...], has_address: bool
) -> None:
    """Deleting what is not there is no error."""
    assert await update(server, change) == "NOERROR"
    assert server.txt("set.example.test") == txt
    assert await exists(server, "set.example.test", "A") == has_address


async def test_a_zone_keeps_its_soa_and_name_servers(server: DevelopmentDns) -> None:
    """A zone without them is none."""
    assert await update(server, lambda message: message.delete("@")) == "NOERROR"
    assert await update(server, lambda message: message.delete("@", "NS")) == "NOERROR"
    assert await exists(server, "example.test", "SOA")
    assert await exists(server, "example.test", "NS")


async def test_a_cname_lets_nothing_stand_beside_it(server: DevelopmentDns) -> None:
    """In silence, both ways (RFC 2136 section 3.4.2.2): the trap that clients have to know."""
    assert await update(server, lambda message: message.add("alias", 60, "TXT", "one")) == "NOERROR"
    assert server.txt("alias.example.test") == ()
    assert await update(server, lambda message: message.add("set", 60, "CNAME", "www")) == "NOERROR"
    assert not await exists(server, "set.example.test", "CNAME")


@pytest.mark.parametrize(
    ("change", "rcode"),
    [
        (lambda message: message.present("set"), "NOERROR"),
        (lambda message: message.present("nothing"), "NXDOMAIN"),
        (lambda message: message.present("set", "TXT"), "NOERROR"),
        (lambda message: message.present("set", "CAA"), "NXRRSET"),
        (lambda message: message.absent("nothing"), "NOERROR"),
        (lambda message: message.absent("set"), "YXDOMAIN"),
        (lambda message: message.absent("set", "CAA"), "NOERROR"),
        (lambda message: message.absent("set", "TXT"), "YXRRSET"),
        (lambda message: message.present("set", "TXT", "one"), "NOTIMP"),
        (lambda message: message.absent("www.elsewhere.invalid."), "NOTZONE"),
        (lambda message: message.add("www.elsewhere.invalid.", 60, "TXT", "x"), "NOTZONE"),
    ],
)
async def test_all_or_nothing_is_done(server: DevelopmentDns, change: Change, rcode: str) -> None:
    """An update whose conditions do not hold changes nothing, not even the part that could be done."""

    def with_an_addition(message: dns.update.UpdateMessage) -> None:
        message.add("new", 60, "TXT", "new")
        change(message)

    assert await update(server, with_an_addition) == rcode
    assert server.txt("new.example.test") == (("new",) if rcode == "NOERROR" else ())


async def test_only_the_very_name_of_a_zone_will_do(server: DevelopmentDns) -> None:
    """And what is put into a zone above is not served where there is a closer one."""
    assert await update(server, lambda message: message.add("@", 60, "TXT", "x"), zone="set.example.test") == "NOTAUTH"
    assert await update(server, lambda message: message.add("@", 60, "TXT", "x"), zone="elsewhere.invalid") == "NOTAUTH"
    assert await update(server, lambda message: message.add("www.sub", 60, "TXT", "lost")) == "NOERROR"
    assert not await exists(server, "www.sub.example.test", "TXT")


async def test_only_signed_updates_to_the_primary_are_taken(server: DevelopmentDns) -> None:
    """Everybody on the machine can reach the port."""
    addition: Change = lambda message: message.add("new", 60, "TXT", "x")  # noqa: E731  # used twice, a word each
    assert await update(server, addition, key=None) == "REFUSED"
    assert await update(server, addition, at="127.0.0.2") == "REFUSED"
    assert server.txt("new.example.test") == ()


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (dns.tsig.Key("other", SECRET), dns.tsig.PeerBadKey),
        (dns.tsig.Key("key", SECRET, "hmac-sha512"), dns.tsig.PeerBadKey),
        (dns.tsig.Key("key", OTHER_SECRET), dns.tsig.PeerBadSignature),
    ],
    ids=["name", "algorithm", "secret"],
)
async def test_wrong_keys_are_told_apart(server: DevelopmentDns, key: dns.tsig.Key, error: type[Exception]) -> None:
    """For questions as for updates: clients tell people which setting to look at."""
    with pytest.raises(error):
        await update(server, lambda message: message.add("new", 60, "TXT", "x"), key=key)
    query = dns.message.make_query("example.test", "SOA")
    query.use_tsig(key)
    with pytest.raises(error):
        await dns.asyncquery.udp(query, "127.0.0.1", port=server.port, timeout=5)
    assert server.txt("new.example.test") == ()


@pytest.mark.parametrize("seconds", [-400, -200, 200, 400])
async def test_clocks_more_than_300_seconds_apart_are_refused(seconds: int) -> None:
    """The answer is signed, and holds the server's time (RFC 8945 section 5.2.3)."""

    class OtherClock(SystemClock):
        def now(self) -> datetime:
            return datetime.now(UTC) + timedelta(seconds=seconds)

    async with DevelopmentDns(["example.test"], keys={"key": SECRET}, clock=OtherClock()) as server:
        if abs(seconds) < 300:
            assert await update(server, lambda message: message.add("new", 60, "TXT", "x")) == "NOERROR"
        else:
            with pytest.raises(dns.tsig.PeerBadTime):
                await update(server, lambda message: message.add("new", 60, "TXT", "x"))
            assert server.txt("new.example.test") == ()


@pytest.mark.parametrize(("kind", "expected"), [("drop_before", ()), ("drop_after", ("x",)), ("status", ())])
async def test_faults_differ_in_whether_the_update_is_carried_out(
    server: DevelopmentDns, kind: str, expected: tuple[str, ...]
) -> None:
    """A lost answer is another thing than a lost request."""
    server.fail(Fault(kind=kind, updates_only=True))  # type: ignore[arg-type]  # one of its literals
    addition: Change = lambda message: message.add("new", 60, "TXT", "x")  # noqa: E731  # used twice, a word each
    if kind == "status":
        assert await update(server, addition) == "SERVFAIL"
    else:
        with pytest.raises((EOFError, ConnectionError)):
            await update(server, addition)
    assert server.txt("new.example.test") == expected

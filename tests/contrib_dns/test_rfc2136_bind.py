"""`rfc2136` against a real BIND: what it merges, refuses, and ignores without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.message
import dns.rrset
import msgspec
import pytest
from scaivaultd_contrib_dns import rfc2136

from scaivaultd.plugin import (
    Checkable,
    DnsProvider,
    PermanentError,
    ProviderAuthError,
    TransientError,
    Zone,
    ZoneNotFound,
)
from scaivaultd.plugin.testing import FixedSecrets, JumpingClock, RecordingLog, make_context
from tests.fakes.bind import Bind, Key, zone_text
from tests.fakes.bind import Zone as BindZone

SECRET = "b25lIHNlY3JldCBvZiB0aGlydHktdHdvIGJ5dGVzLi4="
OTHER_SECRET = "YW5vdGhlciBzZWNyZXQgb2YgdGhpcnR5LXR3byBieXQ="
KEY = Key("acme.key", SECRET)
NARROW_KEY = Key("narrow", SECRET)
OLD_KEY = Key("old", SECRET, "hmac-md5")
NAME = "_acme-challenge.www.example.test"
POLICY = (
    'grant "acme.key" zonesub TXT; grant "old" zonesub TXT; grant "narrow" name _acme-challenge.host.example.test. TXT;'
)
RECORDS = """\
@ NS ns
ns A 127.0.0.1
sub NS ns
_acme-challenge.own NS ns
away NS ns.elsewhere.invalid.
_acme-challenge.alias CNAME www.delegated.invalid.
_acme-challenge.long 777 TXT "of somebody else"
"""


def zones() -> list[BindZone]:
    small = zone_text("@ NS ns.example.test.")
    return [
        BindZone("example.test", zone_text(RECORDS), update_policy=POLICY),
        BindZone("sub.example.test", small, update_policy=POLICY),
        BindZone("_acme-challenge.own.example.test", small, update_policy=POLICY),
        BindZone("open.test", zone_text("@ NS ns.example.test."), more="allow-update { 127.0.0.1; };"),
    ]


@pytest.fixture
async def bind(tmp_path: Path) -> AsyncIterator[Bind]:
    keys = [KEY, NARROW_KEY, OLD_KEY]
    async with Bind(tmp_path, zones(), addresses=["127.0.0.1", "::1"], keys=keys) as bind:
        yield bind


def opened(
    bind: Bind,
    *,
    secret: str = SECRET,
    clock: JumpingClock | None = None,
    log: RecordingLog | None = None,
    without: tuple[str, ...] = (),
    **settings: Any,
) -> AbstractAsyncContextManager[DnsProvider]:
    kind = next(iter(rfc2136.scaivaultd_dns_providers()))
    config = {"server": "127.0.0.1", "port": bind.port, "tsig_key_name": "acme.key", "tsig_secret_path": "tsig"}
    kept = {name: value for name, value in {**config, **settings}.items() if name not in without}
    context = make_context(FixedSecrets({"tsig": secret}), clock=clock, log=log)
    return kind.open(msgspec.convert(kept, kind.settings), context)


async def check(provider: DnsProvider) -> None:
    assert isinstance(provider, Checkable)
    await provider.check()


async def txt(bind: Bind, name: str) -> dns.rrset.RRset | None:
    query = dns.message.make_query(name, "TXT")
    answer = await dns.asyncquery.tcp(query, "127.0.0.1", port=bind.port, timeout=5)
    return next((each for each in answer.answer if each.name == query.question[0].name), None)


async def values(bind: Bind, name: str) -> set[str]:
    return {b"".join(record.strings).decode() for record in await txt(bind, name) or ()}


async def test_twenty_orders_for_one_name_lose_no_value(bind: Bind) -> None:
    """Updates of single values merge at the server: no order has to wait for another."""
    wished = {f"value-{number}" for number in range(20)}
    async with opened(bind) as one, opened(bind) as other:
        zone = await one.find_zone(NAME)
        async with asyncio.TaskGroup() as tasks:
            for number, value in enumerate(wished):
                tasks.create_task((one, other)[number % 2].add_txt(zone, NAME, [value], 60))
        assert await values(bind, NAME) == wished
        async with asyncio.TaskGroup() as tasks:
            for value in wished - {"value-7"}:
                tasks.create_task(one.remove_txt(zone, NAME, [value], None))
    assert await values(bind, NAME) == {"value-7"}


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("server", ["127.0.0.1", "::1", "[::1]", "localhost"])
async def test_every_way_to_the_server_works(bind: Bind, server: str, transport: str) -> None:
    """IPv6 literals, host names and datagrams are how people reach their servers."""
    async with opened(bind, server=server, transport=transport) as provider:
        zone = await provider.find_zone(NAME)
        await provider.add_txt(zone, NAME, ["one", "two"], 60)
        assert await values(bind, NAME) == {"one", "two"}
        await provider.remove_txt(zone, NAME, ["one"], None)
    assert await values(bind, NAME) == {"two"}


async def test_a_set_too_large_for_a_datagram_is_read_by_tcp(bind: Bind) -> None:
    """A truncated answer to the look afterwards must not pass for missing values."""
    wished = {f"{number}-{'x' * 200}" for number in range(10)}
    async with opened(bind, transport="udp") as provider:
        await provider.add_txt(Zone(name="example.test"), NAME, sorted(wished), 60)
    assert await values(bind, NAME) == wished


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        (NAME, "example.test"),
        ("_acme-challenge.a.b.c.example.test", "example.test"),
        ("_acme-challenge.x.sub.example.test", "sub.example.test"),
        ("_acme-challenge.own.example.test", "_acme-challenge.own.example.test"),
        ("_acme-challenge.alias.example.test", "example.test"),
        ("example.test", "example.test"),
    ],
)
async def test_the_zone_is_the_closest_that_the_server_has(bind: Bind, name: str, zone: str) -> None:
    """BIND takes an update sent to the zone above, answers NOERROR, and never serves it."""
    async with opened(bind) as provider:
        assert (await provider.find_zone(name)).name == zone


async def test_a_zone_of_the_challenge_name_itself_is_written(bind: Bind) -> None:
    """The record stands at the zone's own name then."""
    name = "_acme-challenge.own.example.test"
    async with opened(bind) as provider:
        await provider.add_txt(await provider.find_zone(name), name, ["one"], 60)
    assert await values(bind, name) == {"one"}


async def test_a_name_that_is_delegated_away_is_not_in_the_zone_above(bind: Bind) -> None:
    """The server would take the update and never serve it; who asks must look elsewhere."""
    async with opened(bind) as provider:
        with pytest.raises(ZoneNotFound, match=r"away\.example\.test.*delegates to ns\.elsewhere\.invalid"):
            await provider.find_zone("_acme-challenge.www.away.example.test")
        with pytest.raises(PermanentError, match=r"below a delegation in example\.test"):
            await provider.add_txt(Zone(name="example.test"), "_acme-challenge.www.away.example.test", ["one"], 60)


async def test_an_update_that_goes_to_the_zone_above_is_noticed(bind: Bind) -> None:
    """NOERROR proves nothing: only a look afterwards does."""
    async with opened(bind, zone="example.test", max_retries=1) as provider:
        name = "_acme-challenge.x.sub.example.test"
        with pytest.raises(TransientError, match=r"may be in another zone than example\.test"):
            await provider.add_txt(await provider.find_zone(name), name, ["one"], 60)


async def test_a_cname_at_the_name_is_told(bind: Bind) -> None:
    """BIND ignores the TXT record and says NOERROR."""
    name = "_acme-challenge.alias.example.test"
    async with opened(bind) as provider:
        with pytest.raises(PermanentError, match=r"is a CNAME to www\.delegated\.invalid"):
            await provider.add_txt(Zone(name="example.test"), name, ["one"], 60)


async def test_the_ttl_of_an_existing_set_is_kept(bind: Bind) -> None:
    """BIND gives the whole set the TTL of the last record added, and other people's records are in it."""
    name = "_acme-challenge.long.example.test"
    async with opened(bind) as provider:
        await provider.add_txt(Zone(name="example.test"), name, ["one"], 60)
        found = await txt(bind, name)
        assert found is not None
        assert (found.ttl, len(found)) == (777, 2)
        await provider.remove_txt(Zone(name="example.test"), name, ["one"], None)
    found = await txt(bind, name)
    assert found is not None
    assert (found.ttl, await values(bind, name)) == (777, {"of somebody else"})


async def test_a_key_with_few_rights_writes_what_it_may_and_says_what_it_may_not(bind: Bind) -> None:
    """The policy that we recommend must work, and its refusal must name the way out."""
    async with opened(bind, tsig_key_name="narrow") as provider:
        zone = Zone(name="example.test")
        await provider.add_txt(zone, "_acme-challenge.host.example.test", ["one"], 60)
        with pytest.raises(ProviderAuthError, match=r"TSIG key narrow, which it knows \(REFUSED\)"):
            await provider.add_txt(zone, NAME, ["one"], 60)
        await check(provider)
    assert await values(bind, "_acme-challenge.host.example.test") == {"one"}


@pytest.mark.parametrize(
    ("wrong", "secret", "told"),
    [
        ({"tsig_key_name": "acme"}, SECRET, r"does not know the TSIG key acme \(hmac-sha256\) \(BADKEY\)"),
        ({"tsig_algorithm": "hmac-sha512"}, SECRET, r"TSIG key acme\.key \(hmac-sha512\) \(BADKEY\)"),
        ({}, OTHER_SECRET, r"not with this secret \(BADSIG\)"),
    ],
    ids=["name", "algorithm", "secret"],
)
@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_what_is_wrong_with_a_key_is_told(
    bind: Bind, transport: str, wrong: dict[str, Any], secret: str, told: str
) -> None:
    """NOTAUTH alone helps nobody; the TSIG error says which of three settings to look at."""
    async with opened(bind, secret=secret, transport=transport, **wrong) as provider:
        for call in (
            provider.find_zone(NAME),
            provider.add_txt(Zone(name="example.test"), NAME, ["one"], 60),
            provider.remove_txt(Zone(name="example.test"), NAME, ["one"], None),
            check(provider),
        ):
            with pytest.raises(ProviderAuthError, match=told) as caught:
                await call
            assert secret not in str(caught.value)


async def test_md5_works_when_it_is_named_and_is_complained_of(bind: Bind) -> None:
    """Old servers know nothing else; nobody should stay with it by accident."""
    log = RecordingLog()
    async with opened(bind, tsig_key_name="old", tsig_algorithm="hmac-md5", log=log) as provider:
        await provider.add_txt(Zone(name="example.test"), NAME, ["one"], 60)
    assert await values(bind, NAME) == {"one"}
    assert any("warning dns_provider.weak_algorithm" in line for line in log.lines)


async def test_a_pasted_key_file_is_a_key(bind: Bind) -> None:
    """It is what `tsig-keygen` prints, and what people have at hand."""
    text = f"// of our server\n{KEY.clause()}"
    parts = ("tsig_key_name", "tsig_secret_path")
    async with opened(bind, secret=text, without=parts, tsig_keyfile_path="tsig") as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, ["one"], 60)
    assert await values(bind, NAME) == {"one"}


async def test_without_a_key_the_address_may_do_and_is_warned_of(bind: Bind) -> None:
    """Some servers go by addresses; where they do not, the refusal says that a key is missing."""
    log = RecordingLog()
    parts = ("tsig_key_name", "tsig_secret_path")
    async with opened(bind, without=parts, log=log) as provider:
        await provider.add_txt(await provider.find_zone("_acme-challenge.open.test"), "a.open.test", ["one"], 60)
        with pytest.raises(ProviderAuthError, match="without a TSIG key"):
            await provider.add_txt(Zone(name="example.test"), NAME, ["one"], 60)
    assert await values(bind, "a.open.test") == {"one"}
    assert any("warning dns_provider.unsigned_updates" in line for line in log.lines)


async def test_a_zone_that_is_none_is_told(bind: Bind) -> None:
    """`zone` set to a name inside a zone is a common mistake."""
    async with opened(bind, zone="www.example.test") as provider:
        with pytest.raises(ZoneNotFound, match=r"NOTAUTH"):
            await provider.add_txt(await provider.find_zone(NAME), NAME, ["one"], 60)
        with pytest.raises(ZoneNotFound, match=r"not authoritative for a zone www\.example\.test"):
            await check(provider)


async def test_a_server_that_comes_back_is_written(bind: Bind) -> None:
    """Servers are restarted; an order that waits a moment need not fail."""

    class WakingClock(JumpingClock):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds)
            await bind.start()

    await bind.stop()
    clock = WakingClock()
    async with opened(bind, clock=clock) as provider:
        await provider.add_txt(Zone(name="example.test"), NAME, ["one"], 60)
    assert len(clock.pauses) == 1
    assert await values(bind, NAME) == {"one"}


async def test_a_server_that_stays_away_is_told_as_a_passing_fault(bind: Bind) -> None:
    """The host decides how long to go on; every address and transport is named."""
    await bind.stop()
    for transport in ("tcp", "udp"):
        async with opened(bind, transport=transport, max_retries=1) as provider:
            with pytest.raises(TransientError, match=rf"no answer from 127\.0\.0\.1 port {bind.port} \({transport}\)"):
                await provider.find_zone(NAME)

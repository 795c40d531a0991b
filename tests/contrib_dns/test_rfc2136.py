"""`rfc2136`: keys, settings, views, and what its errors say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.tsig
import msgspec
import pytest
from scaivaultd_contrib_dns import rfc2136
from scaivaultd_contrib_dns.rfc2136_key import read_keyfile

from scaivaultd.demo.dns import DevelopmentDns, Fault
from scaivaultd.plugin import (
    Checkable,
    DnsProvider,
    PermanentError,
    ProviderAuthError,
    ProviderError,
    TransientError,
    Zone,
    ZoneNotFound,
)
from scaivaultd.plugin.testing import FixedSecrets, JumpingClock, RecordingLog, make_context

SECRET = "b25lIHNlY3JldCBvZiB0aGlydHktdHdvIGJ5dGVzLi4="
OTHER_SECRET = "YW5vdGhlciBzZWNyZXQgb2YgdGhpcnR5LXR3byBieXQ="
NAME = "_acme-challenge.www.example.test"
ZONE = Zone(name="example.test")
KIND = next(iter(rfc2136.scaivaultd_dns_providers()))


def opened(
    port: int, *, clock: JumpingClock | None = None, log: RecordingLog | None = None, **settings: Any
) -> AbstractAsyncContextManager[DnsProvider]:
    config = {"server": "127.0.0.1", "port": port, "tsig_key_name": "acme.key", "tsig_secret_path": "tsig", **settings}
    context = make_context(FixedSecrets({"tsig": SECRET}), clock=clock, log=log)
    return KIND.open(msgspec.convert(config, KIND.settings), context)


async def check(provider: DnsProvider) -> None:
    assert isinstance(provider, Checkable)
    await provider.check()


@pytest.fixture
async def server() -> AsyncIterator[DevelopmentDns]:
    addresses = ["127.0.0.1", "127.0.0.2"]
    async with DevelopmentDns(["example.test"], addresses=addresses, keys={"acme.key": SECRET}) as server:
        yield server


# Answers


@pytest.mark.parametrize(
    ("rcode", "kind", "told"),
    [
        ("REFUSED", ProviderAuthError, "its update policy, or access list"),
        ("NOTAUTH", ZoneNotFound, r"not the primary server of a zone example\.test"),
        ("NOTZONE", ZoneNotFound, r"is not in the zone example\.test"),
        ("SERVFAIL", TransientError, "its log says why"),
        ("NOTIMP", PermanentError, "a secondary, or a server without dynamic update"),
        ("FORMERR", PermanentError, "FORMERR to the update"),
        ("YXRRSET", PermanentError, "YXRRSET to the update"),
    ],
)
async def test_refused_updates_say_who_has_to_do_what(
    server: DevelopmentDns, rcode: str, kind: type[ProviderError], told: str
) -> None:
    """The class decides whether the host goes on; the text is all that the administrator sees."""
    server.fail(Fault(rcode=rcode, updates_only=True), times=10)
    async with opened(server.port, max_retries=1) as provider:
        with pytest.raises(kind, match=told):
            await provider.add_txt(ZONE, NAME, ["one"], 60)


async def test_a_server_with_another_clock_is_told_with_its_time() -> None:
    """Two clocks are involved: the text shows the other one."""

    class WrongClock(JumpingClock):
        def now(self) -> datetime:
            return datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)

    async with DevelopmentDns(["example.test"], keys={"acme.key": SECRET}, clock=WrongClock()) as server:
        async with opened(server.port) as provider:
            with pytest.raises(ProviderAuthError, match=r"more than 300 s apart.*there it is 2031-05-04 03:02:01 UTC"):
                await provider.find_zone(NAME)
        assert len(server.seen) == 2, "once more after the secret was read anew, and no more"


async def test_passing_faults_are_repeated_after_pauses_that_grow(server: DevelopmentDns) -> None:
    """A server in trouble is not helped by haste; chance and time come from the host."""
    clock = JumpingClock()
    server.fail(Fault(rcode="SERVFAIL"), times=3)
    async with opened(server.port, clock=clock, max_retries=3) as provider:
        await provider.add_txt(ZONE, NAME, ["one"], 60)
    assert clock.pauses == [0.5, 1.0, 2.0]
    assert server.txt(NAME) == ("one",)


async def test_a_value_that_is_there_is_not_written_again(server: DevelopmentDns) -> None:
    """Every update is a new serial, a NOTIFY and a transfer."""
    server.set_txt(NAME, ["one", "two"])
    async with opened(server.port) as provider:
        await provider.add_txt(ZONE, NAME, ["two"], 60)
    assert not any(each.is_update for each in server.seen)


async def test_a_server_that_does_not_let_us_look_is_written_unverified(server: DevelopmentDns) -> None:
    """Some primaries take updates and answer nobody; the host looks at the public servers all the same."""
    log = RecordingLog()
    server.fail(Fault(rcode="REFUSED"), times=1)
    async with opened(server.port, log=log) as provider:
        await provider.add_txt(ZONE, NAME, ["one"], 60)
    assert server.txt(NAME) == ("one",)
    assert any("warning dns_provider.not_verified" in line for line in log.lines)


async def test_questions_go_to_the_query_server_and_updates_do_not(server: DevelopmentDns) -> None:
    """With views the server that takes updates may show another world to whoever asks it."""
    async with opened(server.port, query_server="127.0.0.2") as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, ["one"], 60)
    assert {(each.server, each.is_update) for each in server.seen} == {("127.0.0.1", True), ("127.0.0.2", False)}


async def test_values_that_do_not_show_are_told(server: DevelopmentDns) -> None:
    """NOERROR proves nothing; the look afterwards does."""
    server.hold("127.0.0.2")
    async with opened(server.port, query_server="127.0.0.2", max_retries=1) as provider:
        with pytest.raises(TransientError, match=r"127\.0\.0\.2 does not show 1 of 1 values"):
            await provider.add_txt(ZONE, NAME, ["one"], 60)


async def test_all_addresses_of_a_host_name_are_tried(server: DevelopmentDns, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them may be of a family that does not get through; a failure names each."""

    async def two_addresses(*_: object, **__: object) -> list[Any]:
        return [(0, 0, 0, "", (address, 0)) for address in ("127.0.0.3", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", two_addresses)
    async with opened(server.port, server="primary.test", max_retries=0) as provider:
        assert await provider.find_zone(NAME) == ZONE
        server.fail(Fault(kind="drop_before"))
        with pytest.raises(TransientError, match=r"127\.0\.0\.3: .*; 127\.0\.0\.1: it broke the connection off"):
            await provider.find_zone(NAME)


async def test_a_host_name_that_is_none_is_told() -> None:
    """Nothing is sent anywhere, and it is not tried again."""
    async with opened(53, server=f"{'x' * 64}.test") as provider:
        with pytest.raises(PermanentError, match="is no host name"):
            await provider.find_zone(NAME)


# Zones


async def test_configured_zones_are_not_asked_for(server: DevelopmentDns) -> None:
    """Servers that do not answer SOA questions, or in another view, are why one configures them."""
    async with opened(server.port, zones=["test", "Example.Test.", "other.test"]) as provider:
        assert (await provider.find_zone(NAME)).name == "example.test"
        assert (await provider.find_zone("_acme-challenge.a.test")).name == "test"
        with pytest.raises(ZoneNotFound, match=r"none of the configured zones \(test, example\.test, other\.test\)"):
            await provider.find_zone("_acme-challenge.a.org")
    assert not server.seen


async def test_a_cname_to_the_zone_above_does_not_lead_there(server: DevelopmentDns) -> None:
    """The denial that follows a CNAME speaks of where it leads, and may name a zone that encloses the name."""
    server.add_zone("sub.example.test")
    server.put("_acme-challenge.sub.example.test", "CNAME", "nothing.example.test.")
    async with opened(server.port) as provider:
        assert (await provider.find_zone("_acme-challenge.sub.example.test")).name == "sub.example.test"


async def test_a_name_without_a_zone_is_told_with_the_answers(server: DevelopmentDns) -> None:
    """REFUSED everywhere means another server, or another view."""
    async with opened(server.port) as provider:
        with pytest.raises(ZoneNotFound, match=r"authoritative for no zone .*\(it answers REFUSED\)"):
            await provider.find_zone("_acme-challenge.www.example.org")


async def test_check_asks_for_each_zone_and_writes_nothing(server: DevelopmentDns) -> None:
    """It is called when a provider is configured."""
    server.add_zone("other.test")
    async with opened(server.port, zones=["example.test", "other.test"]) as provider:
        await check(provider)
    assert [each.name for each in server.seen] == ["example.test", "other.test"]
    async with opened(server.port, zones=["example.test", "gone.test"]) as provider:
        with pytest.raises(ZoneNotFound, match=r"not authoritative for a zone gone\.test, .*\(REFUSED\)"):
            await check(provider)


# Signatures of answers


@asynccontextmanager
async def answering(answer: Callable[[dns.message.Message], bytes]) -> AsyncIterator[int]:
    """A server at TCP whose answers are made by hand."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        made = answer(dns.message.from_wire(wire, keyring=dns.tsig.Key("acme.key", SECRET)))
        writer.write(len(made).to_bytes(2, "big") + made)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def unsigned(query: dns.message.Message) -> bytes:
    query.tsig = None
    return authoritative(query).to_wire()


def signed_by_another(query: dns.message.Message) -> bytes:
    query.keyring = dns.tsig.Key("acme.key", OTHER_SECRET)
    return authoritative(query).to_wire()


def signed_for_another_request(query: dns.message.Message) -> bytes:
    answer = authoritative(query)
    answer.request_mac = bytes(32)
    return answer.to_wire()


def authoritative(query: dns.message.Message) -> dns.message.Message:
    answer = dns.message.make_response(query)
    answer.flags |= dns.flags.AA
    return answer


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (unsigned, PermanentError, r"the answer of 127\.0\.0\.1 \(NOERROR\) is not signed"),
        (signed_by_another, TransientError, "the signature of the answer .* is wrong"),
        (signed_for_another_request, TransientError, "the signature of the answer .* is wrong"),
        (lambda _: b"no DNS message", TransientError, r"no answer from 127\.0\.0\.1"),
    ],
    ids=["unsigned", "other secret", "other request", "garbage"],
)
async def test_an_answer_that_is_not_rightly_signed_is_a_failure(
    answer: Callable[[dns.message.Message], bytes], kind: type[ProviderError], told: str
) -> None:
    """Whoever can answer in the server's place must not be able to say that a value was written."""
    async with answering(answer) as port, opened(port, max_retries=1) as provider:
        for call in (provider.find_zone(NAME), provider.remove_txt(ZONE, NAME, ["one"], None)):
            with pytest.raises(kind, match=told):
                await call


def unsigned_denial(query: dns.message.Message) -> bytes:
    query.tsig = None
    answer = dns.message.make_response(query)
    answer.set_rcode(dns.rcode.NOTAUTH if query.opcode() == dns.opcode.UPDATE else dns.rcode.REFUSED)
    return answer.to_wire()


async def test_a_server_that_denies_unsigned_is_understood() -> None:
    """Knot DNS does not sign what it says of zones it has not; clean-up in a zone that is gone must come to an end."""
    log = RecordingLog()
    async with answering(unsigned_denial) as port, opened(port, log=log) as provider:
        with pytest.raises(ZoneNotFound, match="it answers REFUSED"):
            await provider.find_zone(NAME)
        with pytest.raises(ZoneNotFound, match=r"no.* primary server of a zone example\.test"):
            await provider.add_txt(ZONE, NAME, ["one"], 60)
        await provider.remove_txt(ZONE, NAME, ["one"], None)
        await check(provider)
    assert any("warning dns_provider.key_not_proven" in line for line in log.lines)


async def test_a_look_that_is_refused_after_the_update_proves_nothing() -> None:
    """What could be looked at before has to be seen afterwards."""
    statuses = iter([dns.rcode.NXDOMAIN, dns.rcode.NOERROR, dns.rcode.REFUSED])

    def next_status(query: dns.message.Message) -> bytes:
        answer = authoritative(query)
        answer.set_rcode(next(statuses))
        return answer.to_wire()

    async with answering(next_status) as port, opened(port, max_retries=0) as provider:
        with pytest.raises(TransientError, match=r"does not let us look at .* any more"):
            await provider.add_txt(ZONE, NAME, ["one"], 60)


# Settings and keys


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tsig_keyfile_path": "file", "tsig_key_name": "key"}, "leave out"),
        ({"tsig_keyfile_path": "file", "tsig_algorithm": "hmac-sha256"}, "leave out"),
        ({"tsig_key_name": "key"}, "needs both"),
        ({"tsig_secret_path": "secret"}, "needs both"),
        ({"tsig_algorithm": "hmac-sha512"}, "of no use"),
        ({"zone": "a.test", "zones": ["b.test"]}, "not both"),
        ({"tsig_key_name": "key", "tsig_secret_path": "secret", "tsig_algorithm": "hmac-sha3"}, "Invalid enum value"),
        ({"transport": "tls"}, "Invalid enum value"),
        ({"port": 0}, ">= 1"),
        ({"server": "ns.test:53"}, "without port or scheme"),
        ({"server": "https://ns.test"}, "without port or scheme"),
        ({"server": "ns test\0"}, "without port or scheme"),
        ({"query_server": "[::1]:53"}, "without port or scheme"),
        ({"zone": "*.a.test"}, "is no zone"),
        ({"zone": "a b.test"}, "is no zone"),
        ({"zone": "a..test"}, "is no zone"),
        ({"zone": f"{'a' * 64}.test"}, "is no zone"),
        ({"zones": ["a.test", "m\u00fcnchen.test"]}, "xn--"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], told: str) -> None:
    """A half-configured key would mean unsigned updates, and a zone that is no name would hold nothing."""
    with pytest.raises(msgspec.ValidationError, match=told):
        msgspec.convert({"server": "ns.test", **settings}, KIND.settings)


@pytest.mark.parametrize("server", ["ns.test", "192.0.2.1", "2001:db8::1", "[2001:db8::1]", "localhost", "_ns.test."])
def test_servers_have_names_or_addresses(server: str) -> None:
    """In every usual way of writing them."""
    settings: Any = msgspec.convert({"server": server, "zone": "_acme.A.test."}, KIND.settings)
    assert settings.server == server


PASTED = f"""
# note
/* key "old" {{ }} */ key "acme.key" {{
    algorithm hmac-sha256; // of ours
    secret "{SECRET}";
}};
server 192.0.2.1 {{ keys {{ "acme.key"; }}; }};
"""


@pytest.mark.parametrize(
    "text",
    [
        f'key "acme.key" {{ algorithm hmac-sha256; secret "{SECRET}"; }};',
        f"key acme.key. {{\n\tsecret {SECRET};\n\talgorithm HMAC-SHA256;\n}};\n",
        PASTED,
    ],
    ids=["tsig-keygen", "bare words", "comments and a mention"],
)
def test_key_files_are_read_as_bind_reads_them(text: str) -> None:
    """They are pasted as they are."""
    key = read_keyfile(text, "infra/key")
    assert key == dns.tsig.Key("acme.key", SECRET, "hmac-sha256")


def test_a_secret_may_hold_what_begins_a_comment() -> None:
    """Base64 has slashes."""
    assert read_keyfile('key k { algorithm hmac-sha1; secret "ab//cd=="; };', "k").secret == b"i\xbf\xffq"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SECRET, "holds 0 statements"),
        (f'key a {{ algorithm hmac-sha256; secret "{SECRET}"; }}; key b {{ }};', "holds 2 statements"),
        (f'key a {{ secret "{SECRET}"; }};', "no `algorithm` statement"),
        ("key a { algorithm hmac-sha256; };", "no `secret` statement"),
        (f'key a {{ algorithm "{SECRET}"; secret "hmac-sha256"; }};', "algorithm is none of"),
        (f'key a {{ algorithm hmac-sha256; secret "{SECRET}!"; }};', "is not base64"),
        (f'key a..b {{ algorithm hmac-sha256; secret "{SECRET}"; }};', "is no domain name"),
        (f'key {{ algorithm hmac-sha256; secret "{SECRET}', "infra/key"),
    ],
)
def test_what_is_wrong_with_a_key_file_is_told_without_its_secret(text: str, told: str) -> None:
    """Parts get mixed up in pasting; none of them may reach a log."""
    with pytest.raises(PermanentError, match=told) as caught:
        read_keyfile(text, "infra/key")
    assert SECRET not in str(caught.value)


def test_a_key_prints_without_its_secret() -> None:
    """dnspython's own shows it, in every traceback with local variables."""
    key = read_keyfile(f'key acme.key {{ algorithm hmac-sha256; secret "{SECRET}"; }};', "infra/key")
    assert f"{key} {key!r}" == "TsigKey(acme.key (hmac-sha256)) TsigKey(acme.key (hmac-sha256))"


def test_every_text_of_the_page_is_there() -> None:
    """The documentation is made from the kind."""
    assert all((KIND.summary, KIND.rights, KIND.limits, KIND.troubleshooting))
    assert "update-policy" in KIND.rights
    assert "TSIG-ALLOW-DNSUPDATE" in KIND.rights

"""The development CA's look at dns-01: one right value among any others, wherever CNAMEs lead."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import TYPE_CHECKING

import dns.message
import dns.rrset
import pytest

from scaivaultd.demo.ca import CaSettings, DevelopmentCa
from scaivaultd.demo.dns import DevelopmentDns, Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from tests.demo.conftest import Client

    Serve = Callable[..., AbstractAsyncContextManager[Client]]

ZONE = "example.test"
NAME = "_acme-challenge.a.example.test"


@pytest.fixture
async def server() -> AsyncIterator[DevelopmentDns]:
    async with DevelopmentDns([ZONE, "other.test"]) as serving:
        yield serving


@pytest.fixture
async def account(serve: Serve, server: DevelopmentDns) -> AsyncIterator[Client]:
    async with serve(dns_server=server.address) as client:
        await client.register()
        yield client


async def values_for(client: Client, *identifiers: str) -> tuple[list[str], list[str]]:
    """Authorization URLs and the TXT values that prove them, of a new order."""
    order = await client.order(*identifiers)
    urls: list[str] = order.json["authorizations"]
    tokens = [(await client.challenge(url, "dns-01"))["token"] for url in urls]
    digests = [hashlib.sha256(client.responder.answers[token].encode()).digest() for token in tokens]
    return urls, [base64.urlsafe_b64encode(digest).decode().rstrip("=") for digest in digests]


async def look(client: Client, url: str) -> tuple[str, str, str]:
    """Status of the authorization, type and detail of the error."""
    challenge = await client.challenge(url, "dns-01")
    await client.post(challenge["url"], {})
    authorization = await client.settled(url)
    [settled] = [each for each in authorization["challenges"] if each["type"] == "dns-01"]
    error = settled.get("error", {"type": "", "detail": ""})
    return authorization["status"], error["type"].removeprefix("urn:ietf:params:acme:error:"), error["detail"]


VALID = ("valid", "", "")


async def test_the_digest_at_the_name_convinces(account: Client, server: DevelopmentDns) -> None:
    """The yardstick for all that follow."""
    [url], values = await values_for(account, "a.example.test")
    server.set_txt(NAME, values)
    assert await look(account, url) == VALID


async def test_a_wildcard_and_its_apex_need_both_values_at_one_name(account: Client, server: DevelopmentDns) -> None:
    """The bug that most clients have had: one value lost."""
    urls, values = await values_for(account, "*.example.test", "example.test")
    assert len(set(values)) == 2
    server.set_txt("_acme-challenge.example.test", values)
    assert [await look(account, url) for url in urls] == [VALID, VALID]


async def test_the_other_authorizations_value_is_not_enough(account: Client, server: DevelopmentDns) -> None:
    """Each authorization has a token of its own."""
    urls, values = await values_for(account, "*.example.test", "example.test")
    server.set_txt("_acme-challenge.example.test", values[:1])
    assert (await look(account, urls[0]))[0] == "valid"
    assert (await look(account, urls[1]))[:2] == ("invalid", "unauthorized")


@pytest.mark.parametrize("place", ["first", "last"])
async def test_other_values_beside_it_do_not_matter(account: Client, server: DevelopmentDns, place: str) -> None:
    """Names are shared: other orders, other tools."""
    [url], values = await values_for(account, "a.example.test")
    others = ["somebody else's", "x" * 300, ""]
    server.set_txt(NAME, [*values, *others] if place == "first" else [*others, *values])
    assert await look(account, url) == VALID


async def test_the_strings_of_a_value_are_joined(account: Client, server: DevelopmentDns) -> None:
    """One value may be cut into several strings; nothing comes between them."""
    [url], [value] = await values_for(account, "a.example.test")
    server.put(NAME, "TXT", f'"{value[:20]}" "{value[20:]}"')
    assert await look(account, url) == VALID


async def test_an_answer_cut_short_is_asked_for_again_over_tcp(account: Client, server: DevelopmentDns) -> None:
    """Twenty orders at once do not fit a datagram."""
    [url], values = await values_for(account, "a.example.test")
    server.set_txt(NAME, [*(f"{n:043}" for n in range(60)), *values])
    assert await look(account, url) == VALID
    assert server.seen[-1].transport == "tcp"


async def test_cnames_are_followed(account: Client, server: DevelopmentDns) -> None:
    """Delegation by CNAME is how most large organisations do it."""
    [url], values = await values_for(account, "a.example.test")
    server.put(NAME, "CNAME", "one.other.test.")
    server.put("one.other.test", "CNAME", "two.other.test.")
    server.set_txt("two.other.test", values)
    assert await look(account, url) == VALID


class Terse(asyncio.DatagramProtocol):
    """A server that answers with what stands at the name itself, as many do for other zones than their own."""

    def __init__(self, records: dict[str, tuple[str, str]]) -> None:
        self._records = records

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # it is one
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        name = query.question[0].name
        rdtype, text = self._records[name.to_text(omit_final_dot=True)]
        answer = dns.message.make_response(query)
        answer.answer = [dns.rrset.from_text(name, 60, "IN", rdtype, text)]
        self._transport.sendto(answer.to_wire(), addr)


async def test_cnames_that_the_server_does_not_follow_are_asked_for(serve: Serve) -> None:
    """The answer to a question may be only the beginning of one."""
    records: dict[str, tuple[str, str]] = {}
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Terse(records), ("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    async with serve(dns_server=f"127.0.0.1:{port}") as client:
        await client.register()
        [url], [value] = await values_for(client, "a.example.test")
        records[NAME] = ("CNAME", "one.other.test.")
        records["one.other.test"] = ("CNAME", "two.other.test.")
        records["two.other.test"] = ("TXT", value)
        assert await look(client, url) == VALID
    transport.close()


async def test_a_cname_that_leads_nowhere_is_a_dns_problem(account: Client, server: DevelopmentDns) -> None:
    """The server knows nothing of that zone, and says so when it is asked."""
    [url], _ = await values_for(account, "a.example.test")
    server.put(NAME, "CNAME", "a.elsewhere.test.")
    status, kind, detail = await look(account, url)
    assert (status, kind) == ("invalid", "dns")
    assert detail == f"DNS problem: REFUSED looking up TXT for {NAME}"
    assert server.seen[-1].name == "a.elsewhere.test"


async def test_a_loop_of_cnames_is_a_dns_problem(account: Client, server: DevelopmentDns) -> None:
    """And it ends."""
    [url], _ = await values_for(account, "a.example.test")
    server.put(NAME, "CNAME", "one.other.test.")
    server.put("one.other.test", "CNAME", f"{NAME}.")
    assert (await look(account, url))[:2] == ("invalid", "dns")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda value: [f"{value}="], 'Incorrect TXT record "'),
        (lambda value: [f" {value}"], 'Incorrect TXT record " '),
        (lambda value: [value.swapcase()], 'Incorrect TXT record "'),
        (lambda value: [f'"{value}"'], 'Incorrect TXT record ""'),
        (lambda _: ["one", "two", "three"], '" (and 2 more) found at'),
    ],
    ids=["padded", "white space", "other case", "quoted", "several"],
)
async def test_a_value_that_is_not_the_digest_is_unauthorized(
    account: Client, server: DevelopmentDns, spoil: Callable[[str], list[str]], said: str
) -> None:
    """What is there is shown: whoever sees it knows who wrote it."""
    [url], [value] = await values_for(account, "a.example.test")
    server.set_txt(NAME, spoil(value))
    status, kind, detail = await look(account, url)
    assert (status, kind) == ("invalid", "unauthorized")
    assert said in detail


async def test_no_values_are_told_apart_from_no_name(account: Client, server: DevelopmentDns) -> None:
    """`unauthorized` says nobody wrote it there; `dns` that the name does not exist."""
    server.put(NAME, "A", "127.0.0.1")
    [url], _ = await values_for(account, "a.example.test")
    assert await look(account, url) == ("invalid", "unauthorized", f"No TXT record found at {NAME}")
    server.put(NAME, "A")
    [url], _ = await values_for(account, "a.example.test")
    assert await look(account, url) == ("invalid", "dns", f"DNS problem: NXDOMAIN looking up TXT for {NAME}")


async def test_a_server_that_fails_is_a_dns_problem(account: Client, server: DevelopmentDns) -> None:
    """The right value does not count if nobody could see it."""
    [url], values = await values_for(account, "a.example.test")
    server.set_txt(NAME, values)
    server.fail(Fault(kind="status", rcode="SERVFAIL"))
    assert await look(account, url) == ("invalid", "dns", f"DNS problem: SERVFAIL looking up TXT for {NAME}")


async def test_one_lost_datagram_is_no_failure(serve: Serve, server: DevelopmentDns) -> None:
    """UDP loses packets; every resolver asks again."""
    settings = CaSettings(validation_seconds=3)
    async with serve(dns_server=server.address, settings=settings) as client:
        await client.register()
        [url], values = await values_for(client, "a.example.test")
        server.set_txt(NAME, values)
        server.fail(Fault(kind="drop_before"))
        assert await look(client, url) == VALID


async def test_a_server_that_never_answers_is_given_up(serve: Serve, server: DevelopmentDns) -> None:
    """A CA does not wait for ever."""
    settings = CaSettings(validation_seconds=0.3)
    async with serve(dns_server=server.address, settings=settings) as client:
        await client.register()
        [url], values = await values_for(client, "a.example.test")
        server.set_txt(NAME, values)
        server.fail(Fault(kind="hang"), times=100)
        status, kind, detail = await look(client, url)
    assert (status, kind) == ("invalid", "dns")
    assert detail == f"DNS problem: query timed out looking up TXT for {NAME}"


@pytest.mark.parametrize("text", ["127.0.0.1", "ns.example.test:53", "127.0.0.1:0", "127.0.0.1:x", "[::1]"])
async def test_a_server_that_is_no_address_and_port_is_refused_at_once(text: str) -> None:
    """Better than a dns problem for every order."""
    with pytest.raises(ValueError, match=r"does not appear to be|ADDRESS:PORT"):
        DevelopmentCa(http01_port=1, dns_server=text)

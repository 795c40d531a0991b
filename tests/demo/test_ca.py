"""The development CA as a whole: an issuance from end to end, and the command that serves it."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store

from scaivaultd.demo.ca import CaSettings, DevelopmentCa

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests.demo.conftest import Client, FakeClock, Responder


async def test_a_certificate_is_issued_and_verifies_up_to_the_issuer_root(client: Client, clock: FakeClock) -> None:
    """The reason to have it: a real verifier must accept what an independent client obtains."""
    reply = await client.issue("www.example.test", "example.test")
    assert reply.headers["Content-Type"] == "application/pem-certificate-chain"
    leaf, intermediate = x509.load_pem_x509_certificates(reply.body)
    root = x509.load_pem_x509_certificate(client.ca.issuer_root_pem.encode())
    verifier = (
        PolicyBuilder().store(Store([root])).time(clock.now()).build_server_verifier(x509.DNSName("example.test"))
    )
    assert verifier.verify(leaf, [intermediate]) == [leaf, intermediate, root]
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(days=90)
    assert list(client.ca.issued) == [leaf.serial_number]
    assert client.ca.requests["newOrder"] == 1
    assert sorted(client.responder.hosts) == ["example.test", "www.example.test"]


@pytest.mark.parametrize("address", ["127.0.0.1", "2001:db8::1"])
async def test_addresses_are_certified_with_their_own_host_header(client: Client, address: str) -> None:
    """RFC 8738: an address is validated under itself, and IPv6 stands in brackets (RFC 9112)."""
    leaf, _ = x509.load_pem_x509_certificates((await client.issue(address)).body)
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in san.get_values_for_type(x509.IPAddress)] == [address]
    assert client.responder.hosts == [f"[{address}]" if ":" in address else address]


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ],
    ids=["ES384", "RS256"],
)
async def test_accounts_sign_with_the_other_algorithms_too(stranger: Client, key: Any) -> None:
    """Our client offers three kinds of account key, so the CA must verify three."""
    stranger.key = key
    assert (await stranger.register()).status == 201
    assert (await stranger.issue("a.example.test")).status == 200


async def test_the_resolver_says_where_validation_connects(
    serve: Callable[..., AbstractAsyncContextManager[Client]],
) -> None:
    """Tests with several hosts need names at several addresses."""
    asked: list[str] = []

    def resolve(name: str) -> str:
        asked.append(name)
        return "127.0.0.1"

    async with serve(resolve=resolve) as client:
        await client.register()
        assert (await client.issue("a.example.test")).status == 200
    assert asked == ["a.example.test"]


async def test_a_hook_sees_each_request_before_and_after_its_work(client: Client) -> None:
    """Kill tests stop a client between the two, so the state must have changed at the second."""
    seen: list[tuple[str, str, int]] = []

    async def hook(resource: str, phase: str) -> None:
        seen.append((resource, phase, len(client.ca.orders)))

    client.ca.on_request = hook
    await client.order("a.example.test")
    assert seen[-2:] == [("newOrder", "received", 0), ("newOrder", "processed", 1)]


async def test_refused_requests_are_never_processed(client: Client) -> None:
    """A hook that kills after the work must not fire on a badNonce."""
    seen: list[tuple[str, str]] = []

    async def hook(resource: str, phase: str) -> None:
        seen.append((resource, phase))

    client.ca.on_request = hook
    await client.post("/new-order", {"identifiers": []})
    assert seen[-1] == ("newOrder", "received")


async def test_closing_does_not_wait_for_validations_under_way(
    serve: Callable[..., AbstractAsyncContextManager[Client]],
) -> None:
    """A test that ends early must not hang on the CA's own tasks."""
    async with asyncio.timeout(10), serve() as client:
        client.ca.misbehaviour.validation_delay_seconds = 3600
        await client.register()
        order = await client.order("a.example.test")
        challenge = await client.challenge(order.json["authorizations"][0])
        assert (await client.post(challenge["url"], {})).json["status"] == "processing"


async def test_it_serves_on_ipv6_under_its_own_address(responder: Responder) -> None:
    """Clients check the certificate against the address in the directory URL."""
    async with DevelopmentCa(http01_port=responder.port, host="::1", settings=CaSettings()) as ca:
        trust = ssl.create_default_context(cadata=ca.root_pem)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session,
            session.get(ca.directory_url) as response,
        ):
            assert (await response.json())["newOrder"].startswith("https://[::1]:")


async def test_the_command_says_where_it_serves_and_ends_on_sigterm(tmp_path: Path) -> None:
    """`make demo` starts it as a child and reads one line."""
    command = ["-m", "scaivaultd.demo.ca", "--http01-port", "1", "--listen", "127.0.0.1:0", "--dir", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = json.loads(await process.stdout.readline())
            trust = ssl.create_default_context(cafile=line["root_pem_file"])
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session,
                session.get(line["directory_url"]) as response,
            ):
                assert "newNonce" in await response.json()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    ssl.create_default_context(cafile=line["issuer_root_pem_file"])

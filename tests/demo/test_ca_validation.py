"""The development CA's look at http-01: it is convinced by the exact answer, and by nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests.demo.conftest import Client


async def error_after(client: Client, spoil: Callable[[str], None], kind: str = "http-01") -> tuple[str, str, str]:
    """Status of the authorization, type and detail of the challenge's error."""
    order = await client.order("a.example.test")
    url = order.json["authorizations"][0]
    challenge = await client.challenge(url, kind)
    spoil(challenge["token"])
    await client.post(challenge["url"], {})
    authorization = await client.settled(url)
    error = next(each["error"] for each in authorization["challenges"] if each["type"] == kind)
    return authorization["status"], error["type"].rpartition(":")[2], error["detail"]


@pytest.mark.parametrize("suffix", ["x", "\n", " "])
async def test_the_body_is_the_key_authorization_exactly(client: Client, suffix: str) -> None:
    """White space is forgiven by some CAs only, so it is not forgiven here."""

    def spoil(token: str) -> None:
        client.responder.answers[token] += suffix

    assert (await error_after(client, spoil))[:2] == ("invalid", "incorrectResponse")


async def test_the_status_is_200(client: Client) -> None:
    """The right body under the wrong status is no proof."""
    client.responder.status = 500
    status, kind, detail = await error_after(client, lambda _: None)
    assert (status, kind) == ("invalid", "incorrectResponse")
    assert "status 500" in detail


async def test_a_missing_answer_is_told_apart_from_a_missing_listener(
    serve: Callable[..., AbstractAsyncContextManager[Client]],
) -> None:
    """`connection` sends people to their firewall, `incorrectResponse` to their web server."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with serve(http01_port=port) as client:
        await client.register()
        assert (await error_after(client, lambda _: None))[1] == "connection"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 40_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    ],
    ids=["nothing", "not http", "chunked", "huge", "short", "endless body", "endless head"],
)
async def test_what_is_not_http_is_a_connection_problem(
    serve: Callable[..., AbstractAsyncContextManager[Client]], answer: bytes
) -> None:
    """Whatever listens there, the CA says so and lives on."""

    async def serve_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve_bytes, "127.0.0.1", 0)
    async with server, serve(http01_port=server.sockets[0].getsockname()[1]) as client:
        await client.register()
        assert (await error_after(client, lambda _: None))[:2] == ("invalid", "connection")


async def test_a_name_without_address_is_a_dns_problem(
    serve: Callable[..., AbstractAsyncContextManager[Client]],
) -> None:
    """A resolver that knows no address raises LookupError."""

    def resolve(name: str) -> str:
        raise LookupError(name)

    async with serve(resolve=resolve) as client:
        await client.register()
        assert (await error_after(client, lambda _: None))[1] == "dns"


@pytest.mark.parametrize(("kind", "problem"), [("dns-01", "dns"), ("tls-alpn-01", "tls")])
async def test_other_challenges_fail_with_a_clear_problem(client: Client, kind: str, problem: str) -> None:
    """It is offered, but this CA does not look there."""
    status, name, detail = await error_after(client, lambda _: None, kind)
    assert (status, name) == ("invalid", problem)
    assert "this CA" in detail


async def test_always_valid_believes_everything(client: Client) -> None:
    """For wildcards, which cannot be proven here at all."""
    client.ca.misbehaviour.always_valid = True
    order = await client.order("*.example.test")
    await client.prove(order, "dns-01")
    assert (await client.finalize(order)).json["status"] == "valid"

"""A CA that names URLs of another host: whatever document they stand in, nobody goes there.

The other host would be open: it is listed as a private directory too. Being somebody else's is enough.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.model.errors import CaMisbehaved, ScaivaultError
from scaivaultd.model.names import Identifier
from scaivaultd.net.acme_client import AcmeClient
from scaivaultd.net.acme_http import CaConnection, CaSettings
from scaivaultd.net.guard import AddressGuard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

NAMES = [Identifier("dns", "a.example.test")]
ENDPOINTS = ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange", "renewalInfo")


class Elsewhere:
    """A host that is not the CA's, and notices every visit."""

    def __init__(self) -> None:
        self.visits = 0
        self.place = ""

    @property
    def url(self) -> str:
        return f"https://{self.place}/x"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        writer.close()


@pytest.fixture
async def elsewhere() -> AsyncIterator[Elsewhere]:
    other = Elsewhere()
    async with await asyncio.start_server(other.serve, "127.0.0.1", 0) as server:
        other.place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield other


@pytest.fixture
async def make_client(
    ca: Any, identity: Any, make_connection: Any, elsewhere: Elsewhere, account_key: Any
) -> AsyncIterator[Callable[..., AcmeClient]]:
    """A client of the CA; `further` are the hosts where its URLs may be too."""
    like, made = make_connection(), []

    def make(*further: str) -> AcmeClient:
        connection = CaConnection(
            f"{ca.base}/directory",
            identity.pem,
            CaSettings(user_agent="scaivaultd/test"),
            guard=AddressGuard([ca.base.removeprefix("https://"), elsewhere.place], further),
            clock=like._clock,
            randomness=like._randomness,
            log=like._log,
        )
        made.append(connection)
        return AcmeClient(connection, account_key, f"{ca.base}/account")

    yield make
    for connection in made:
        await connection.close()


@pytest.fixture
async def client(make_client: Callable[..., AcmeClient]) -> AcmeClient:
    return make_client()


async def refused(work: Awaitable[Any], elsewhere: Elsewhere) -> None:
    """It ends in `ca_error`, which names the place and what would open it."""
    with pytest.raises(CaMisbehaved) as caught:
        await work
    assert caught.value.code == "ca_error"
    assert f'further_hosts = ["{elsewhere.place}"]' in caught.value.detail
    assert elsewhere.visits == 0


def directory(ca: Any, **foreign: str) -> bytes:
    return json.dumps({name: f"{ca.base}/{name}" for name in ENDPOINTS} | foreign).encode()


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_a_directory_with_a_foreign_endpoint_is_not_used_at_all(
    ca: Any, client: AcmeClient, reply: Any, elsewhere: Elsewhere, endpoint: str
) -> None:
    """Told when the account is registered, and not months later when something is revoked."""
    ca.script["/directory"].append(reply(body=directory(ca, **{endpoint: elsewhere.url}), nonce=False))
    await refused(client.register(contacts=[], terms_of_service_agreed=True), elsewhere)
    assert [each.path for each in ca.requests] == ["/directory"]


@pytest.mark.parametrize("path", ["/newAccount", "/newOrder"])
async def test_a_foreign_location_is_not_taken(
    ca: Any, client: AcmeClient, reply: Any, elsewhere: Elsewhere, path: str
) -> None:
    """It would be kept, and signed requests would go there for as long as the account lives."""
    ca.script[path].append(reply(201, headers={"Location": elsewhere.url}))
    if path == "/newAccount":
        await refused(client.register(contacts=[], terms_of_service_agreed=True), elsewhere)
    else:
        await refused(client.new_order(NAMES), elsewhere)


@pytest.mark.parametrize(
    "document",
    [
        {"status": "pending", "authorizations": ["ELSEWHERE"]},
        {"status": "ready", "finalize": "ELSEWHERE"},
        {"status": "valid", "certificate": "ELSEWHERE"},
        {"status": "pending", "challenges": [{"type": "http-01", "url": "ELSEWHERE"}]},
    ],
)
@pytest.mark.parametrize("read", ["order", "authorization", "finalize"])
async def test_a_document_with_a_foreign_url_is_not_used(
    ca: Any, client: AcmeClient, reply: Any, elsewhere: Elsewhere, document: dict[str, Any], read: str
) -> None:
    """Before its own URLs are worked with: what is in it is no honest CA's."""
    body = json.dumps(document).replace("ELSEWHERE", elsewhere.url).encode()
    ca.script["/made"].append(reply(body=body))
    work = {
        "order": lambda url: client.order(url),
        "authorization": lambda url: client.authorization(url),
        "finalize": lambda url: client.finalize(url, b""),
    }
    await refused(work[read](f"{ca.base}/made"), elsewhere)


async def test_urls_kept_by_an_earlier_version_are_judged_when_they_are_used(
    client: AcmeClient, elsewhere: Elsewhere, account_key: Any
) -> None:
    """The store may hold what nobody judged when it was written."""
    url, abroad = elsewhere.url, AcmeClient(client._connection, account_key, elsewhere.url)
    works: list[Callable[[], Awaitable[Any]]] = [
        lambda: client.order(url),
        lambda: client.authorization(url),
        lambda: client.respond(url),
        lambda: client.finalize(url, b""),
        lambda: client.chain(url),
        lambda: client.deactivate_authorization(url),
        abroad.order_urls,
        lambda: abroad.update_contacts([]),
    ]
    for work in works:
        await refused(work(), elsewhere)


async def test_a_foreign_alternate_chain_is_left_out(
    ca: Any, client: AcmeClient, reply: Any, elsewhere: Elsewhere
) -> None:
    """The certificate is there; another chain for it is a wish."""
    links = f'<{elsewhere.url}>;rel="alternate",</cert/2>;rel="alternate"'
    ca.script["/cert"].append(reply(body=b"default", headers={"Link": links}))
    ca.script["/cert/2"].append(reply(body=b"other"))
    assert list(await client.chains(f"{ca.base}/cert")) == [b"default", b"other"]
    assert elsewhere.visits == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(
    ca: Any, client: AcmeClient, reply: Any, elsewhere: Elsewhere, status: int
) -> None:
    """To no host at all: the signature covers the URL."""
    for path in ("/directory", "/order"):
        ca.script[path].append(reply(status, b"", {"Location": elsewhere.url}))
    for work in (client.directory(), client.order(f"{ca.base}/order")):
        with pytest.raises(CaMisbehaved, match="redirects cannot be followed"):
            await work
    assert elsewhere.visits == 0


async def test_a_listed_further_host_is_visited(
    ca: Any, make_client: Callable[..., AcmeClient], reply: Any, elsewhere: Elsewhere
) -> None:
    """Some CAs keep certificates or renewal information on another host; the administrator says so."""
    client = make_client(elsewhere.place)
    ca.script["/directory"].append(reply(body=directory(ca, renewalInfo=elsewhere.url), nonce=False))
    with pytest.raises(ScaivaultError) as caught:
        await client.renewal_info("a.b")
    assert not isinstance(caught.value, CaMisbehaved)
    assert elsewhere.visits > 0


async def test_no_body_is_repeated_in_an_error(ca: Any, client: AcmeClient, reply: Any) -> None:
    """Whoever may name a directory could read what only we can reach, a page at a time."""
    page = b"<html>INSIDE-4711 \x1b[31m</html>"
    for status in (200, 404, 403, 500):
        for path in ("/directory", "/order"):
            ca.script[path].extend([reply(status, page, {"Content-Type": "text/html", "Retry-After": "9"})] * 4)
        for _ in range(2):
            for work in (client.directory(), client.order(f"{ca.base}/order")):
                try:
                    await work
                except ScaivaultError as error:
                    assert "INSIDE" not in error.detail
                    assert "INSIDE" not in str(getattr(error, "problem", ""))

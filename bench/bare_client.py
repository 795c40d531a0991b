"""The ceiling: a bare asyncio ACME client that stores nothing and knows one CA, Pebble, at its best.

    python bench/bare_client.py --directory URL --trust FILE --http01-port PORT [--count N] [--in-flight N] [--names N]

No journal, no retries, no checks: whatever a real client costs more than this is the price of being one. Prints one
JSON line; ends with code 3 when nothing moves for ten seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import functools
import json
import ssl
import sys
import time
from typing import TYPE_CHECKING, Any

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from bench.rig import Outcome, Progress, Stuck, many

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FIRST_PAUSE_SECONDS = 0.025
GROWTH = 1.6
LONGEST_PAUSE_SECONDS = 1.0


def base64url(data: bytes) -> str:
    """Unpadded base64url."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Responder(asyncio.Protocol):
    """One connection to the least that answers http-01: one request, one answer, end."""

    def __init__(self, answer_to: Callable[[str], bytes | None]) -> None:
        self._answer_to = answer_to

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer by the last part of the path; a CA's request comes in one piece on loopback."""
        token = data.split(b" ", 2)[1].rpartition(b"/")[2].decode()
        body = self._answer_to(token)
        status = b"404 Not Found" if body is None else b"200 OK"
        length = b"%d" % len(body or b"")
        self._transport.write(
            b"HTTP/1.1 " + status + b"\r\nContent-Length: " + length + b"\r\nConnection: close\r\n\r\n" + (body or b"")
        )
        self._transport.close()


async def respond(port: int, answer_to: Callable[[str], bytes | None]) -> asyncio.Server:
    """Serve answers to http-01 at 127.0.0.1."""
    return await asyncio.get_running_loop().create_server(lambda: Responder(answer_to), "127.0.0.1", port)


class BareClient:
    """One account, any number of orders at once."""

    def __init__(self, session: aiohttp.ClientSession, answers: dict[str, bytes], first_pause_seconds: float) -> None:
        self._session = session
        self._answers = answers
        self._first_pause_seconds = first_pause_seconds
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._nonces: list[str] = []
        self._directory: dict[str, str] = {}
        self._kid: str | None = None
        self.requests = 0
        numbers = self._key.public_key().public_numbers()
        self._jwk = {
            "crv": "P-256",
            "kty": "EC",
            "x": base64url(numbers.x.to_bytes(32, "big")),
            "y": base64url(numbers.y.to_bytes(32, "big")),
        }
        digest = hashes.Hash(hashes.SHA256())
        digest.update(json.dumps(self._jwk, separators=(",", ":")).encode())
        self._thumbprint = base64url(digest.finalize())

    async def register(self, directory_url: str) -> None:
        """Read the directory and make an account."""
        async with self._session.get(directory_url) as response:
            self._directory = await response.json()
        headers, _ = await self._post(self._directory["newAccount"], {"termsOfServiceAgreed": True})
        self._kid = headers["Location"]

    async def issue(self, names: Sequence[str]) -> bytes:
        """One certificate, from newOrder to the download."""
        identifiers = [{"type": "dns", "value": name} for name in names]
        headers, body = await self._post(self._directory["newOrder"], {"identifiers": identifiers})
        order, url = json.loads(body), headers["Location"]
        await asyncio.gather(*(self._prove(each) for each in order["authorizations"]))
        order = await self._until(url, "ready")
        key = ec.generate_private_key(ec.SECP256R1())
        _, body = await self._post(order["finalize"], {"csr": base64url(_csr(key, names))})
        order = json.loads(body)
        if order["status"] != "valid":
            order = await self._until(url, "valid")
        _, chain = await self._post(order["certificate"], None)
        return chain

    async def _prove(self, url: str) -> None:
        _, body = await self._post(url, None)
        challenge = next(each for each in json.loads(body)["challenges"] if each["type"] == "http-01")
        token = challenge["token"]
        self._answers[token] = f"{token}.{self._thumbprint}".encode()
        await self._post(challenge["url"], {})

    async def _until(self, url: str, status: str) -> Any:
        pause = self._first_pause_seconds
        while True:
            await asyncio.sleep(pause)
            _, body = await self._post(url, None)
            order = json.loads(body)
            if order["status"] == status:
                return order
            if order["status"] == "invalid":
                raise RuntimeError(f"the order is invalid: {order}")
            pause = min(pause * GROWTH, LONGEST_PAUSE_SECONDS)

    async def _post(self, url: str, payload: dict[str, Any] | None) -> tuple[Any, bytes]:
        nonce = self._nonces.pop() if self._nonces else await self._fresh_nonce()
        identity: dict[str, Any] = {"jwk": self._jwk} if self._kid is None else {"kid": self._kid}
        body = self._sign({"alg": "ES256", "nonce": nonce, "url": url, **identity}, payload)
        self.requests += 1
        async with self._session.post(url, data=body, headers={"Content-Type": "application/jose+json"}) as response:
            answer = await response.read()
            self._nonces.append(response.headers["Replay-Nonce"])
            if response.status >= 300:
                raise RuntimeError(f"{response.status} for {url}: {answer.decode()}")
            return response.headers, answer

    async def _fresh_nonce(self) -> str:
        self.requests += 1
        async with self._session.head(self._directory["newNonce"]) as response:
            return response.headers["Replay-Nonce"]

    def _sign(self, header: dict[str, Any], payload: dict[str, Any] | None) -> bytes:
        protected = base64url(json.dumps(header).encode())
        content = "" if payload is None else base64url(json.dumps(payload).encode())
        r, s = decode_dss_signature(self._key.sign(f"{protected}.{content}".encode(), ec.ECDSA(hashes.SHA256())))
        signature = base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        return f'{{"protected":"{protected}","payload":"{content}","signature":"{signature}"}}'.encode()


def _csr(key: ec.EllipticCurvePrivateKey, names: Sequence[str]) -> bytes:
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(alternatives, critical=False)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


async def run(arguments: argparse.Namespace, *, label: str, first_pause_seconds: float) -> Outcome:
    """One round against a CA; `label` begins every name."""
    answers: dict[str, bytes] = {}
    server = await respond(arguments.http01_port, answers.get)
    context = ssl.create_default_context(cafile=arguments.trust)
    connector = aiohttp.TCPConnector(ssl=context, limit=arguments.in_flight)
    async with server, aiohttp.ClientSession(connector=connector) as session:
        client = BareClient(session, answers, first_pause_seconds)
        await client.register(arguments.directory)
        await client.issue([f"warm-{label}.example.test"])
        progress = Progress()
        requests, cpu = client.requests, time.process_time()

        async def one(number: int) -> None:
            await client.issue([f"{label}-{number}-{place}.example.test" for place in range(arguments.names)])

        outcome = await many(one, arguments.count, arguments.in_flight, progress)
        outcome.cpu_seconds = time.process_time() - cpu
        outcome.requests = client.requests - requests
        return outcome


def main() -> None:
    """Run one round and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = functools.partial(parser.add_argument, type=int)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--trust", required=True, help="PEM that vouches for the CA's HTTPS")
    whole("--http01-port", required=True)
    whole("--count", default=100)
    whole("--in-flight", default=8)
    whole("--names", default=1, help="names in each certificate")
    parser.add_argument("--label", default="bare", help="begins every name")
    parser.add_argument("--first-pause", type=float, default=FIRST_PAUSE_SECONDS, help="seconds before the first poll")
    arguments = parser.parse_args()
    try:
        outcome = asyncio.run(run(arguments, label=arguments.label, first_pause_seconds=arguments.first_pause))
    except Stuck as stuck:
        print(stuck, file=sys.stderr)
        sys.exit(3)
    print(outcome.to_json())


if __name__ == "__main__":
    main()

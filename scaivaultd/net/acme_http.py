"""One CA over HTTPS: signed requests with nonces, bounded answers, and only such retries as are safe.

RFC 8555 section 6. A `CaConnection` serves every account at one directory; `acme_client` knows the
requests by name. Short weather (a reset, a 5xx without a long Retry-After) is sat out here for
requests that may be repeated; everything longer goes up as an error, for the job to park on.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from scaivaultd.acme import exchange, named_urls, wire
from scaivaultd.acme.directories import ca_name
from scaivaultd.acme.exchange import Answer
from scaivaultd.model import metrics, tracing
from scaivaultd.model.errors import CaMisbehaved, CaUnavailable, ScaivaultError
from scaivaultd.net.acme_client import AcmeClient
from scaivaultd.net.guard import AddressGuard, GuardedResolver
from scaivaultd.net.nonces import NoncePool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.acme.signing import AccountKey
    from scaivaultd.model.clock import Clock, Randomness

T = TypeVar("T")

BODY_MAX = 1 << 20
BAD_NONCE_TRIES = 10
WEATHER_TRIES = 4
PATIENCE_SECONDS = 5.0
"""The longest pause made inside a request; what takes longer is the job's to wait for."""
DIRECTORY_FRESH_SECONDS = 6 * 3600.0
DIRECTORY_YOUNG_SECONDS = 300.0
"""A copy younger than this is not doubted because a thing below an endpoint is not there."""

_ARTICLE = re.compile(r"^(?:the|an?) ")
_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10, sock_read=30)


class CaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for every CA: how we introduce ourselves, whom we trust, how much at once."""

    user_agent: str
    trust_files: tuple[Path, ...] = ()
    requests_in_flight: int = 10


class CaConnection:
    """Everything shared by the accounts at one directory: connections, nonces, directory copy, pace."""

    def __init__(
        self,
        directory_url: str,
        ca_certificates_pem: str | None,
        settings: CaSettings,
        *,
        guard: AddressGuard,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
    ) -> None:
        self.directory_url = directory_url
        self._settings = settings
        self._urls = guard.ca_of(directory_url)
        self._clock = clock
        self._randomness = randomness
        self._log = log.bind(ca=urlsplit(directory_url).hostname)
        self._nonces = NoncePool(clock)
        self._in_flight = asyncio.Semaphore(settings.requests_in_flight)
        self._directory: tuple[float, wire.Directory] | None = None
        self._directory_lock = asyncio.Lock()
        self._tls = _tls_context(settings.trust_files, ca_certificates_pem)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=self._tls,
                resolver=GuardedResolver(guard),
                limit=settings.requests_in_flight,
                use_dns_cache=False,
            ),
            timeout=_TIMEOUT,
            # Nothing compressed: a body of a kilobyte must not unfold into gigabytes.
            auto_decompress=False,
            headers={"User-Agent": settings.user_agent, "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    @property
    def roots(self) -> Sequence[bytes]:
        """The root certificates that may vouch for the CA's HTTPS, as DER."""
        return self._tls.get_ca_certs(binary_form=True)

    async def close(self) -> None:
        """Close all connections; requests under way fail as unavailable."""
        await self._session.close()

    async def directory(self) -> wire.Directory:
        """The CA's directory, at most some hours old; the last good copy while the CA is down.

        Raises:
            CaUnavailable, CaRefused, CaMisbehaved: it was never read and cannot be read now.
        """
        async with self._directory_lock:
            cached = self._directory
            if cached is not None and self._clock.monotonic() - cached[0] < DIRECTORY_FRESH_SECONDS:
                return cached[1]
            try:
                answer = await self._patiently(lambda: self._read(self.directory_url, "the directory"))
                directory = wire.directory_from(answer.body)
                for url in named_urls.of_directory(directory):
                    self.check_url(url)
            except ScaivaultError:
                if cached is None:
                    raise
                self._log.warning("acme.directory_kept", reason="the CA does not answer")
                directory = cached[1]
            self._directory = (self._clock.monotonic(), directory)
            return directory

    def forget_directory(self) -> None:
        """Read the directory anew at the next use: an endpoint has moved (404, 405, 410)."""
        if self._directory is not None:
            self._directory = (float("-inf"), self._directory[1])

    async def get(self, url: str, what: str) -> Answer:
        """An unsigned request for something that anybody may read; short weather is sat out.

        Raises:
            CaRefused, CaMisbehaved, CaUnavailable, BackendRateLimited: in the CA's words.
        """
        return await self._patiently(lambda: self._read(url, what, directory_age_seconds=DIRECTORY_YOUNG_SECONDS))

    async def post(
        self, url: str, payload: bytes, what: str, key: AccountKey, kid: str | None, *, repeatable: bool = True
    ) -> Answer:
        """A signed request; any status below 300 comes back as the answer.

        `what` names the request for people. With `repeatable` short weather is sat out; without, a
        doubtful outcome comes up at once and the caller must look before it asks again.

        Raises:
            CaRefused, CaMisbehaved, CaUnavailable, BackendRateLimited: in the CA's words.
        """
        self.check_url(url)
        if repeatable:
            return await self._patiently(lambda: self._signed(url, payload, what, key, kid, self._fresh_nonce))
        # The nonce may be fetched as often as it takes; only the request itself goes out once.
        return await self._signed(url, payload, what, key, kid, lambda: self._patiently(self._fresh_nonce))

    def check_url(self, url: str) -> None:
        """Refuse a URL that is not this CA's; every request does so itself.

        Raises:
            CaMisbehaved: plain http, another host than the directory's, or an inner address.
        """
        self._urls.check(url)

    def pace(self, answer: Answer) -> float | None:
        """When the CA wants to be asked about this again, in seconds."""
        return answer.retry_after(self._clock.now())

    async def _signed(
        self,
        url: str,
        payload: bytes,
        what: str,
        key: AccountKey,
        kid: str | None,
        fresh_nonce: Callable[[], Awaitable[str]],
    ) -> Answer:
        for attempt in range(1, BAD_NONCE_TRIES + 1):
            started = self._clock.monotonic()
            nonce = self._nonces.take() or await fresh_nonce()
            body = key.sign(payload, url=url, nonce=nonce, kid=kid)
            answer = await self._send("POST", url, what, body)
            if not exchange.is_bad_nonce(answer):
                return self._accepted(answer, what)
            self._log.debug("acme.bad_nonce", attempt=attempt, resource=what)
            self._nonces.flush(started)
        raise CaUnavailable(f"the CA rejected {BAD_NONCE_TRIES} fresh nonces in a row for {what}")

    async def _fresh_nonce(self) -> str:
        url = (await self.directory()).new_nonce
        self.check_url(url)
        answer = self._accepted(await self._request("HEAD", url, "newNonce", None), "newNonce")
        if answer.nonce is None:
            raise CaMisbehaved("the CA's newNonce answer has no usable Replay-Nonce")
        return answer.nonce

    async def _read(self, url: str, what: str, *, directory_age_seconds: float = 0.0) -> Answer:
        self.check_url(url)
        answer = await self._send("GET", url, what, None)
        return self._accepted(answer, what, directory_age_seconds=directory_age_seconds)

    async def _patiently(self, once: Callable[[], Awaitable[T]]) -> T:
        pause = 0.1
        for attempt in range(1, WEATHER_TRIES + 1):
            try:
                return await once()
            except CaUnavailable as weather:
                wanted = pause if weather.retry_after is None else weather.retry_after
                if attempt == WEATHER_TRIES or wanted > PATIENCE_SECONDS:
                    raise
                await self._clock.sleep(wanted * (1 + self._randomness.fraction() / 2))
                pause *= 3
        raise AssertionError("unreachable")

    def _accepted(self, answer: Answer, what: str, *, directory_age_seconds: float = 0.0) -> Answer:
        """The answer if it is one; a directory older than that comes into doubt when nothing is at the URL."""
        if 200 <= answer.status < 300:
            return answer
        if answer.status in (404, 405, 410) and self._directory_is_older_than(directory_age_seconds):
            self.forget_directory()
        raise exchange.error_from(answer, what, self._clock.now())

    def _directory_is_older_than(self, seconds: float) -> bool:
        return self._directory is not None and self._clock.monotonic() - self._directory[0] >= seconds

    async def _send(self, method: str, url: str, what: str, body: bytes | None) -> Answer:
        answer = await self._request(method, url, what, body)
        if answer.nonce is not None:
            self._nonces.put(answer.nonce)
        return answer

    async def _request(self, method: str, url: str, what: str, body: bytes | None) -> Answer:
        # The trace ends here: what we call a request is nothing to a CA.
        with tracing.span(f"acme {what}", "client", ca=urlsplit(url).hostname or "", method=method) as doing:
            answer = await self._exchange(method, url, what, body)
            doing.attributes["status"] = answer.status
            return answer

    async def _exchange(self, method: str, url: str, what: str, body: bytes | None) -> Answer:
        headers = {"Content-Type": "application/jose+json"} if body is not None else {}
        started = self._clock.monotonic()
        try:
            async with (
                self._in_flight,
                self._session.request(method, url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                answer = Answer(
                    url=url,
                    status=response.status,
                    headers=tuple((name.lower(), _text(value)) for name, value in response.headers.items()),
                    body=await _bounded(response, what),
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._count(what, "none", started)
            raise _translated(error, what) from error
        self._count(what, str(answer.status), started)
        self._log.debug(
            "acme.request",
            method=method,
            url=url,
            status=answer.status,
            duration_ms=round((self._clock.monotonic() - started) * 1000),
            ca_request_id=answer.header("boulder-request-id") or answer.header("x-request-id"),
        )
        return answer

    def _count(self, what: str, code: str, started: float) -> None:
        ca, resource = ca_name(self.directory_url), _ARTICLE.sub("", what).replace("'s", "").replace(" ", "_")
        metrics.ACME_REQUESTS.labels(ca=ca, resource=resource, code=code).inc()
        metrics.ACME_REQUEST_DURATION.labels(ca=ca, resource=resource).observe(self._clock.monotonic() - started)


async def _bounded(response: aiohttp.ClientResponse, what: str) -> bytes:
    # One read may return less than there is; the limit holds for the sum (a CA may stream for ever).
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > BODY_MAX:
            raise CaMisbehaved(f"the CA's answer to {what} is larger than {BODY_MAX >> 20} MiB")
        chunks.append(chunk)
    return b"".join(chunks)


def _text(value: str) -> str:
    # aiohttp keeps bytes that are no UTF-8 as surrogates, which nothing can encode again.
    return value.encode("utf-8", "replace").decode()


def _translated(error: Exception, what: str) -> ScaivaultError:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return CaUnavailable(
                f"the CA's TLS certificate is not trusted ({error.certificate_error}); for a private CA give "
                "ca_certificates_pem with the account or [acme] trust_files"
            )
        case aiohttp.ClientConnectorError():
            return CaUnavailable(f"no connection to {error.host}:{error.port} for {what}: {error.os_error}")
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | aiohttp.ClientPayloadError():
            return CaUnavailable(f"the CA dropped the connection during {what}")
        case TimeoutError():
            return CaUnavailable(f"the CA did not answer {what} in time")
        case aiohttp.ClientError() | ValueError():
            # aiohttp raises ValueError for header lines it cannot hold.
            return CaMisbehaved(f"the CA's answer to {what} is not valid HTTP ({type(error).__name__})")
        case _:
            return CaUnavailable(f"no connection for {what}: {error}")


def _tls_context(trust_files: Sequence[Path], ca_certificates_pem: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for path in trust_files:
        context.load_verify_locations(cafile=path)
    if ca_certificates_pem:
        context.load_verify_locations(cadata=ca_certificates_pem)
    return context


class CaPool:
    """The connections of this process, one for each directory and set of trusted roots."""

    def __init__(
        self,
        settings: CaSettings,
        *,
        guard: AddressGuard,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
    ) -> None:
        self._settings = settings
        self._guard = guard
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self._connections: dict[tuple[str, str | None], CaConnection] = {}

    def client(
        self, directory_url: str, ca_certificates_pem: str | None, key: AccountKey, kid: str | None
    ) -> AcmeClient:
        """An account's client; connections and nonces are shared with all accounts at the same directory."""
        return AcmeClient(self._connection(directory_url, ca_certificates_pem), key, kid)

    def roots(self, directory_url: str, ca_certificates_pem: str | None) -> Sequence[bytes]:
        """The root certificates that are trusted for this CA's HTTPS, as DER."""
        return self._connection(directory_url, ca_certificates_pem).roots

    async def check_directory(self, url: str) -> None:
        """Refuse a directory URL at an address that is not open to callers; raises InvalidRequest."""
        await self._guard.check_directory(url)

    async def close(self) -> None:
        """Close every connection."""
        for connection in self._connections.values():
            await connection.close()
        self._connections.clear()

    def _connection(self, directory_url: str, ca_certificates_pem: str | None) -> CaConnection:
        key = (directory_url, ca_certificates_pem)
        if key not in self._connections:
            self._connections[key] = CaConnection(
                directory_url,
                ca_certificates_pem,
                self._settings,
                guard=self._guard,
                clock=self._clock,
                randomness=self._randomness,
                log=self._log,
            )
        return self._connections[key]

"""HTTP for DNS providers: deadlines, retries, and credentials that may have been rotated, over aiohttp.

Imported only by providers that need it. One `HttpApi` for each provider instance.
"""

from __future__ import annotations

import email.utils
import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec
from aiohttp.abc import ResolveResult
from yarl import URL

from scaivaultd.plugin.context import PluginContext
from scaivaultd.plugin.dns import ProviderSettings
from scaivaultd.plugin.errors import (
    Conflict,
    LostAnswer,
    PermanentError,
    ProviderAuthError,
    ProviderError,
    RateLimited,
    TransientError,
)
from scaivaultd.plugin.secrets import SecretReader

T = TypeVar("T")

CONNECT_SECONDS = 10.0
BODY_MAX = 8 << 20
BASE_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
_TOKEN = re.compile(r"[!-~]+")
RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it will be sent; `url` is absolute and encoded, and is sent byte for byte."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


class HttpAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, whatever its status; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The body as JSON; None when it is none (gateways answer 502 in HTML)."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None


Authorize = Callable[[HttpRequest, bool], Awaitable[Mapping[str, str]]]
"""Makes the headers that authorize a request. True: the last ones were refused, so forget and read the secrets anew."""

ErrorFrom = Callable[[HttpAnswer], ProviderError | None]
"""Reads an answer that is not 2xx by the service's own error format; None leaves it to its status."""


async def no_authorization(request: HttpRequest, refused: bool) -> Mapping[str, str]:
    """For services without credentials."""
    return {}


class HttpApi:
    """A service's HTTP API below one root URL."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        root: str,
        settings: ProviderSettings,
        context: PluginContext,
        *,
        authorize: Authorize,
        error_from: ErrorFrom,
        fresh: aiohttp.ClientSession | None = None,
    ) -> None:
        """Use `open_api`, which makes and closes the sessions.

        `fresh` keeps no connections; it carries requests that are not repeatable.
        """
        self._session = session
        self._fresh = fresh or session
        self._root = root.rstrip("/")
        self._settings = settings
        self._context = context
        self._authorize = authorize
        self._error_from = error_from

    @property
    def root(self) -> str:
        """The root URL, without a slash at its end."""
        return self._root

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        json: Any = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
        accept: frozenset[int] | set[int] = frozenset(),
    ) -> HttpAnswer:
        """Ask, and return a 2xx answer, or one whose status is in `accept`.

        `path` is below the root, already encoded (`quoted`), or an absolute URL of the same origin. Passing faults
        (connection, 408, 429, 5xx, a `TransientError` of `error_from`) are repeated after pauses with jitter,
        `Retry-After` obeyed, as often as `max_retries` says. A 401 or 403 is repeated once with secrets read anew.
        With `repeatable=False` a request whose answer is lost or unclear is not sent again.

        Raises:
            LostAnswer: it was not repeatable, and may have been carried out; look, then decide (`repeated`).
            ProviderError: what `error_from` made of the answer, or what follows from its status.
        """
        request = self._request(method, path, query, json, body, headers)
        refused = asked_anew = False
        failures = 0
        while True:
            try:
                answer = await self._attempt(request, refused, repeatable)
                refused = False
                if answer.ok or answer.status in accept:
                    return answer
                raise self._error(answer, repeatable)
            except ProviderAuthError:
                if asked_anew:
                    raise
                refused = asked_anew = True
            except (LostAnswer, Conflict):
                raise  # to be decided by looking at what is there: `repeated`
            except TransientError as error:
                failures += 1
                await self._pause(error, failures)

    async def repeated(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do a read-then-write step again while its answer is lost or another writer is faster.

        The step must begin by looking at what is there. About ten times for conflicts, `max_retries` for lost answers.
        """
        failures = conflicts = 0
        while True:
            try:
                return await step()
            except Conflict as error:
                conflicts += 1
                if conflicts > 10:
                    raise
                await self._context.clock.sleep(self._context.fraction() * min(0.1 * 2**conflicts, 5.0))
                self._context.log.debug("dns_provider.conflict", detail=error.detail)
            except LostAnswer as error:
                failures += 1
                await self._pause(error, failures)

    async def _pause(self, error: TransientError, failures: int) -> None:
        """Wait before the next try; raises `error` when there is none."""
        if failures > self._settings.max_retries:
            raise error
        longest = min(BASE_PAUSE_SECONDS * 2**failures, LONGEST_PAUSE_SECONDS)
        pause = self._context.fraction() * longest
        if error.retry_after is not None:
            if error.retry_after > LONGEST_PAUSE_SECONDS:
                raise error  # longer than a call may take: the host waits, and holds nothing meanwhile
            pause = max(pause, error.retry_after)
        self._context.log.debug("dns_provider.retry", detail=error.detail, pause_seconds=round(pause, 2))
        await self._context.clock.sleep(pause)

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None,
        json: Any,
        body: bytes | None,
        headers: Mapping[str, str] | None,
    ) -> HttpRequest:
        url = path if path.startswith(("http://", "https://")) else f"{self._root}{path}"
        if origin_of(url) != origin_of(self._root):
            # Credentials go to one place only, whatever an answer says about the next page.
            raise PermanentError(f"the service names a URL of another host ({urlsplit(url).hostname}); not followed")
        if query:
            url = f"{url}{'&' if '?' in url else '?'}{urlencode(query, quote_via=quote, safe='')}"
        sent = {"Accept": "application/json", "User-Agent": self._context.user_agent, **(headers or {})}
        if json is not None:
            body = msgspec.json.encode(json)
            sent["Content-Type"] = "application/json"
        return HttpRequest(method=method, url=url, headers=sent, body=body or b"")

    async def _attempt(self, request: HttpRequest, refused: bool, repeatable: bool) -> HttpAnswer:
        authorization = await self._authorize(request, refused)
        host = urlsplit(request.url).hostname
        # A kept connection may have been closed by the service a moment ago, which shows only when the request is lost
        # on it (RFC 9112 section 9.3.1). With a service that keeps none, each write would be lost so.
        session = self._session if repeatable else self._fresh
        try:
            async with session.request(
                request.method,
                URL(request.url, encoded=True),
                headers={**request.headers, **authorization},
                data=request.body or None,
                allow_redirects=False,
            ) as response:
                return HttpAnswer(
                    status=response.status,
                    headers={name.lower(): value for name, value in response.headers.items()},
                    body=_without_credentials(await _body(response), authorization),
                )
        # The texts of aiohttp's errors name hosts and ports only; they are not repeated all the same.
        except aiohttp.ClientConnectorError as error:
            reason = error.strerror or type(error).__name__
            raise TransientError(f"no connection to {host}: {reason}") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = "did not answer in time" if isinstance(error, TimeoutError) else "broke the connection off"
            lost = TransientError if repeatable else LostAnswer
            raise lost(f"{host} {what} ({request.method} {urlsplit(request.url).path})") from None

    def _error(self, answer: HttpAnswer, repeatable: bool) -> ProviderError:
        error = self._error_from(answer) or error_by_status(answer, "")
        retry_after = retry_after_of(answer, self._context)
        if isinstance(error, TransientError):
            if error.retry_after is None:
                error.retry_after = retry_after
            unclear = answer.status >= 500 and not isinstance(error, RateLimited | Conflict)
            if unclear and not repeatable:
                return LostAnswer(error.detail, error.retry_after)
        return error


@asynccontextmanager
async def open_api(
    root: str, settings: ProviderSettings, context: PluginContext, *, authorize: Authorize, error_from: ErrorFrom
) -> AsyncIterator[HttpApi]:
    """An `HttpApi` with a session of its own.

    Raises:
        PermanentError: the root is no https URL, or at an address out of reach; http is taken for loopback addresses
            only.
    """
    require_safe(root)
    _require_within_reach(root, context)
    timeout = aiohttp.ClientTimeout(total=settings.request_timeout, connect=CONNECT_SECONDS)
    async with _session(timeout, context) as session, _session(timeout, context, force_close=True) as fresh:
        yield HttpApi(session, root, settings, context, authorize=authorize, error_from=error_from, fresh=fresh)


class _WithinReach(aiohttp.ThreadedResolver):
    """The system's resolver without the addresses that are out of reach: those that are left are connected to."""

    def __init__(self, context: PluginContext) -> None:
        super().__init__()
        self._may_reach = context.may_reach

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises PermanentError when all of them are."""
        found = await super().resolve(host, port, family)
        allowed = [each for each in found if self._may_reach(host, port, each["host"])]
        if found and not allowed:
            raise _out_of_reach(host, port)
        return allowed


def _require_within_reach(root: str, context: PluginContext) -> None:
    _, host, port = origin_of(root)
    # aiohttp asks no resolver for digits and dots, and to the system 2130706433 and 127.1 are 127.0.0.1.
    if not host or not port or not (":" in host or host.replace(".", "").isdigit()):
        return
    if not _is_address(host):
        raise PermanentError(f"{host} is no address in its usual form")
    if not context.may_reach(host, port, host):
        raise _out_of_reach(host, port)


def _out_of_reach(host: str, port: int) -> PermanentError:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return PermanentError(
        f"{place} is at a private, loopback or link-local address; an administrator can allow it with [dns] "
        f'private_apis = ["{place}"], or configure the provider in the configuration file'
    )


def _session(
    timeout: aiohttp.ClientTimeout, context: PluginContext, *, force_close: bool = False
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=timeout,
        connector=aiohttp.TCPConnector(force_close=force_close, resolver=_WithinReach(context)),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=True,
        trust_env=False,
    )


async def token_from(secrets: SecretReader, reference: str, refused: bool) -> str:
    """A token for a header: read at the moment of use, and anew when the service has refused the last one.

    Raises:
        ProviderAuthError: the secret holds what no token holds (blanks, line breaks), so it is another secret.
        SecretMissing: it is not there.
    """
    if refused:
        secrets.forget(reference)
    token = (await secrets.read(reference)).reveal().strip()
    if not _TOKEN.fullmatch(token):
        raise ProviderAuthError(f"the secret {reference} is no token: it holds blanks or other odd characters")
    return token


def bearer(secrets: SecretReader, reference: str) -> Authorize:
    """Authorizes every request with the token at `reference` (RFC 6750)."""

    async def authorize(request: HttpRequest, refused: bool) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {await token_from(secrets, reference, refused)}"}

    return authorize


def decoded(answer: HttpAnswer, shape: type[T], service: str) -> T:
    """A 2xx answer as a Struct; numbers may stand in strings.

    Raises:
        LostAnswer: it is something else than documented, such as a gateway's page: nobody knows what was done.
    """
    try:
        return msgspec.json.decode(answer.body, type=shape, strict=False)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _undocumented(answer, service) from None


def told(answer: HttpAnswer, member: T | msgspec.UnsetType, service: str) -> T:
    """What was asked for, where silence about it is not the same as none.

    Raises:
        LostAnswer: the answer is silent.
    """
    if isinstance(member, msgspec.UnsetType):
        raise _undocumented(answer, service)
    return member


def _undocumented(answer: HttpAnswer, service: str) -> LostAnswer:
    return LostAnswer(f"{service} answers something else than documented (HTTP {answer.status})")


def error_by_status(answer: HttpAnswer, detail: str, code: str | None = None) -> ProviderError:
    """What follows from the status alone; `detail` is the service's text, if it was understood."""
    text = f"HTTP {answer.status}{f' {code}' if code else ''}{f': {detail}' if detail else ''}"
    if answer.status in (401, 403):
        return ProviderAuthError(f"the service refuses the credentials or their rights ({text})")
    if answer.status == 429:
        return RateLimited(f"the service asks to slow down ({text})")
    if answer.status in RETRY_STATUS or answer.status >= 500:
        return TransientError(f"the service failed ({text})")
    return PermanentError(text, code)


def retry_after_of(answer: HttpAnswer, context: PluginContext) -> float | None:
    """`Retry-After` in seconds (RFC 9110 section 10.2.3: seconds or a date); None when absent or no such thing."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (moment - context.clock.now()).total_seconds())
    except (ValueError, TypeError, IndexError):
        return None


def quoted(segment: str) -> str:
    """One segment of a path; `@` stays as it is (RFC 3986 section 3.3), `/` does not."""
    return quote(segment, safe="@:!$&'()*+,;=-._~")


def require_safe(url: str) -> None:
    """Refuse URLs over which credentials would travel in the clear.

    Raises:
        PermanentError: neither https, nor http to a loopback address.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise PermanentError(f"this is no URL: {error}") from None
    if not host or parts.username or parts.password or parts.query or parts.fragment:
        raise PermanentError("a URL of the form https://HOST[:PORT]/PATH is needed, without login or query")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise PermanentError(f"{parts.scheme}://{host}: https is needed (http is taken for loopback addresses only)")


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port, for comparing."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _without_credentials(body: bytes, authorization: Mapping[str, str]) -> bytes:
    """The body of an answer; what a service repeats of the credentials must not get into the text of an error."""
    scheme, _, credentials = authorization.get("Authorization", "").partition(" ")
    if scheme not in ("Basic", "Bearer") or len(credentials) < 8:
        return body
    return body.replace(credentials.encode(), b"[credentials]")


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > BODY_MAX:
            raise PermanentError(f"the service answers with more than {BODY_MAX >> 20} MiB")
    return bytes(body)

"""OAuth access tokens that are fetched when needed: one fetch at a time, kept until shortly before they expire."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit
from weakref import WeakKeyDictionary

import aiohttp
import msgspec

from scaivaultd.plugin import (
    Clock,
    PermanentError,
    PluginContext,
    ProviderAuthError,
    ProviderError,
    ProviderSettings,
    Secret,
    TransientError,
)
from scaivaultd.plugin.http import (
    CONNECT_SECONDS,
    HttpAnswer,
    HttpApi,
    HttpRequest,
    error_by_status,
    no_authorization,
    open_api,
    require_safe,
)

T = TypeVar("T")

MARGIN_SECONDS = 300.0
DEFAULT_LIFETIME_SECONDS = 3600.0
REFUSALS = frozenset({400, 401, 403})
# Codes that come with status 400, though nothing is wrong with the request (RFC 6749 section 4.1.2.1, and Google's).
PASSING_CODES = frozenset({"internal_failure", "server_error", "temporarily_unavailable"})
# Members of the form that nobody may see.
PROOFS = ("client_secret", "client_assertion", "assertion")
# How long a token that still lasts is used before another try to renew it.
RENEW_AGAIN_SECONDS = 30.0


class AccessToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token and how long it is valid from now, in seconds."""

    secret: Secret
    lifetime_seconds: float


FetchToken = Callable[[bool], Awaitable[AccessToken]]
"""Fetches a new token. True: what it is made of may have been rotated, so forget and read it anew."""


class TokenCache:
    """The token of one provider; `authorize` is what `HttpApi` wants."""

    def __init__(self, fetch: FetchToken, clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = asyncio.Lock()
        self._token: Secret | None = None
        self._renew_at = 0.0
        self._expires_at = 0.0
        # A task waits for one answer at a time, so this tells which token was refused: when many requests
        # are refused at once, the first fetches a new one and the others take that.
        self._handed: WeakKeyDictionary[asyncio.Task[Any], Secret] = WeakKeyDictionary()

    async def authorize(self, request: HttpRequest, refused: bool) -> Mapping[str, str]:
        """The `Authorization` header; `refused` fetches a new token, unless somebody just did.

        Raises:
            ProviderError: no token is to be had.
        """
        task = asyncio.current_task()
        assert task is not None
        async with self._lock:
            token = self._token
            if refused and token is self._handed.get(task):
                token = None
            if token is None or self._clock.monotonic() >= self._renew_at:
                token = await self._renew(refused)
        self._handed[task] = token
        return {"Authorization": f"Bearer {token.reveal()}"}

    async def _renew(self, refused: bool) -> Secret:
        if refused or self._clock.monotonic() >= self._expires_at:
            self._token = None
        try:
            fetched = await self._fetch(refused)
        except TransientError:
            if self._token is None:
                raise
            # The old one lasts for some minutes, and the endpoint may be back by then.
            self._renew_at = min(self._clock.monotonic() + RENEW_AGAIN_SECONDS, self._expires_at)
            return self._token
        lifetime = fetched.lifetime_seconds
        # Some tokens live no longer than the margin: those are renewed at half of their life.
        margin = MARGIN_SECONDS if lifetime > MARGIN_SECONDS else lifetime / 2
        self._expires_at = self._clock.monotonic() + lifetime
        self._renew_at = self._expires_at - margin
        self._token = fetched.secret
        return fetched.secret


async def ask_token_endpoint(
    url: str, form: Mapping[str, str], settings: ProviderSettings, context: PluginContext
) -> HttpAnswer:
    """Post a form to a token endpoint; the answer is 2xx, or a refusal (400, 401, 403).

    Passing faults are not repeated here: the request that wants the token is, and asks again.

    Raises:
        ProviderError: the URL is not safe, or the endpoint failed.
    """

    def error_from(answer: HttpAnswer) -> ProviderError:
        return token_error(_without_proof(answer, form))

    async with open_api(
        url, without_retries(settings), context, authorize=no_authorization, error_from=error_from
    ) as api:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await api.call("POST", url, body=urlencode(form).encode(), headers=headers, accept=REFUSALS)
        return answer if answer.ok else _without_proof(answer, form)


def _without_proof(answer: HttpAnswer, form: Mapping[str, str]) -> HttpAnswer:
    """A refusal becomes an error's text; should it repeat what it refuses, that must not stand there."""
    body = answer.body
    for proof in filter(None, map(form.get, PROOFS)):
        for written in (proof.encode(), msgspec.json.encode(proof)[1:-1]):
            body = body.replace(written, b"[credentials]")
    return msgspec.structs.replace(answer, body=body)


def without_retries(settings: ProviderSettings) -> ProviderSettings:
    """For fetching tokens: that happens inside a request that is repeated already."""
    return msgspec.structs.replace(settings, max_retries=0)


def token_from(answer: HttpAnswer, clock: Clock) -> AccessToken:
    """The token of a 2xx answer: `expires_in` or `expires_on` (UNIX time), as numbers or as digits in a string.

    Raises:
        TransientError: there is none in it, as when a gateway answers in the service's place.
    """
    body = answer.json()
    members: dict[str, Any] = body if isinstance(body, dict) else {}
    token = members.get("access_token")
    if not isinstance(token, str) or not _fits_a_header(token):
        raise TransientError("the token endpoint answers without a usable access_token")
    lifetime = _seconds(members.get("expires_in"))
    if lifetime is None and (expires_on := _seconds(members.get("expires_on"))) is not None:
        lifetime = expires_on - clock.now().timestamp()
    return AccessToken(
        secret=Secret(token), lifetime_seconds=max(0.0, DEFAULT_LIFETIME_SECONDS if lifetime is None else lifetime)
    )


def refused_token(answer: HttpAnswer, hint: str = "") -> ProviderError:
    """What a token endpoint says no with (RFC 6749 section 5.2), and what helps."""
    code, description = error_and_description(answer)
    if code in PASSING_CODES:
        return TransientError(f"the token endpoint is not available ({code}: {description})")
    said = ": ".join(part for part in (code, description) if part) or f"HTTP {answer.status}"
    return ProviderAuthError(f"no access token: {said}{f' ({hint})' if hint else ''}")


def error_and_description(answer: HttpAnswer) -> tuple[str, str]:
    """`error` and `error_description` of a token endpoint, cut to what a person reads; empty when absent."""
    body = answer.json()
    if not isinstance(body, dict):
        return "", ""
    error: Any = body.get("error")
    description = body.get("error_description")
    if isinstance(error, dict):  # some front ends answer in the format of their other APIs
        error, description = error.get("status") or error.get("code"), error.get("message")
    return _line(error), _line(description)


def _line(text: object) -> str:
    return " ".join(str(text).split())[:400] if text else ""


def _seconds(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None


def _fits_a_header(token: str) -> bool:
    return bool(token) and token.isascii() and token.isprintable() and " " not in token


@asynccontextmanager
async def open_machine_api(
    root: str, known_hosts: frozenset[str], settings: ProviderSettings, context: PluginContext
) -> AsyncIterator[HttpApi]:
    """The API of the machine's own metadata server: like `open_api`, but plain http to one of `known_hosts` is taken.

    Those are link-local and cannot have certificates; what they give is bound to the machine.

    Raises:
        PermanentError: `root` is neither such a host, nor https, nor loopback.
    """
    if urlsplit(root).hostname not in known_hosts:
        async with open_api(root, settings, context, authorize=no_authorization, error_from=token_error) as api:
            yield api
        return
    timeout = aiohttp.ClientTimeout(total=settings.request_timeout, connect=CONNECT_SECONDS)
    # No proxy: it would ask its own machine's metadata server.
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False) as session:
        yield HttpApi(session, root, settings, context, authorize=no_authorization, error_from=token_error)


def token_error(answer: HttpAnswer) -> ProviderError:
    """An answer of a token endpoint that its caller did not expect, by its status."""
    code, description = error_and_description(answer)
    return error_by_status(answer, description, code or None)


def require_safe_setting(name: str, url: str | None) -> None:
    """`require_safe` for settings, so that a bad URL is told when a provider is configured.

    Raises:
        ValueError: which setting, and what is wrong.
    """
    try:
        if url is not None:
            require_safe(url)
    except PermanentError as error:
        raise ValueError(f"{name}: {error.detail}") from None


async def in_thread(work: Callable[[], T], seconds: float) -> T:
    """Run blocking code of somebody else's library in a thread, and wait no longer than `seconds` for it.

    Raises:
        TransientError: it takes longer; the thread is left to itself.
    """
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.to_thread(work)
    except TimeoutError:
        raise TransientError(f"the credentials library did not answer within {seconds:.0f} s") from None


def imported(module: str, distribution: str, source: str) -> Any:
    """A module of a library that is not among our dependencies.

    Raises:
        PermanentError: it is not installed; the text says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise PermanentError(
            f"credentials_source {source} needs the package {distribution}, which is not installed beside the daemon "
            f"(pip install {distribution})"
        ) from None

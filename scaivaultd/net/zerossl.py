"""External account bindings from ZeroSSL's API (zerossl.com/documentation/acme/generate-eab-credentials).

The access key is part of the URL, so no error of the HTTP library is shown or chained here, not even as a context:
its text may hold the key.
"""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from scaivaultd.model.errors import BackendRateLimited, CaMisbehaved, CaRefused, CaUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scaivaultd.model.errors import ScaivaultError

BODY_MAX = 64 << 10
CONNECT_SECONDS = 10.0
_KEY_ID = re.compile(r"[\x21-\x7e]{1,500}")
_HMAC_KEY = re.compile(r"[A-Za-z0-9_-]{1,500}={0,2}")
_ERROR_TYPE = re.compile(r"[a-z]{1,40}(_[a-z]{1,40}){1,12}")
_PASSING = (2902, 2903)
"""Maintenance, and a binding that could not be saved (zerossl.com/documentation/acme/error-codes)."""
_TOO_MANY = (104, 2904)
"""Enough for this month, for today."""
_TOO_MANY_PAUSE_SECONDS = 3600.0


class ZeroSslEab:
    """Asks ZeroSSL for a key identifier and a MAC key, by access key or by e-mail address."""

    def __init__(
        self, api_url: str, *, trust_files: Sequence[Path], user_agent: str, timeout_seconds: float = 30.0
    ) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_SECONDS)
        self._api_url = api_url.rstrip("/")
        self._trust_files = trust_files
        self._user_agent = user_agent

    async def by_access_key(self, access_key: str) -> tuple[str, str]:
        """Key identifier and MAC key (base64url); raises CaRefused, CaUnavailable, CaMisbehaved."""
        return await self._ask("eab-credentials", params={"access_key": access_key})

    async def by_email(self, email: str) -> tuple[str, str]:
        """The same for an e-mail address."""
        return await self._ask("eab-credentials-email", data={"email": email})

    async def _ask(
        self, resource: str, *, params: Mapping[str, str] | None = None, data: Mapping[str, str] | None = None
    ) -> tuple[str, str]:
        url = f"{self._api_url}/acme/{resource}"
        try:
            async with (
                self._session() as session,
                session.post(url, params=params, data=data, allow_redirects=False) as response,
            ):
                return _binding_in(response.status, await _bounded(response))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            failure = _translated(error)
        raise failure

    def _session(self) -> aiohttp.ClientSession:
        context = ssl.create_default_context()
        for path in self._trust_files:
            context.load_verify_locations(cafile=path)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context),
            timeout=self._timeout,
            # Nothing compressed: a body of a kilobyte must not unfold into gigabytes.
            auto_decompress=False,
            headers={"User-Agent": self._user_agent, "Accept": "application/json", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > BODY_MAX:
            raise CaMisbehaved(f"ZeroSSL's answer is larger than {BODY_MAX >> 10} KiB")
    return body


def _binding_in(status: int, body: bytes) -> tuple[str, str]:
    """What stands in an answer. A refusal comes with status 200, too: `success` tells."""
    if status >= 500:
        raise CaUnavailable(f"ZeroSSL answered {status} to the request for an external account binding")
    if status == 429:
        raise _limited("ZeroSSL answered 429")
    document = _object(body)
    if document is None or 300 <= status < 400:
        raise CaMisbehaved(f"ZeroSSL answered {status} to the request for an external account binding, and no JSON")
    if isinstance(document.get("error"), dict) or document.get("success") not in (True, 1, "1"):
        raise _refusal(document.get("error"))
    key_id, hmac_key = document.get("eab_kid"), document.get("eab_hmac_key")
    if not (isinstance(key_id, str) and _KEY_ID.fullmatch(key_id)):
        raise CaMisbehaved("ZeroSSL's external account binding has no usable eab_kid")
    if not (isinstance(hmac_key, str) and _HMAC_KEY.fullmatch(hmac_key)):
        raise CaMisbehaved("ZeroSSL's external account binding has no usable eab_hmac_key")
    return key_id, hmac_key


def _refusal(error: Any) -> ScaivaultError:
    known = error if isinstance(error, dict) else {}
    code, kind = known.get("code"), known.get("type")
    # Only what looks like one of its words: what it echoes might be the access key.
    word = kind if isinstance(kind, str) and _ERROR_TYPE.fullmatch(kind) else "without a reason"
    said = f"ZeroSSL gives no external account binding: {word}" + (f" ({code})" if isinstance(code, int) else "")
    if code in _PASSING:
        return CaUnavailable(said)
    if code in _TOO_MANY:
        return _limited(said)
    return CaRefused(f"{said}; check the access key or the e-mail address, or give eab yourself")


def _limited(said: str) -> BackendRateLimited:
    return BackendRateLimited(said, retry_after=_TOO_MANY_PAUSE_SECONDS)


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _translated(error: Exception) -> ScaivaultError:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return CaUnavailable(
                f"the TLS certificate of ZeroSSL's API is not trusted ({error.certificate_error}); see [acme] "
                "trust_files and zerossl_api"
            )
        case aiohttp.ClientConnectorError():
            return CaUnavailable(f"no connection to ZeroSSL's API at {error.host}:{error.port}: {error.os_error}")
        case TimeoutError():
            return CaUnavailable("ZeroSSL's API did not answer in time")
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError():
            return CaUnavailable("ZeroSSL's API dropped the connection")
        case aiohttp.ClientError() | ValueError():
            return CaMisbehaved(f"the answer of ZeroSSL's API is not valid HTTP ({type(error).__name__})")
        case _:
            return CaUnavailable("no connection to ZeroSSL's API")

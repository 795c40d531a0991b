"""Looking at our own challenge answers from here, as a CA would from outside (RFC 8555 section 8.3, RFC 8737).

The hosts are named by callers: this connects to them at the ports where CAs look and nowhere else, and tells what was
seen in words of our own, never what they sent.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from yarl import URL

from scaivaultd.model.resources import Sighting
from scaivaultd.net.guard import ask_the_system

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from scaivaultd.net.guard import LookUp

CONNECT_SECONDS = 3.0
TOTAL_SECONDS = 4.5
"""Less than what the checks of an order have by default: silence is to be seen as that, not as time that ran out."""
ADDRESSES_MAX = 4
BODY_MAX = 4096
REDIRECTS_MAX = 3

_REDIRECTS = (301, 302, 303, 307, 308)
_WEB_PORTS = (80, 443)
_ACME_TLS_1 = "acme-tls/1"
_ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_OCTET_STRING_OF_32 = b"\x04\x20"
_ALERTS = {
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": f"it does not speak {_ACME_TLS_1}",
    "TLSV1_UNRECOGNIZED_NAME": "it has no answer for this name",
}
_NO_ROUTE = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_UNROUTABLE = "this host has no route to it"


class OwnAnswers:
    """One look at each address of a host, bounded in time and size."""

    def __init__(
        self,
        *,
        http01_port: int,
        tlsalpn01_port: int,
        user_agent: str,
        connect_seconds: float = CONNECT_SECONDS,
        total_seconds: float = TOTAL_SECONDS,
        look_up: LookUp | None = None,
    ) -> None:
        """`look_up` asks somebody else than the system for addresses."""
        self._http01_port = http01_port
        self._tlsalpn01_port = tlsalpn01_port
        self._ports = frozenset((*_WEB_PORTS, http01_port, tlsalpn01_port))
        self._user_agent = user_agent
        self._connect_seconds = connect_seconds
        self._total_seconds = total_seconds
        self._look_up = look_up or ask_the_system

    async def http01(self, host: str, token: str, expected: str) -> str | None:
        """What stands in the way of the key authorization at `host`, in words; None when it is there."""
        return _summary(await self.see_http01(host, token, expected))

    async def tlsalpn01(self, host: str, expected_digest: bytes) -> str | None:
        """The same for the `acme-tls/1` certificate; `host` is a name or an address."""
        return _summary(await self.see_tlsalpn01(host, expected_digest))

    async def see_http01(self, host: str, token: str, expected: str) -> Sequence[Sighting]:
        """What each address of `host` has at the challenge's path."""
        authority = f"[{host}]" if ":" in host else host
        url = URL(f"http://{authority}:{self._http01_port}/.well-known/acme-challenge/{token}")
        return await self._at_each_address(
            host, self._http01_port, lambda address: self._require_body(address, url, expected.encode())
        )

    async def see_tlsalpn01(self, host: str, expected_digest: bytes) -> Sequence[Sighting]:
        """What each address of `host` shows to whoever speaks `acme-tls/1`."""
        # SNI holds no addresses, so their reverse names stand for them (RFC 8738 section 6).
        server_name = ipaddress.ip_address(host).reverse_pointer if _is_address(host) else host
        return await self._at_each_address(
            host,
            self._tlsalpn01_port,
            lambda address: self._require_certificate(address, server_name, expected_digest),
        )

    async def _at_each_address(
        self, host: str, port: int, look: Callable[[str], Coroutine[Any, Any, None]]
    ) -> Sequence[Sighting]:
        deadline = asyncio.get_running_loop().time() + self._total_seconds
        try:
            async with asyncio.timeout_at(deadline):
                addresses = await self._addresses(host, port)
        except TimeoutError:
            return _nowhere(f"no name server gave its address within {self._total_seconds:g} s")
        except (OSError, UnicodeError) as error:
            is_silence = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            return _nowhere("no name server gave its address" if is_silence else "it has no address")
        async with asyncio.TaskGroup() as group:
            tasks = {each: group.create_task(_in_words(look, each, deadline)) for each in addresses}
        return [_sighting(address, port, task.result()) for address, task in tasks.items()]

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        if _is_address(host):
            return [host]
        found = dict.fromkeys(each["host"] for each in await self._look_up(host, port, socket.AF_UNSPEC))
        v6 = [each for each in found if ":" in each]
        v4 = [each for each in found if ":" not in each]
        some_v4 = min(len(v4), ADDRESSES_MAX // 2)
        return [*v6[: ADDRESSES_MAX - some_v4], *v4][:ADDRESSES_MAX]

    async def _require_body(self, address: str, url: URL, expected: bytes) -> None:
        async with self._session(address) as session:
            for _ in range(REDIRECTS_MAX + 1):
                async with session.get(url, allow_redirects=False) as response:
                    if response.status not in _REDIRECTS:
                        await _require_proof(response, expected)
                        return
                    url = self._redirected(response)
        raise _Obstacle(f"more than {REDIRECTS_MAX} redirects")

    async def _require_certificate(self, address: str, server_name: str, digest: bytes) -> None:
        async with asyncio.timeout(self._connect_seconds):
            _, writer = await asyncio.open_connection(address, self._tlsalpn01_port)
        try:
            context = _unverified()
            context.set_alpn_protocols([_ACME_TLS_1])
            await writer.start_tls(context, server_hostname=server_name)
            connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
            if connection.selected_alpn_protocol() != _ACME_TLS_1:
                raise _Obstacle(f"it does not speak {_ACME_TLS_1}")
            _require_digest(connection.getpeercert(binary_form=True) or b"", digest)
        finally:
            # Aborted, not closed: a close may wait for a peer that has stopped reading.
            writer.transport.abort()

    def _session(self, address: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_Pinned(address), ssl=_unverified(), use_dns_cache=False, force_close=True
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=BODY_MAX,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_seconds),
            headers={"User-Agent": self._user_agent, "Accept-Encoding": "identity"},
        )

    def _redirected(self, response: aiohttp.ClientResponse) -> URL:
        """Where it leads: to the same host, else anybody could send us anywhere."""
        try:
            target = response.url.join(URL(response.headers["Location"]))
        except (KeyError, ValueError):
            raise _Obstacle("a redirect that cannot be read") from None
        if target.scheme not in ("http", "https") or target.port not in self._ports:
            raise _Obstacle("a redirect that CAs do not follow: neither http at port 80 nor https at port 443")
        if target.host != response.url.host:
            raise _Obstacle("a redirect to another host, which is not looked at from here")
        # A user in a URL would become a header.
        return target.with_user(None)


class _Obstacle(Exception):
    """What stands in the way, in words."""


class _Pinned(AbstractResolver):
    """Every name is at the one address that is looked at."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        own_family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        return [
            ResolveResult(
                hostname=host,
                host=self._address,
                port=port,
                family=own_family,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing to close."""


async def _in_words(look: Callable[[str], Coroutine[Any, Any, None]], address: str, deadline: float) -> str | None:
    try:
        async with asyncio.timeout_at(deadline):
            await look(address)
    except _Obstacle as obstacle:
        return str(obstacle)
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        return _words(error)
    return None


def _words(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "no answer in time"
        case aiohttp.ClientSSLError():
            return "the TLS handshake failed"
        case ssl.SSLError(reason=str(reason)):
            return _ALERTS.get(reason, f"the TLS handshake failed ({reason})")
        case OSError(errno=int(number)) if number in _NO_ROUTE:
            return _UNROUTABLE
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
        case OSError() | aiohttp.ServerDisconnectedError():
            return "the connection was closed without an answer"
        case _:
            return "no valid HTTP answer"


def _nowhere(why: str) -> Sequence[Sighting]:
    return [Sighting(where="", saw=why, ok=False)]


def _sighting(address: str, port: int, obstacle: str | None) -> Sighting:
    where = f"{f'[{address}]' if ':' in address else address}:{port}"
    if obstacle is None:
        return Sighting(where=where, saw="our answer", ok=True)
    # Where this host has no way to an address family, a CA may have one all the same.
    return Sighting(where=where, saw=obstacle, ok=None if obstacle == _UNROUTABLE else False)


def _summary(seen: Sequence[Sighting]) -> str | None:
    told = [each for each in seen if each.ok is not None] or seen
    return "; ".join(f"{each.where}: {each.saw}".removeprefix(": ") for each in told if not each.ok) or None


async def _require_proof(response: aiohttp.ClientResponse, expected: bytes) -> None:
    if response.status != 200:
        raise _Obstacle(f"status {response.status}")
    body = b""
    while len(body) <= BODY_MAX and (chunk := await response.content.read(BODY_MAX)):
        body += chunk
    if len(body) > BODY_MAX:
        raise _Obstacle(f"another answer of more than {BODY_MAX} bytes")
    # White space at the end is nothing (RFC 8555 section 8.3).
    if body.rstrip() != expected:
        raise _Obstacle(f"another answer of {len(body)} bytes")


def _require_digest(certificate_der: bytes, digest: bytes) -> None:
    try:
        extensions = x509.load_der_x509_certificate(certificate_der).extensions
        value = extensions.get_extension_for_oid(_ACME_IDENTIFIER).value
    except x509.ExtensionNotFound:
        raise _Obstacle("its certificate answers no challenge: it has no acmeIdentifier") from None
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise _Obstacle("its certificate cannot be read") from None
    if not isinstance(value, x509.UnrecognizedExtension) or value.value != _OCTET_STRING_OF_32 + digest:
        raise _Obstacle("its certificate answers another challenge: the acmeIdentifier is not ours")


def _unverified() -> ssl.SSLContext:
    """TLS without a question of trust: a CA asks none here either (RFC 8555 section 8.3), and RFC 8737 certificates
    are self-signed by their nature. Nothing secret is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

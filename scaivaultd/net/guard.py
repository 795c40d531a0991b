"""Where the daemon connects to: nobody who may name a URL gets it to talk to our inner network.

Addresses are checked twice: when an account names its directory (a clear answer to the caller), and at
every connection (a name may resolve elsewhere tomorrow), where what was checked is what is connected to.
URLs that a CA names are checked before they are visited: they stay on its directory's host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult

from scaivaultd.model.errors import CaMisbehaved, FieldError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence


RESOLVE_SECONDS = 10.0

LookUp = Callable[[str, int, socket.AddressFamily], Awaitable[list[ResolveResult]]]


ORIGINS_MAX = 1000
"""How many origins are remembered as judged; whatever a CA sends must not grow without end."""

# One meaning for every reader of URLs: no login, no backslash, no percent-encoded dots.
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}(?:%[0-9A-Za-z.%]{1,40})?\])(?::[0-9]{1,5})?")


class AddressGuard:
    """Refuses loopback, link-local, private and reserved addresses except those listed as `host:port`.

    `further_hosts` are those at which every CA's URLs may be, as `host:port` too.
    """

    def __init__(self, private_directories: Sequence[str], further_hosts: Sequence[str] = ()) -> None:
        self._listed = frozenset(entry.lower() for entry in private_directories)
        self._further = frozenset(entry.lower() for entry in further_hosts)

    def list_only(self, private_directories: Sequence[str]) -> None:
        """Except others from now on; connections that are there stay."""
        self._listed = frozenset(entry.lower() for entry in private_directories)

    def allows(self, host: str, port: int, address: str) -> bool:
        """Whether a connection to `address` under the name `host` may be made."""
        if _is_public(ipaddress.ip_address(address.partition("%")[0])):
            return True
        return any(_place(name, port) in self._listed for name in (host, address))

    def ca_of(self, directory_url: str) -> CaUrls:
        """What judges the URLs of the CA with this directory."""
        return CaUrls(directory_url, self._further, self)

    async def check_directory(self, url: str) -> None:
        """Refuse a directory URL that a caller wants to use.

        A name that does not resolve now is let through: the registration will say so.

        Raises:
            InvalidRequest: the host is, or resolves to, an address that is not listed.
        """
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
        if not _AUTHORITY.fullmatch(parts.netloc):
            raise _refused("bad_url", f"{parts.netloc[:200]!r} is no plain host and port")
        try:
            results = await _in_time(ask_the_system, host, port, socket.AF_UNSPEC)
        except OSError:
            return
        except UnicodeError as error:
            raise _refused("bad_url", f"{host!r} is no host name: {error}") from error
        forbidden = [each["host"] for each in results if not self.allows(host, port, each["host"])]
        if forbidden:
            detail = (
                f"the directory is at {forbidden[0]}, a private, loopback or link-local address; an administrator "
                f'can allow it with [acme] private_directories = ["{_place(host, port)}"]'
            )
            raise _refused("private_address", detail)


class CaUrls:
    """Refuses what a CA names as a URL of its own and is not: plain http, another host, an inner address."""

    def __init__(self, directory_url: str, further: frozenset[str], guard: AddressGuard) -> None:
        """Use `AddressGuard.ca_of`."""
        parts = urlsplit(directory_url)
        self._own = _place(parts.hostname or "", parts.port or 443)
        self._further = further
        self._guard = guard
        self._good_origins: set[str] = set()

    def check(self, url: str) -> None:
        """Judge a URL before it is visited, or kept.

        Raises:
            CaMisbehaved: it is not to be visited. Addresses behind names are judged when they have been resolved.
        """
        origin = "/".join(url.split("/", 3)[:3])
        if origin in self._good_origins and url.isascii() and url.isprintable():
            return  # an order asks a handful of URLs again and again
        self._check(url)
        if len(self._good_origins) < ORIGINS_MAX:
            self._good_origins.add(origin)

    def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or 443
        except ValueError as error:
            raise CaMisbehaved("the CA sent a URL that is none") from error
        if not url.isascii() or not url.isprintable():
            # Digits of other scripts would be folded to an address after we have looked.
            raise CaMisbehaved("the CA sent a URL with characters that no URL has (RFC 3986)")
        if parts.scheme != "https" or not host:
            raise CaMisbehaved(f"the CA sent a URL that is not https: {url[:200]!r}")
        if not _AUTHORITY.fullmatch(parts.netloc):
            raise CaMisbehaved(f"the CA sent a URL whose host is no plain host and port: {parts.netloc[:200]!r}")
        place = _place(host, port)
        if place != self._own and place not in self._further:
            raise CaMisbehaved(
                f"the CA sent a URL at {place}, and its directory is at {self._own}; it is not visited unless an "
                f'administrator allows it with [acme] further_hosts = ["{place}"]'
            )
        if _skips_resolvers(host) and not (_is_address(host) and self._guard.allows(host, port, host)):
            raise CaMisbehaved(f"the CA sent a URL at a private address: {place}")


def _refused(code: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer="/directory_url", code=code, detail=detail)])


class GuardedResolver(AbstractResolver):
    """The system's resolver; addresses the guard forbids are dropped before anything connects to them.

    Each look-up has a thread of its own that dies with the process: with dead nameservers it takes a
    minute and more, and neither a stop nor the work of the shared threads may wait for that.
    """

    def __init__(self, guard: AddressGuard, look_up: LookUp | None = None) -> None:
        """`look_up` asks somebody else than the system."""
        self._guard = guard
        self._look_up = look_up or ask_the_system

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look up `host`; raises OSError when nothing usable is found."""
        found = await _in_time(self._look_up, host, port, family)
        allowed = [each for each in found if self._guard.allows(host, port, each["host"])]
        if found and not allowed:
            raise OSError(f"{host} resolves to {found[0]['host']}, a private address that is not listed")
        return allowed

    async def close(self) -> None:
        """Nothing to close."""


async def _in_time(look_up: LookUp, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            return await look_up(host, port, family)
    except TimeoutError:
        raise OSError(f"no nameserver answered for {host} within {RESOLVE_SECONDS:.0f} s") from None


async def ask_the_system(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[ResolveResult]] = loop.create_future()

    def deliver(found: list[ResolveResult] | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is None and found is not None:
            answer.set_result(found)
        elif error is not None:
            answer.set_exception(error)

    def work() -> None:
        found, failed = None, None
        try:
            found = [_result(host, entry) for entry in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            failed = error
        # Without a loop nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(deliver, found, failed)

    threading.Thread(target=work, name=f"resolve {host}", daemon=True).start()
    return await answer


def _result(host: str, entry: tuple[Any, ...]) -> ResolveResult:
    family, _, protocol, _, address = entry
    # A link-local address means something with its zone only.
    zone = f"%{address[3]}" if family == socket.AF_INET6 and address[3] else ""
    return ResolveResult(
        hostname=host,
        host=f"{address[0].partition('%')[0]}{zone}",
        port=address[1],
        family=family,
        proto=protocol,
        flags=socket.AI_NUMERICHOST,
    )


# All that was ever given out to hosts on the Internet; outside of it are further forms of IPv4 addresses, such as
# 64:ff9b:1::/48 (RFC 8215) and ::ffff:0:0:0/96 (RFC 2765), which not every release of Python knows.
_GIVEN_OUT = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IPV4_COMPATIBLE = ipaddress.ip_network("::/96")


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether anybody on the Internet may be there; an IPv4 address inside an IPv6 one is judged as itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if (inner := _embedded(address)) is not None:
            return _is_public(inner)
        if address not in _GIVEN_OUT:
            return False
    return address.is_global and not address.is_multicast


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64 or address in _IPV4_COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _place(host: str, port: int) -> str:
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").lower()


def _skips_resolvers(host: str) -> bool:
    # The HTTP client asks none for digits and dots, and to the system 2130706433 and 127.1 are 127.0.0.1.
    return ":" in host or host.replace(".", "").isdigit()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True

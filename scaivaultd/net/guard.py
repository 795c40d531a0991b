"""Which addresses a CA may be at: nobody who may name a directory URL gets to talk to our inner network.

Checked twice: when an account names its directory (a clear answer to the caller), and at every
connection (a name may resolve elsewhere tomorrow, and a CA's answers name further URLs).
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from scaivaultd.model.errors import CaMisbehaved, FieldError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence


class AddressGuard:
    """Refuses loopback, link-local, private and reserved addresses except those listed as `host:port`."""

    def __init__(self, private_directories: Sequence[str]) -> None:
        self._listed = frozenset(entry.lower() for entry in private_directories)

    def allows(self, host: str, port: int, address: str) -> bool:
        """Whether a connection to `address` under the name `host` may be made."""
        if _is_public(ipaddress.ip_address(address.partition("%")[0])):
            return True
        names = {host.lower(), address.lower()}
        return any(entry in self._listed for name in names for entry in (f"{name}:{port}", f"[{name}]:{port}"))

    def check_url(self, url: str) -> None:
        """Refuse a URL from a CA that is not https or names a forbidden address literally.

        Raises:
            CaMisbehaved: such a URL; names are judged when they have been resolved.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or 443
        except ValueError as error:
            raise CaMisbehaved(f"the CA sent a URL that is none: {error}") from error
        if not url.isascii():
            # Digits of other scripts would be folded to an address after we have looked.
            raise CaMisbehaved("the CA sent a URL with characters that no URL has (RFC 3986)")
        if parts.scheme != "https" or not host:
            raise CaMisbehaved(f"the CA sent a URL that is not https: {url[:200]!r}")
        if _is_address(host) and not self.allows(host, port, host):
            raise CaMisbehaved(f"the CA sent a URL at a private address: {host}:{port}")

    async def check_directory(self, url: str) -> None:
        """Refuse a directory URL that a caller wants to use.

        A name that does not resolve now is let through: the registration will say so.

        Raises:
            InvalidRequest: the host is, or resolves to, an address that is not listed.
        """
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
        try:
            results = await GuardedResolver(AddressGuard.everything()).resolve(host, port, socket.AF_UNSPEC)
        except OSError:
            return
        except UnicodeError as error:
            detail = f"{host!r} is no host name: {error}"
            raise InvalidRequest(
                detail, [FieldError(pointer="/directory_url", code="bad_url", detail=detail)]
            ) from error
        forbidden = [each["host"] for each in results if not self.allows(host, port, each["host"])]
        if forbidden:
            detail = (
                f"the directory is at {forbidden[0]}, a private, loopback or link-local address; an administrator "
                f'can allow it with [acme] private_directories = ["{host}:{port}"]'
            )
            raise InvalidRequest(detail, [FieldError(pointer="/directory_url", code="private_address", detail=detail)])

    @staticmethod
    def everything() -> AddressGuard:
        """A guard that lets every address through; for looking only."""
        return _Open(())


class _Open(AddressGuard):
    def allows(self, host: str, port: int, address: str) -> bool:
        """Yes."""
        return True


class GuardedResolver(AbstractResolver):
    """The system's resolver; addresses the guard forbids are dropped before anything connects to them."""

    def __init__(self, guard: AddressGuard) -> None:
        self._guard = guard
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look up `host`; raises OSError when nothing usable is found."""
        found = await self._inner.resolve(host, port, family)
        allowed = [each for each in found if self._guard.allows(host, port, each["host"])]
        if found and not allowed:
            raise OSError(f"{host} resolves to {found[0]['host']}, a private address that is not listed")
        return allowed

    async def close(self) -> None:
        """Nothing to close."""


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IPV4_COMPATIBLE = ipaddress.ip_network("::/96")


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether anybody on the Internet may be there; an IPv4 address inside an IPv6 one is judged as itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.is_site_local:
            return False
        if (inner := _embedded(address)) is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64 or address in _IPV4_COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True

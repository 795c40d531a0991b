"""Which of two zones with the same name the world asks: the one whose name servers the name is delegated to."""

from __future__ import annotations

from collections.abc import Sequence

from scaivaultd.plugin import PermanentError, Zone, normal_name

LOOKUP_SECONDS = 5.0


async def delegated_zone(zones: Sequence[Zone], resolvers: Sequence[str], remedy: str) -> Zone:
    """The one of `zones`, all with one name and their `name_servers`, that is delegated to.

    `resolvers` are recursive name servers as address or address:port; none means those of this host.

    Raises:
        PermanentError: that is unclear; the text ends with `remedy`.
    """
    name = zones[0].name
    seen = await _name_servers(name, resolvers)
    fitting = [zone for zone in zones if seen & {normal_name(server) for server in zone.name_servers}]
    if len(fitting) != 1:
        ids = ", ".join(zone.id for zone in zones)
        raise PermanentError(
            f"there are {len(zones)} public zones named {name} ({ids}), and DNS does not tell which is in use; {remedy}"
        )
    return fitting[0]


async def _name_servers(name: str, resolvers: Sequence[str]) -> frozenset[str]:
    """The NS set of a zone; empty when it cannot be had."""
    # Two zones of one name are rare: nobody else pays for the resolver.
    import dns.asyncresolver
    import dns.exception
    import dns.nameserver

    try:
        resolver = dns.asyncresolver.Resolver(configure=not resolvers)
        if resolvers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(*_address(each)) for each in resolvers]
        answer = await resolver.resolve(f"{name}.", "NS", lifetime=LOOKUP_SECONDS, search=False)
    except (dns.exception.DNSException, OSError, ValueError):
        return frozenset()
    return frozenset(normal_name(record.target.to_text()) for record in answer)


def _address(text: str) -> tuple[str, int]:
    """Host and port of `192.0.2.1`, `192.0.2.1:53`, `2001:db8::1` or `[2001:db8::1]:53`."""
    host, colon, port = text.rpartition(":")
    if text.startswith("["):
        return (host[1:-1], int(port)) if host.endswith("]") else (text[1:-1], 53)
    return (host, int(port)) if colon and ":" not in host else (text, 53)

"""The development CA's look at dns-01 (RFC 8555 section 8.4): all TXT values of one name, as one resolver has them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
from typing import TYPE_CHECKING

import dns.asyncquery
import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
from dns.message import QueryMessage

from scaivaultd.demo.ca_jws import b64url
from scaivaultd.demo.ca_problems import Finding, problem

if TYPE_CHECKING:
    from dns.name import Name

    from scaivaultd.demo.ca_identifiers import Identifier

_TRIES = 3
_REFERRALS_MAX = 8
"""So often a CNAME that the server did not follow itself is asked for."""
_SHOWN_MAX = 100


class Dns01:
    """Asks one server with recursion desired: UDP, TCP when the answer is cut short, every try a third of the time."""

    def __init__(self, server: str, seconds: float) -> None:
        """`server` is `address:port`.

        Raises:
            ValueError: it is not.
        """
        self._host, self._port = _endpoint(server)
        self._seconds = seconds

    async def look(self, identifier: Identifier, key_authorization: str) -> Finding:
        """None if one of the values is the digest of the key authorization."""
        name = f"_acme-challenge.{identifier.base}"
        wanted = b64url(hashlib.sha256(key_authorization.encode()).digest())
        try:
            async with asyncio.timeout(self._seconds):
                values = await self._values(dns.name.from_text(name))
        except (TimeoutError, dns.exception.Timeout):
            return problem("dns", f"DNS problem: query timed out looking up TXT for {name}")
        except _Unusable as error:
            return problem("dns", f"DNS problem: {error} looking up TXT for {name}")
        except (OSError, EOFError):
            return problem("dns", f"DNS problem: networking error looking up TXT for {name}")
        except dns.exception.DNSException as error:
            return problem(
                "dns", f"DNS problem: an answer of no use ({type(error).__name__}) looking up TXT for {name}"
            )
        return None if wanted in values else _incorrect(name, values)

    async def _values(self, name: Name) -> list[str]:
        """Every value at the name, or where its CNAMEs lead."""
        for _ in range(_REFERRALS_MAX):
            answer = await self._ask(name)
            if answer.rcode() != dns.rcode.NOERROR:
                raise _Unusable(dns.rcode.to_text(answer.rcode()))
            found = answer.resolve_chaining()
            if found.answer is not None:
                return [b"".join(record.strings).decode(errors="backslashreplace") for record in found.answer]
            if found.canonical_name == name:
                return []
            name = found.canonical_name
        raise _Unusable("too many CNAMEs")

    async def _ask(self, name: Name) -> QueryMessage:
        query = dns.message.make_query(name, dns.rdatatype.TXT, use_edns=0, payload=1232)
        for _ in range(_TRIES - 1):
            with contextlib.suppress(dns.exception.Timeout):
                return await self._try(query)
        return await self._try(query)

    async def _try(self, query: QueryMessage) -> QueryMessage:
        answer, _ = await dns.asyncquery.udp_with_fallback(
            query, self._host, timeout=self._seconds / _TRIES, port=self._port, ignore_unexpected=True
        )
        if not isinstance(answer, QueryMessage):
            raise _Unusable("an answer to something else")
        return answer


class _Unusable(Exception):
    """The answer is none; its text is what stands behind `DNS problem:`."""


def _incorrect(name: str, values: list[str]) -> Finding:
    if not values:
        return problem("unauthorized", f"No TXT record found at {name}")
    more = f" (and {len(values) - 1} more)" if len(values) > 1 else ""
    return problem("unauthorized", f'Incorrect TXT record "{values[0][:_SHOWN_MAX]}"{more} found at {name}')


def _endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not ADDRESS:PORT")
    return str(ipaddress.ip_address(host.strip("[]"))), int(port)

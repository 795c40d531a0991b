"""The recursive name servers: those of the configuration, else those of the system.

They are asked only about names that exist anyway (zones, name servers, owners of CAA records), never about a challenge
name: a cache would remember that it was not there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import dns.exception
import dns.rcode
import dns.resolver

from scaivaultd.model.errors import DnsError
from scaivaultd.net import dns_reading as reading
from scaivaultd.net.dns_exchange import Endpoint, NoAnswer, Question, endpoint_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dns.message import Message
    from dns.rdatatype import RdataType

    from scaivaultd.model.clock import Clock
    from scaivaultd.net.dns_exchange import Exchange

RESOLV_CONF = Path("/etc/resolv.conf")
ROUNDS = 2
SHUNNED_SECONDS = 60.0
_SETTLED = (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)


class Resolvers:
    """Asks one after the other until one knows; who stayed silent lately comes last."""

    def __init__(
        self, texts: Sequence[str], exchange: Exchange, clock: Clock, *, resolv_conf: Path = RESOLV_CONF
    ) -> None:
        """`texts` are `address` or `address:port`; none means those of `resolv_conf`, read again when it changes.

        Raises:
            ValueError: one of the texts is no such thing.
        """
        self._configured = tuple(endpoint_from(text, 53) for text in texts)
        self._exchange = exchange
        self._clock = clock
        self._resolv_conf = resolv_conf
        self._read_at: tuple[int, int, int] | None = None
        self._of_system: tuple[Endpoint, ...] = ()
        self._shunned: dict[Endpoint, float] = {}

    @property
    def are_configured(self) -> bool:
        """Whether somebody named them on purpose."""
        return bool(self._configured)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where they are, in the order in which they are named."""
        return self._configured or self._system()

    async def ask(self, name: str, rdtype: RdataType, *, is_unchecked: bool = False) -> Message:
        """The first answer that settles the question, else the last that does not (SERVFAIL, REFUSED ...).

        Raises:
            DnsError: `unreachable`, when none of them answers at all; it says what happened to each.
        """
        question = Question(name, rdtype, is_recursive=True, is_unchecked=is_unchecked)
        unsettled: Message | None = None
        failures: dict[Endpoint, str] = {}
        asked = self._in_order()
        for _ in range(ROUNDS):
            for endpoint in asked:
                try:
                    answer = await self._exchange.ask(endpoint, question, tries=1)
                except NoAnswer as error:
                    failures[endpoint] = error.detail
                    self._shun(endpoint)
                    continue
                self._shunned.pop(endpoint, None)
                if answer.rcode() in _SETTLED:
                    return answer
                unsettled = answer
            if unsettled is not None:
                # Silence may be a lost packet and is worth a second round; words are not.
                return unsettled
        said = "; ".join(f"{endpoint.text}: {detail}" for endpoint, detail in failures.items())
        raise DnsError(f"no resolver can be asked about {name} ({said})", "unreachable")

    async def why_bogus(self, endpoint: Endpoint, name: str, rdtype: RdataType) -> str | None:
        """Why this resolver refuses a name on account of DNSSEC; None when it does not, or does not answer.

        It fails, and works as soon as it is told not to validate: then validation is what fails.
        """
        try:
            checked = await self._exchange.ask(endpoint, Question(name, rdtype, is_recursive=True))
            if checked.rcode() != dns.rcode.SERVFAIL:
                return None
            unchecked = await self._exchange.ask(endpoint, Question(name, rdtype, is_recursive=True, is_unchecked=True))
        except NoAnswer:
            return None
        if unchecked.rcode() not in _SETTLED:
            return None
        explanation = reading.explanation_of(checked) or "SERVFAIL, and an answer when it is told not to validate"
        return f"{endpoint.text}: {explanation}"

    def _in_order(self) -> list[Endpoint]:
        now = self._clock.monotonic()
        self._shunned = {each: until for each, until in self._shunned.items() if until > now}
        return sorted(self.endpoints(), key=lambda each: each in self._shunned)

    def _shun(self, endpoint: Endpoint) -> None:
        self._shunned[endpoint] = self._clock.monotonic() + SHUNNED_SECONDS

    def _system(self) -> tuple[Endpoint, ...]:
        try:
            status = self._resolv_conf.stat()
            read_at = (status.st_mtime_ns, status.st_ino, status.st_size)
        except OSError:
            return _LOCAL
        if read_at != self._read_at:
            self._of_system = _read(self._resolv_conf) or _LOCAL
            self._read_at = read_at
        return self._of_system


# What resolv.conf(5) says holds when the file names none.
_LOCAL = (Endpoint("127.0.0.1", 53),)


def _read(path: Path) -> tuple[Endpoint, ...]:
    resolver = dns.resolver.Resolver(configure=False)
    try:
        resolver.read_resolv_conf(str(path))
    except dns.exception.DNSException:
        return ()
    return tuple(Endpoint(each, 53) for each in resolver.nameservers if isinstance(each, str))

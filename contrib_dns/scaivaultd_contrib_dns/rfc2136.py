"""DNS servers of one's own by dynamic update (RFC 2136), signed by TSIG (RFC 8945): BIND, Knot, PowerDNS and others.

Updates name single values, so nothing is read, merged and written back, and writers do not get into each other's way.
What has to be read is the TTL of a set that is there already, and afterwards whether the values are: a server ignores
what it does not want without a word (RFC 2136 section 3.4.2.2).
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.update
import msgspec
from dns.message import Message
from dns.name import Name
from dns.rdataclass import RdataClass
from dns.rdatatype import RdataType
from dns.rdtypes.ANY.TXT import TXT
from dns.rrset import RRset
from msgspec import Meta

from scaivaultd.plugin import (
    DnsProvider,
    DnsProviderKind,
    Handle,
    PermanentError,
    PluginContext,
    ProviderAuthError,
    ProviderError,
    ProviderSettings,
    TransientError,
    Zone,
    ZoneNotFound,
    candidates,
    hookimpl,
    normal_name,
)
from scaivaultd_contrib_dns.rfc2136_exchange import Server
from scaivaultd_contrib_dns.rfc2136_key import DEFAULT_ALGORITHM, TsigKey, make_key, read_keyfile
from scaivaultd_contrib_dns.rfc2136_texts import LIMITS, RIGHTS, TROUBLESHOOTING

SCAIVAULTD_PLUGIN_API = "1.1"

T = TypeVar("T")

Algorithm = Literal["hmac-sha256", "hmac-sha224", "hmac-sha384", "hmac-sha512", "hmac-sha1", "hmac-md5"]
HostText = Annotated[str, Meta(min_length=1, max_length=253)]
ReferenceText = Annotated[str, Meta(min_length=1)]
BASE_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
EDNS_PAYLOAD = 1232
STRING_MAX = 255


class Rfc2136Settings(ProviderSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `rfc2136`."""

    server: Annotated[
        HostText, Meta(description="The primary server that takes the updates: host name, or IPv4 or IPv6 address.")
    ]
    port: Annotated[int, Meta(ge=1, le=65535, description="Its port.")] = 53
    zone: Annotated[HostText | None, Meta(description="The one zone to write. Without it the server is asked.")] = None
    zones: Annotated[
        tuple[HostText, ...], Meta(description="Several zones instead of one; the closest to a name is written.")
    ] = ()
    tsig_key_name: Annotated[
        HostText | None, Meta(description="Name of the TSIG key, exactly as at the server, dots and all.")
    ] = None
    tsig_secret_path: Annotated[
        ReferenceText | None, Meta(description="Reference of the key's secret, in base64 as the server has it.")
    ] = None
    tsig_algorithm: Annotated[
        Algorithm | None, Meta(description="Algorithm of the key; `hmac-sha256` unless another is named.")
    ] = None
    tsig_keyfile_path: Annotated[
        ReferenceText | None,
        Meta(
            description='Reference of a text `key "NAME" { algorithm ...; secret "..."; };` as `tsig-keygen` '
            "prints it, in place of the three settings above."
        ),
    ] = None
    transport: Annotated[Literal["tcp", "udp"], Meta(description="How the server is asked and updated.")] = "tcp"
    timeout: Annotated[
        Annotated[float, Meta(ge=0.1, le=300)] | None,
        Meta(description="Seconds for one question or update; `request_timeout` unless given."),
    ] = None
    query_server: Annotated[
        HostText | None,
        Meta(
            description="Host name or address to ask, at the same port, where a zone begins and which values are "
            "there, if `server` itself shows another view. It must not lag behind."
        ),
    ] = None

    def __post_init__(self) -> None:
        parts = (self.tsig_key_name, self.tsig_secret_path, self.tsig_algorithm)
        if self.tsig_keyfile_path is not None and any(part is not None for part in parts):
            raise ValueError(
                "`tsig_keyfile_path` holds the whole key: leave out `tsig_key_name`, `tsig_secret_path` and "
                "`tsig_algorithm`"
            )
        if (self.tsig_key_name is None) != (self.tsig_secret_path is None):
            raise ValueError("a TSIG key needs both `tsig_key_name` and `tsig_secret_path`")
        if self.tsig_algorithm is not None and self.tsig_key_name is None:
            raise ValueError("`tsig_algorithm` is of no use without `tsig_key_name` and `tsig_secret_path`")
        if self.zone is not None and self.zones:
            raise ValueError("give `zone` or `zones`, not both")
        for host in filter(None, (self.server, self.query_server)):
            if not _is_host(host):
                raise ValueError("`server` and `query_server` are host names or addresses, without port or scheme")
        for zone in self.all_zones:
            _require_zone_name(zone)

    @property
    def all_zones(self) -> tuple[str, ...]:
        """The zones that are configured, if any."""
        return tuple(normal_name(zone) for zone in (self.zones if self.zone is None else (self.zone,)))

    @property
    def key_references(self) -> tuple[str, ...]:
        """Where the key is kept."""
        return tuple(each for each in (self.tsig_secret_path, self.tsig_keyfile_path) if each is not None)


class TxtSet(msgspec.Struct, frozen=True, kw_only=True):
    """What stands at a name: TXT values with their TTL, or a CNAME."""

    values: frozenset[bytes] = frozenset()
    ttl: int | None = None
    alias: str | None = None
    is_delegated: bool = False


class Rfc2136Provider:
    """Keeps nothing in memory: calls may overlap, and may be repeated."""

    def __init__(self, settings: Rfc2136Settings, context: PluginContext) -> None:
        """Nothing is asked before the first call."""
        limit = settings.timeout or settings.request_timeout
        self._settings = settings
        self._context = context
        self._server = Server(settings.server, settings.port, settings.transport, limit)
        self._asked = Server(settings.query_server or settings.server, settings.port, settings.transport, limit)

    async def find_zone(self, name: str) -> Zone:
        """The closest configured zone, else the closest that the server is authoritative for."""
        return Zone(name=await self._repeated(lambda: self._zone_of(normal_name(name))))

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """Add, and look whether they are there: servers ignore in silence what they do not want."""
        await self._repeated(lambda: self._add(zone.name, normal_name(name), values, ttl))
        return {}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """Delete exactly these; the server does not mind if some are not there."""
        await self._repeated(lambda: self._remove(zone.name, normal_name(name), values))

    async def check(self) -> None:
        """Ask for the SOA record of every configured zone, or of the root, which any key may ask for."""
        for zone in self._settings.all_zones:
            await self._repeated(partial(self._require_zone, zone))
        if not self._settings.all_zones:
            answer = await self._repeated(lambda: self._question(self._server, ".", RdataType.SOA))
            # Whatever it says of the root: a signed answer proves the key.
            if self._settings.key_references and not answer.had_tsig:
                self._context.log.warning("dns_provider.key_not_proven", server=self._server.host)

    # Zones

    async def _zone_of(self, name: str) -> str:
        if configured := self._settings.all_zones:
            zone = next((each for each in candidates(name) if each in configured), None)
            if zone is None:
                raise ZoneNotFound(f"{name} is in none of the configured zones ({', '.join(configured)})")
            return zone
        statuses: set[str] = set()
        for candidate in candidates(name):
            answer = await self._question(self._asked, candidate, RdataType.SOA)
            if zone := _zone_told(answer, candidate):
                return zone
            statuses.add(dns.rcode.to_text(answer.rcode()))
        raise ZoneNotFound(
            f"{self._asked.host} is authoritative for no zone that holds {name} (it answers "
            f"{', '.join(sorted(statuses))}); if it shows it to others only, configure `zone`"
        )

    async def _require_zone(self, zone: str) -> None:
        answer = await self._question(self._server, zone, RdataType.SOA)
        if _zone_told(answer, zone) != zone:
            status = dns.rcode.to_text(answer.rcode())
            raise ZoneNotFound(
                f"{self._server.host} is not authoritative for a zone {zone}, or does not say so to us ({status})"
            )

    # Values

    async def _add(self, zone: str, name: str, values: Sequence[str], ttl: int) -> None:
        before = await self._txt_set(name)
        if before is not None:
            self._require_writable(before, zone, name)
            if before.values >= {value.encode() for value in values}:
                return
            # The TTL of one added record becomes that of the whole set, which is not only ours.
            ttl = ttl if before.ttl is None else before.ttl
        update = dns.update.UpdateMessage(dns.name.from_text(zone))
        for value in values:
            update.add(dns.name.from_text(name), ttl, _txt(value))
        self._require_done(await self._ask(self._server, update), zone, name)
        if before is None:
            self._context.log.warning("dns_provider.not_verified", name=name, server=self._asked.host)
            return
        await self._require_there(zone, name, values)

    async def _remove(self, zone: str, name: str, values: Sequence[str]) -> None:
        update = dns.update.UpdateMessage(dns.name.from_text(zone))
        for value in values:
            update.delete(dns.name.from_text(name), _txt(value))
        answer = await self._ask(self._server, update)
        if answer.rcode() == dns.rcode.NOTAUTH:
            # The zone is gone, and took the values with it.
            self._context.log.debug("dns_provider.zone_gone", zone=zone, name=name, is_signed=answer.had_tsig)
            return
        self._require_done(answer, zone, name)

    async def _require_there(self, zone: str, name: str, values: Sequence[str]) -> None:
        after = await self._txt_set(name)
        if after is None:
            raise TransientError(f"{self._asked.host} does not let us look at {name} any more (REFUSED)")
        self._require_writable(after, zone, name)
        missing = len({value.encode() for value in values} - after.values)
        if missing:
            raise TransientError(
                f"{self._server.host} took the update of {name} (NOERROR), but {self._asked.host} does not show "
                f"{missing} of {len(values)} values: the name may be in another zone than {zone}, or in another view"
            )

    async def _txt_set(self, name: str) -> TxtSet | None:
        """What stands there; None if the server does not let us look."""
        answer = await self._question(self._asked, name, RdataType.TXT)
        if answer.rcode() == dns.rcode.REFUSED:
            return None
        if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise self._unexpected(answer, f"the TXT records of {name}")
        owner = dns.name.from_text(name)
        alias = _set_of(answer, owner, RdataType.CNAME)
        found = _set_of(answer, owner, RdataType.TXT)
        return TxtSet(
            values=frozenset(b"".join(record.strings) for record in found or ()),
            ttl=found.ttl if found else None,
            alias=alias[0].target.to_text(omit_final_dot=True) if alias else None,
            is_delegated=_referral(answer) is not None,
        )

    def _require_writable(self, there: TxtSet, zone: str, name: str) -> None:
        if there.alias is not None:
            raise PermanentError(
                f"{name} is a CNAME to {there.alias} at {self._asked.host}: the server would ignore a TXT record "
                "there without saying so (RFC 2136 section 3.4.2.2); write to where the CNAME leads, or remove it"
            )
        if there.is_delegated:
            raise PermanentError(
                f"{name} is below a delegation in {zone} at {self._asked.host}: the server would take the update, and "
                "never serve it; the zone that is delegated has to be written"
            )

    # Asking

    async def _question(self, server: Server, name: str, rdtype: RdataType) -> Message:
        query = dns.message.make_query(dns.name.from_text(name), rdtype, use_edns=0, payload=EDNS_PAYLOAD)
        query.flags = 0  # no recursion: what it knows itself
        answer = await self._ask(server, query)
        if answer.rcode() in (dns.rcode.SERVFAIL, dns.rcode.NOTAUTH, dns.rcode.FORMERR, dns.rcode.NOTIMP):
            raise self._unexpected(answer, f"{dns.rdatatype.to_text(rdtype)} of {name}")
        return answer

    async def _ask(self, server: Server, message: Message) -> Message:
        return await server.ask(message, await self._key())

    async def _key(self) -> TsigKey | None:
        settings, secrets = self._settings, self._context.secrets
        if settings.tsig_keyfile_path is not None:
            text = await secrets.read(settings.tsig_keyfile_path)
            return read_keyfile(text.reveal(), settings.tsig_keyfile_path)
        if settings.tsig_key_name is None or settings.tsig_secret_path is None:
            return None
        secret = await secrets.read(settings.tsig_secret_path)
        algorithm = settings.tsig_algorithm or DEFAULT_ALGORITHM
        return make_key(settings.tsig_key_name, algorithm, secret.reveal(), settings.tsig_secret_path)

    async def _repeated(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do a whole step again after a passing fault; once with the key read anew if it was refused.

        Steps look before they write, and an update that is carried out twice does no harm.
        """
        refused = False
        failures = 0
        while True:
            try:
                return await step()
            except ProviderAuthError:
                if refused or not self._settings.key_references:
                    raise
                refused = True
                for reference in self._settings.key_references:
                    self._context.secrets.forget(reference)
            except TransientError as error:
                failures += 1
                if failures > self._settings.max_retries:
                    raise
                await self._pause(error, failures)

    async def _pause(self, error: TransientError, failures: int) -> None:
        seconds = self._context.fraction() * min(BASE_PAUSE_SECONDS * 2**failures, LONGEST_PAUSE_SECONDS)
        self._context.log.debug("dns_provider.retry", detail=error.detail, pause_seconds=round(seconds, 2))
        await self._context.clock.sleep(seconds)

    # What answers mean

    def _require_done(self, answer: Message, zone: str, name: str) -> None:
        host = self._server.host
        match answer.rcode():
            case dns.rcode.NOERROR:
                return
            case dns.rcode.REFUSED:
                raise ProviderAuthError(
                    f"{host} does not let TXT records of {name} in {zone} be changed {self._signed_how()} (REFUSED): "
                    "its update policy, or access list, has to allow that"
                )
            case dns.rcode.NOTAUTH:
                raise ZoneNotFound(f"{host} is not the primary server of a zone {zone} (NOTAUTH)")
            case dns.rcode.NOTZONE:
                raise ZoneNotFound(f"{host} says that {name} is not in the zone {zone} (NOTZONE)")
            case _:
                raise self._unexpected(answer, f"the update of {name} in {zone}")

    def _unexpected(self, answer: Message, what: str) -> ProviderError:
        status = dns.rcode.to_text(answer.rcode())
        text = f"{self._server.host} answers {status} to {what}"
        match answer.rcode():
            case dns.rcode.SERVFAIL:
                return TransientError(f"{text}: its log says why (a journal it cannot write, an expired zone)")
            case dns.rcode.NOTIMP:
                return PermanentError(f"{text}: a secondary, or a server without dynamic update", status)
            case _:
                return PermanentError(text, status)

    def _signed_how(self) -> str:
        if self._settings.key_references:
            return f"with the TSIG key {self._settings.tsig_key_name or 'of the key file'}, which it knows"
        return "without a TSIG key"


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return text.isprintable() and not set(text) & set(" :/[]@")
    return True


def _require_zone_name(zone: str) -> None:
    try:
        dns.name.from_text(zone)
    except dns.exception.DNSException as error:
        raise ValueError(f"{zone[:80]!r} is no zone: {error}") from None
    # `*` and white space may stand in a name, but nobody means it.
    if not zone.isascii() or not zone.isprintable() or set(zone) & set(" *\\"):
        raise ValueError(f"{zone[:80]!r} is no zone: give its name in ASCII (`xn--...`), without `*`")


def _zone_told(answer: Message, name: str) -> str | None:
    """The zone that an authoritative answer to a SOA question names: the name itself, or by a denial one above it.

    Raises:
        ZoneNotFound: the name is delegated away. The server would take an update all the same, and never serve it.
    """
    owner = dns.name.from_text(name)
    if cut := _referral(answer):
        zone = cut.name.to_text(omit_final_dot=True)
        raise ZoneNotFound(f"{name} is in the zone {zone}, which the server delegates to {cut[0].target} and has not")
    if not answer.flags & dns.flags.AA or answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return None
    if _set_of(answer, owner, RdataType.SOA):
        return name
    if answer.answer:
        return None  # a CNAME: what follows speaks of where it leads
    soa = next((each for each in answer.authority if each.rdtype == RdataType.SOA), None)
    is_above = soa is not None and owner.is_subdomain(soa.name) and soa.name != dns.name.root
    return normal_name(soa.name.to_text()) if soa is not None and is_above else None


def _referral(answer: Message) -> RRset | None:
    """The NS records of a referral; those of the root are hints for who asked the wrong server."""
    if answer.flags & dns.flags.AA or answer.answer or answer.rcode() != dns.rcode.NOERROR:
        return None
    servers = (each for each in answer.authority if each.rdtype == RdataType.NS and each.name != dns.name.root)
    return next(servers, None)


def _set_of(answer: Message, owner: Name, rdtype: RdataType) -> RRset | None:
    return next((each for each in answer.answer if each.name == owner and each.rdtype == rdtype), None)


def _txt(value: str) -> TXT:
    raw = value.encode()
    strings = [raw[place : place + STRING_MAX] for place in range(0, len(raw), STRING_MAX)]
    return TXT(RdataClass.IN, RdataType.TXT, strings or [b""])


@asynccontextmanager
async def _open(settings: Rfc2136Settings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    if not settings.key_references:
        context.log.warning("dns_provider.unsigned_updates", server=settings.server)
    if settings.tsig_algorithm in ("hmac-md5", "hmac-sha1"):
        context.log.warning("dns_provider.weak_algorithm", server=settings.server, algorithm=settings.tsig_algorithm)
    yield Rfc2136Provider(settings, context)


EXAMPLE: dict[str, Any] = {
    "server": "ns1.example.com",
    "tsig_key_name": "scaivaultd.example.com",
    "tsig_secret_path": "infra/dns/tsig-secret",
    "tsig_algorithm": "hmac-sha256",
}


@hookimpl
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """The one kind of this plugin."""
    return [
        DnsProviderKind(
            name="rfc2136",
            title="RFC 2136 (BIND, Knot, PowerDNS and others)",
            settings=Rfc2136Settings,
            open=_open,
            example=EXAMPLE,
            summary="A DNS server of your own that takes dynamic updates, usually signed with a TSIG key.",
            rights=RIGHTS,
            limits=LIMITS,
            troubleshooting=TROUBLESHOOTING,
        )
    ]

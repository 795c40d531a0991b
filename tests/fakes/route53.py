"""Route 53 after its published description: signatures, listing order, transactions, throttling, and their traps."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from aiohttp import web

from tests.fakes.http import FakeApi, Seen

NAMESPACE = "https://route53.amazonaws.com/doc/2013-04-01/"
N = f"{{{NAMESPACE}}}"
SKEW_SECONDS = 300
TXT = re.compile(r'"(?:[^"\\]|\\.){0,255}"(?: "(?:[^"\\]|\\.){0,255}")*')
SET_MEMBERS = ["Name", "Type", "SetIdentifier", "MultiValueAnswer", "TTL", "ResourceRecords"]
QUERIES = {
    "ListHostedZonesByName": {"dnsname", "hostedzoneid", "maxitems"},
    "ListResourceRecordSets": {"name", "type", "identifier", "maxitems"},
}

# By name, says the description, and not how types are ordered: SOA is neither first here, nor TXT last.
TYPES = ["A", "AAAA", "CAA", "CNAME", "NS", "SOA", "TXT", "MX", "SRV"]

Key = tuple[str, str, str]


@dataclass(frozen=True)
class FakeSet:
    """One record set; names carry their dot at the end."""

    name: str
    type: str
    ttl: int
    values: tuple[str, ...]
    identifier: str = ""
    multivalue: bool = False
    weight: int | None = None

    @property
    def key(self) -> Key:
        return (self.name, self.type, self.identifier)


@dataclass
class FakeZone:
    id: str
    name: str
    private: bool = False
    name_servers: Sequence[str] = ("ns-1.test.", "ns-2.test.")
    sets: dict[Key, FakeSet] = field(default_factory=dict)
    busy: bool = False

    def put(self, each: FakeSet) -> None:
        self.sets[each.key] = each


class Refusal(Exception):
    """An error answer."""

    def __init__(self, status: int, code: str, *messages: str) -> None:
        self.status = status
        self.code = code
        self.messages = messages


class FakeRoute53(FakeApi):
    """`keys` maps access key ids to secret and session token."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, tuple[str, str]] = {"AKIATEST": ("the-secret-access-key", "")}
        self.region = "us-east-1"
        self.zones: list[FakeZone] = []
        self.page_size = 100
        self.pending_polls = 2
        self.denied_operations: set[str] = set()
        self.denied_actions: set[str] = set()
        self.list_form = False
        """InvalidChangeBatch as a document of its own, with a list of messages."""
        self.batches: list[list[tuple[str, FakeSet]]] = []
        self.changes: dict[str, int] = {}

    def add_zone(self, zone_id: str, name: str, *, private: bool = False) -> FakeZone:
        zone = FakeZone(zone_id, f"{name}.", private)
        zone.put(FakeSet(zone.name, "NS", 172800, ("ns-1.test.", "ns-2.test.")))
        zone.put(FakeSet(zone.name, "SOA", 900, ("ns-1.test. admin.test. 1 7200 900 1209600 86400",)))
        self.zones.append(zone)
        return zone

    def zone(self, zone_id: str) -> FakeZone:
        for each in self.zones:
            if each.id == zone_id:
                return each
        raise Refusal(404, "NoSuchHostedZone", f"No hosted zone found with ID: {zone_id}")

    async def answer(self, seen: Seen) -> web.StreamResponse:
        try:
            self._check_signature(seen)
            return await self._route(seen)
        except Refusal as refusal:
            return self._refused(refusal)

    async def _route(self, seen: Seen) -> web.Response:
        match (seen.method, seen.path.split("/")[1:]):
            case ("GET", ["2013-04-01", "hostedzonesbyname"]):
                self._may("ListHostedZonesByName", seen)
                return self._list_zones(seen.query)
            case ("GET", ["2013-04-01", "hostedzone", zone_id]):
                self._may("GetHostedZone", seen)
                zone = self.zone(zone_id)
                servers = "".join(f"<NameServer>{each}</NameServer>" for each in zone.name_servers)
                delegation = f"<DelegationSet><NameServers>{servers}</NameServers></DelegationSet>"
                return _reply(200, f"<GetHostedZoneResponse>{_zone(zone)}{delegation}</GetHostedZoneResponse>")
            case ("GET", ["2013-04-01", "hostedzone", zone_id, "rrset"]):
                self._may("ListResourceRecordSets", seen)
                return self._list_sets(self.zone(zone_id), seen.query)
            case ("POST", ["2013-04-01", "hostedzone", zone_id, "rrset", ""]):
                self._may("ChangeResourceRecordSets", seen)
                return await self._change(self.zone(zone_id), seen)
            case ("GET", ["2013-04-01", "change", change_id]):
                self._may("GetChange", seen)
                return self._get_change(change_id)
        self.violation(f"no such operation: {seen.line}")
        raise Refusal(404, "UnknownOperationException", "")

    def _may(self, operation: str, seen: Seen) -> None:
        unknown = set(seen.query) - QUERIES.get(operation, set())
        if unknown:
            self.violation(f"{operation} has no {unknown}")
        if operation in self.denied_operations:
            raise Refusal(403, "AccessDenied", f"User is not authorized to perform: route53:{operation}")

    # Signatures, by the published algorithm and from what came over the wire

    def _check_signature(self, seen: Seen) -> None:
        found = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/route53/aws4_request, "
            r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})",
            seen.headers.get("authorization", ""),
        )
        if found is None:
            self.violation("no signature of version 4 for route53")
            raise Refusal(403, "MissingAuthenticationToken", "Missing Authentication Token")
        key_id, day, region, names, signature = found.groups()
        if region != self.region:
            raise Refusal(403, "SignatureDoesNotMatch", f"Credential should be scoped to a valid region, not {region}")
        if key_id not in self.keys:
            raise Refusal(403, "InvalidClientTokenId", "The security token included in the request is invalid.")
        secret, token = self.keys[key_id]
        if seen.headers.get("x-amz-security-token", "") != token:
            raise Refusal(403, "InvalidClientTokenId", "The security token included in the request is invalid.")
        self._check_names(names.split(";"), seen)
        moment = seen.headers["x-amz-date"]
        self._check_time(moment)
        canonical = _canonical(seen, names)
        scope = f"{day}/{region}/route53/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        if signature != _signature(secret, scope, f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}"):
            # The service shows the canonical request, token and all.
            raise Refusal(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided. Check your AWS "
                f"Secret Access Key.\n\nThe Canonical String for this request should have been\n{canonical}",
            )

    def _check_names(self, names: list[str], seen: Seen) -> None:
        needed = {"host", *(name for name in seen.headers if name.startswith("x-amz-"))}
        if not needed <= set(names):
            self.violation(f"not signed: {needed - set(names)}")

    def _check_time(self, moment: str) -> None:
        sent = datetime.strptime(moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if abs((datetime.now(UTC) - sent).total_seconds()) > SKEW_SECONDS:
            raise Refusal(403, "SignatureDoesNotMatch", f"Signature expired: {moment} is now earlier than now.")

    # Reading

    def _list_zones(self, query: Mapping[str, str]) -> web.Response:
        start = (_order(query.get("dnsname", "")), query.get("hostedzoneid", ""))
        wanted = sorted(self.zones, key=lambda each: (_order(each.name), each.id))
        if "dnsname" in query:
            wanted = [each for each in wanted if (_order(each.name), each.id) >= start]
        size = min(int(query.get("maxitems", "100")), self.page_size)
        page, rest = wanted[:size], wanted[size:]
        more = "".join(
            f"<NextDNSName>{each.name}</NextDNSName><NextHostedZoneId>{each.id}</NextHostedZoneId>" for each in rest[:1]
        )
        return _reply(
            200,
            f"<ListHostedZonesByNameResponse><HostedZones>{''.join(map(_zone, page))}</HostedZones>"
            f"<IsTruncated>{'true' if rest else 'false'}</IsTruncated>{more}"
            f"<MaxItems>{size}</MaxItems></ListHostedZonesByNameResponse>",
        )

    def _list_sets(self, zone: FakeZone, query: Mapping[str, str]) -> web.Response:
        if "type" in query and "name" not in query:
            raise Refusal(400, "InvalidInput", "type without name")
        start = (_order(query.get("name", "")), TYPES.index(query.get("type", TYPES[0])), query.get("identifier", ""))
        wanted = sorted(zone.sets.values(), key=_place)
        if "name" in query:
            wanted = [each for each in wanted if _place(each) >= start]
        size = min(int(query.get("maxitems", "300")), self.page_size)
        page, rest = wanted[:size], wanted[size:]
        more = ""
        if rest:
            more = f"<NextRecordName>{_written(rest[0].name)}</NextRecordName>"
            more += f"<NextRecordType>{rest[0].type}</NextRecordType>"
            if rest[0].identifier:
                more += f"<NextRecordIdentifier>{escape(rest[0].identifier)}</NextRecordIdentifier>"
        return _reply(
            200,
            f"<ListResourceRecordSetsResponse><ResourceRecordSets>{''.join(map(_set, page))}</ResourceRecordSets>"
            f"<IsTruncated>{'true' if rest else 'false'}</IsTruncated>{more}<MaxItems>{size}</MaxItems>"
            "</ListResourceRecordSetsResponse>",
        )

    def _get_change(self, change_id: str) -> web.Response:
        if change_id not in self.changes:
            raise Refusal(404, "NoSuchChange", f"Could not find resource with ID: {change_id}")
        self.changes[change_id] -= 1
        status = "PENDING" if self.changes[change_id] >= 0 else "INSYNC"
        return _reply(200, f"<GetChangeResponse>{_change_info(change_id, status)}</GetChangeResponse>")

    # Writing

    async def _change(self, zone: FakeZone, seen: Seen) -> web.Response:
        if zone.busy:
            raise Refusal(400, "PriorRequestNotComplete", "The request was rejected because Route 53 was still busy")
        zone.busy = True
        try:
            for _ in range(5):
                await asyncio.sleep(0)  # long enough for another request to meet this one
            changes = self._read_batch(seen.body)
            sets = dict(zone.sets)
            for action, each in changes:
                _apply(sets, action, each)
        finally:
            zone.busy = False
        zone.sets = sets
        self.batches.append(changes)
        for name in {each.name for _, each in changes}:
            self._publish(zone, name)
        change_id = f"C{len(self.changes):013d}"
        self.changes[change_id] = self.pending_polls
        info = _change_info(change_id, "PENDING")
        return _reply(200, f"<ChangeResourceRecordSetsResponse>{info}</ChangeResourceRecordSetsResponse>")

    def _read_batch(self, body: bytes) -> list[tuple[str, FakeSet]]:
        root = ElementTree.fromstring(body)
        elements = root.findall(f"{N}ChangeBatch/{N}Changes/{N}Change")
        if root.tag != f"{N}ChangeResourceRecordSetsRequest" or not elements:
            self.violation("this is no ChangeResourceRecordSetsRequest")
            raise Refusal(400, "InvalidInput", "Invalid XML")
        found = []
        for element in elements:
            action = element.findtext(f"{N}Action") or ""
            if action in self.denied_actions:
                raise Refusal(403, "AccessDenied", "User is not authorized to perform: ChangeResourceRecordSets")
            record_set = element.find(f"{N}ResourceRecordSet")
            assert record_set is not None
            found.append((action, self._read_set(record_set)))
        return found

    def _read_set(self, element: ElementTree.Element) -> FakeSet:
        members = [each.tag.removeprefix(N) for each in element]
        if members != [each for each in SET_MEMBERS if each in members]:
            self.violation(f"members {members}")
        values = tuple(each.text or "" for each in element.iter(f"{N}Value"))
        if not all(TXT.fullmatch(value) for value in values):
            raise Refusal(400, "InvalidChangeBatch", "Invalid Resource Record: FATAL problem: InvalidCharacterString")
        if len(set(values)) != len(values):
            raise Refusal(400, "InvalidChangeBatch", "Duplicate Resource Record")
        return FakeSet(
            name=_read_name(element.findtext(f"{N}Name") or ""),
            type=element.findtext(f"{N}Type") or "",
            ttl=int(element.findtext(f"{N}TTL") or "-1"),
            values=values,
            identifier=element.findtext(f"{N}SetIdentifier") or "",
            multivalue=element.findtext(f"{N}MultiValueAnswer") == "true",
        )

    def _publish(self, zone: FakeZone, name: str) -> None:
        if self.on_txt is not None:
            self.on_txt(name.rstrip("."), tuple(self.txt(zone, name.rstrip("."))))

    def txt(self, zone: FakeZone, name: str) -> list[str]:
        """The bare values of a name."""
        found = [each for each in zone.sets.values() if each.name == f"{name}." and each.type == "TXT"]
        return [_bare(value) for each in found for value in each.values]

    def _refused(self, refusal: Refusal) -> web.Response:
        if refusal.code == "InvalidChangeBatch" and self.list_form:
            messages = "".join(f"<Message>{escape(text)}</Message>" for text in refusal.messages)
            return _reply(
                refusal.status,
                f"<InvalidChangeBatch><Messages>{messages}</Messages><RequestId>r-1</RequestId></InvalidChangeBatch>",
            )
        text = escape(", ".join(refusal.messages))
        text = f"[{text}]" if refusal.code == "InvalidChangeBatch" else text
        return _reply(
            refusal.status,
            f"<ErrorResponse><Error><Type>Sender</Type><Code>{refusal.code}</Code><Message>{text}</Message></Error>"
            "<RequestId>r-1</RequestId></ErrorResponse>",
        )


def throttling() -> bytes:
    """The body of a refusal that comes with status 400 all the same."""
    return (
        f'<?xml version="1.0"?><ErrorResponse xmlns="{NAMESPACE}"><Error><Type>Sender</Type><Code>Throttling</Code>'
        "<Message>Rate exceeded</Message></Error><RequestId>r-2</RequestId></ErrorResponse>"
    ).encode()


def _apply(sets: dict[Key, FakeSet], action: str, each: FakeSet) -> None:
    told = f"resource record set [name='{each.name}', type='{each.type}']"
    present = sets.get(each.key)
    if action == "DELETE":
        if present is None:
            raise Refusal(400, "InvalidChangeBatch", f"Tried to delete {told} but it was not found")
        if replace(each, values=()) != replace(present, values=()) or set(each.values) != set(present.values):
            raise Refusal(
                400, "InvalidChangeBatch", f"Tried to delete {told} but the values provided do not match the current"
            )
        del sets[each.key]
        return
    if action == "CREATE" and present is not None:
        raise Refusal(400, "InvalidChangeBatch", f"Tried to create {told} but it already exists")
    for other in sets.values():
        same = other.name == each.name and other.type == each.type and other.key != each.key
        if same and not (other.multivalue and each.multivalue):
            raise Refusal(
                400, "InvalidChangeBatch", f"{told} cannot be created as a non multivalue answer rrset exists"
            )
        if other.name == each.name and "CNAME" in (other.type, each.type) and other.type != each.type:
            raise Refusal(
                400,
                "InvalidChangeBatch",
                f"RRSet of type {each.type} with DNS name {each.name} is not permitted because a conflicting RRSet of "
                f"type {other.type} with the same DNS name already exists in zone",
            )
    sets[each.key] = each


def _order(name: str) -> tuple[str, ...]:
    return tuple(reversed(_read_name(name).rstrip(".").split("."))) if name else ()


def _place(each: FakeSet) -> tuple[tuple[str, ...], int, str]:
    return (_order(each.name), TYPES.index(each.type), each.identifier)


def _read_name(name: str) -> str:
    name = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), name).lower()
    return name if name.endswith(".") else f"{name}."


def _written(name: str) -> str:
    return name.replace("*", "\\052")


def _bare(text: str) -> str:
    strings = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
    return re.sub(r"\\(.)", r"\1", "".join(strings))


def _zone(zone: FakeZone) -> str:
    return (
        f"<HostedZone><Id>/hostedzone/{zone.id}</Id><Name>{_written(zone.name)}</Name><CallerReference>x"
        f"</CallerReference><Config><PrivateZone>{'true' if zone.private else 'false'}</PrivateZone></Config>"
        f"<ResourceRecordSetCount>{len(zone.sets)}</ResourceRecordSetCount></HostedZone>"
    )


def _set(each: FakeSet) -> str:
    extra = f"<SetIdentifier>{escape(each.identifier)}</SetIdentifier>" if each.identifier else ""
    extra += f"<Weight>{each.weight}</Weight>" if each.weight is not None else ""
    extra += "<MultiValueAnswer>true</MultiValueAnswer>" if each.multivalue else ""
    records = "".join(f"<ResourceRecord><Value>{escape(value)}</Value></ResourceRecord>" for value in each.values)
    return (
        f"<ResourceRecordSet><Name>{_written(each.name)}</Name><Type>{each.type}</Type>{extra}<TTL>{each.ttl}</TTL>"
        f"<ResourceRecords>{records}</ResourceRecords></ResourceRecordSet>"
    )


def _change_info(change_id: str, status: str) -> str:
    return (
        f"<ChangeInfo><Id>/change/{change_id}</Id><Status>{status}</Status>"
        "<SubmittedAt>2026-11-01T10:00:00.000Z</SubmittedAt></ChangeInfo>"
    )


def _reply(status: int, document: str) -> web.Response:
    root, _, rest = document.partition(">")
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n{root} xmlns="{NAMESPACE}">{rest}'
    return web.Response(status=status, text=text, content_type="text/xml", headers={"x-amzn-RequestId": "r-0"})


def _canonical(seen: Seen, names: str) -> str:
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in seen.query.items())
    query = "&".join(f"{name}={value}" for name, value in pairs)
    headers = "".join(f"{name}:{' '.join(seen.headers.get(name, '').split())}\n" for name in names.split(";"))
    digest = hashlib.sha256(seen.body).hexdigest()
    return f"{seen.method}\n{quote(seen.path, safe='/-_.~')}\n{query}\n{headers}\n{names}\n{digest}"


def _signature(secret: str, scope: str, to_sign: str) -> str:
    key = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), to_sign):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key.hex()


def form_of(body: bytes) -> dict[str, str]:
    """A form, as STS takes it."""
    return dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True))

"""Azure DNS at the socket: the resource manager, the token service and the identity endpoint, on one port.

Every request is judged by the description of the API; record sets have etags, and writing asks for them.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from aiohttp import web
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.fakes.http import FakeApi, Seen, problem

DESCRIPTION = json.loads((Path(__file__).parent / "descriptions" / "azure-dns.json").read_text())
API_VERSION = "2018-05-01"
TENANT, CLIENT, SUBSCRIPTION = "tenant-id", "client-id", "subscription-id"
AUDIENCE = "https://management.azure.com"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
RECORDS_MAX = 20


@dataclass
class FakeZone:
    """A zone and its TXT sets by relative name."""

    group: str
    name: str
    zone_type: str | None = "Public"
    name_servers: Sequence[str] = ("ns1-01.azure-dns.com.", "ns2-01.azure-dns.net.")
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        # As Azure shows it: in another case than the one it is asked with.
        return (
            f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{self.group.lower()}"
            f"/providers/Microsoft.Network/dnszones/{self.name}"
        )


class FakeAzure(FakeApi):
    """One subscription. `meddle`: what other programs do to a set just before the next writes."""

    def __init__(self) -> None:
        super().__init__()
        self.client_secret = "the-right-client-secret"
        self.certificate: x509.Certificate | None = None
        self.federated_token = "federated-token-1"
        self.identity_client_id: str | None = None
        self.identity_header: str | None = None
        self.audience = AUDIENCE
        self.zones: list[FakeZone] = []
        self.page_size = 100
        self.next_host: str | None = None
        self.expires_in: Any = 3599
        self.meddle: list[tuple[str, dict[str, Any] | None]] = []
        self.tokens: set[str] = set()
        self.revoked: set[str] = set()
        self.token_requests = 0
        self._numbers = itertools.count(1)

    def add_zone(self, group: str, name: str, **members: Any) -> FakeZone:
        self.zones.append(FakeZone(group, name, **members))
        return self.zones[-1]

    def put(self, zone: FakeZone, relative: str, properties: dict[str, Any]) -> None:
        """Another program writes a set."""
        zone.sets[relative] = {"etag": f"etag-{next(self._numbers)}", "properties": properties}

    def revoke_tokens(self) -> None:
        self.revoked |= self.tokens

    async def answer(self, seen: Seen) -> web.StreamResponse:
        if seen.path.endswith("/oauth2/v2.0/token"):
            return self._token(seen)
        if seen.path in ("/metadata/identity/oauth2/token", "/msi/token"):
            return self._identity(seen)
        return self._resource_manager(seen)

    # Tokens

    def _issue(self) -> str:
        token = f"eyJ.token-{next(self._numbers)}.of-the-fake"
        self.tokens.add(token)
        return token

    def _token(self, seen: Seen) -> web.Response:
        self.token_requests += 1
        form = {name: values[0] for name, values in parse_qs(seen.body.decode(), keep_blank_values=True).items()}
        if seen.method != "POST" or seen.headers.get("content-type") != "application/x-www-form-urlencoded":
            self.violation(f"the token service takes forms by POST: {seen.line}")
        unknown = set(form) - set(DESCRIPTION["oauth_token_endpoint"]["form"])
        if seen.query or unknown:
            self.violation(f"the token service got {sorted(unknown)} and {sorted(seen.query)}")
        if form.get("grant_type") != "client_credentials":
            return _refusal("unsupported_grant_type", 70003, "The grant type is not supported.")
        if seen.path != f"/{TENANT}/oauth2/v2.0/token":
            return _refusal("invalid_request", 90002, "Tenant not found.")
        if form.get("client_id") != CLIENT:
            return _refusal("unauthorized_client", 700016, "Application was not found in the directory.")
        if form.get("scope") != f"{self.audience}/.default":
            return _refusal("invalid_scope", 500011, f"The resource principal {form.get('scope')} was not found.")
        if refusal := self._judged_proof(seen, form):
            return refusal
        lifetimes = {"expires_in": self.expires_in, "ext_expires_in": self.expires_in}
        return problem(200, {"token_type": "Bearer", **lifetimes, "access_token": self._issue()})

    def _judged_proof(self, seen: Seen, form: Mapping[str, str]) -> web.Response | None:
        if ("client_secret" in form) == ("client_assertion" in form):
            self.violation("the token service wants one proof")
        if "client_secret" in form:
            if form["client_secret"] != self.client_secret:
                return _refusal("invalid_client", 7000215, "Invalid client secret provided.", status=401)
            return None
        if form.get("client_assertion_type") != ASSERTION_TYPE:
            self.violation("client_assertion_type is missing")
        assertion = form.get("client_assertion", "")
        if self.certificate is None:
            if assertion == self.federated_token:
                return None
            return _refusal("invalid_client", 70021, "No matching federated identity record found.")
        if fault := self._judged_assertion(seen, assertion):
            return _refusal("invalid_client", 700027, fault, status=401)
        return None

    def _judged_assertion(self, seen: Seen, assertion: str) -> str:
        assert self.certificate is not None
        key = self.certificate.public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        try:
            first, second, third = assertion.split(".")
            header, claims = (json.loads(_decoded(part)) for part in (first, second))
            scheme = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
            key.verify(_decoded(third), f"{first}.{second}".encode(), scheme, hashes.SHA256())
        except (InvalidSignature, ValueError):
            return "The client assertion signature is not valid."
        thumbprint = base64.urlsafe_b64encode(self.certificate.fingerprint(hashes.SHA256())).rstrip(b"=").decode()
        if header.get("alg") != "PS256" or header.get("typ") != "JWT" or header.get("x5t#S256") != thumbprint:
            self.violation(f"the assertion has the header {header}")
        if set(claims) != {"aud", "iss", "sub", "jti", "iat", "nbf", "exp"}:
            self.violation(f"the assertion has the claims {sorted(claims)}")
        if claims["aud"] != f"{self.url}{seen.path}" or {claims["iss"], claims["sub"]} != {CLIENT}:
            return "The assertion is for somebody else."
        if not 0 < claims["exp"] - claims["nbf"] <= 600:
            return "The assertion is not valid now."
        return ""

    def _identity(self, seen: Seen) -> web.Response:
        self.token_requests += 1
        is_instance = self.identity_header is None
        wanted = {"api-version": "2018-02-01" if is_instance else "2019-08-01", "resource": self.audience}
        if self.identity_client_id is not None:
            wanted["client_id"] = self.identity_client_id
        if seen.method != "GET" or "authorization" in seen.headers:
            self.violation(f"the identity endpoint was asked {seen.line}")
        if is_instance and seen.headers.get("metadata") != "true":
            self.violation("the identity endpoint was asked without Metadata")
        if not is_instance and seen.headers.get("x-identity-header") != self.identity_header:
            return web.Response(status=403)
        if seen.query != wanted:
            return problem(400, {"error": "invalid_request", "error_description": "Identity not found"})
        body = {"access_token": self._issue(), "resource": self.audience, "token_type": "Bearer"}
        if not is_instance:
            return problem(200, {**body, "expires_on": "4102444800"})
        return problem(200, {**body, "expires_in": str(self.expires_in), "expires_on": "4102444800"})

    # Resource manager

    def _resource_manager(self, seen: Seen) -> web.Response:
        operation = self._operation(seen)
        if operation is None:
            self.violation(f"the API has no {seen.line}")
            return failure(404, "InvalidResourceType", "The resource type could not be found.")
        kind, token = seen.headers.get("authorization", "").split(" ", 1)
        if kind != "Bearer" or token not in self.tokens or token in self.revoked:
            return failure(401, "InvalidAuthenticationToken", "The access token is invalid.")
        description, segments = operation
        self._judge_parameters(seen, description)
        if segments["subscriptionId"] != SUBSCRIPTION:
            return failure(404, "SubscriptionNotFound", "The subscription could not be found.")
        return self._operate(seen, description["operationId"], segments)

    def _operate(self, seen: Seen, operation: str, segments: Mapping[str, str]) -> web.Response:
        group = segments.get("resourceGroupName")
        zones = [zone for zone in self.zones if group is None or zone.group.lower() == group.lower()]
        if group is not None and not zones:
            return failure(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")
        if operation in ("Zones_List", "Zones_ListByResourceGroup"):
            return self._list_zones(seen, zones)
        zone = next((zone for zone in zones if zone.name == segments["zoneName"]), None)
        if operation == "Zones_Get":
            return problem(200, _shown_zone(zone)) if zone else failure(404, "ResourceNotFound", "There is no zone.")
        if zone is None:
            return failure(404, "ParentResourceNotFound", f"The zone {segments['zoneName']} was not found.")
        if segments["recordType"] != "TXT":
            self.violation(f"{seen.line} is about {segments['recordType']}")
        relative = segments["relativeRecordSetName"]
        match operation:
            case "RecordSets_Get":
                return self._shown_set(zone, relative) or failure(404, "NotFound", "The record does not exist.")
            case "RecordSets_CreateOrUpdate":
                return self._put(seen, zone, relative)
            case "RecordSets_Delete":
                return self._delete(seen, zone, relative)
        self.violation(f"the fake does not know {operation}")
        return web.Response(status=501)

    def _operation(self, seen: Seen) -> tuple[dict[str, Any], Mapping[str, str]] | None:
        for path, methods in DESCRIPTION["paths"].items():
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(path))
            found = re.fullmatch(pattern, seen.path)
            if found and seen.method.lower() in methods:
                segments = {name: unquote(value) for name, value in found.groupdict().items()}
                return methods[seen.method.lower()], segments
        return None

    def _judge_parameters(self, seen: Seen, description: dict[str, Any]) -> None:
        known = {each["name"] for each in description["parameters"] if each.get("in") == "query"}
        known |= {"api-version"} | ({"$skipToken"} if "x-ms-pageable" in description else set())
        # Our next links lack the version, so that one which was not followed verbatim is noticed.
        version = None if "$skipToken" in seen.query else API_VERSION
        if seen.query.get("api-version") != version or set(seen.query) - known:
            self.violation(f"{seen.line} got the parameters {dict(seen.query)}")
        headers = {each["name"].lower() for each in description["parameters"] if each.get("in") == "header"}
        for name in ("if-match", "if-none-match"):
            if name in seen.headers and name not in headers:
                self.violation(f"{seen.line} got the header {name}")
        body = next((each for each in description["parameters"] if each.get("in") == "body"), None)
        if body is None:
            if seen.body:
                self.violation(f"{seen.line} has a body")
            return
        if seen.headers.get("content-type") != "application/json":
            self.violation(f"{seen.line} is sent as {seen.headers.get('content-type')}")
        self.violations.extend(judged(json.loads(seen.body), body["schema"], "$"))

    def _list_zones(self, seen: Seen, zones: list[FakeZone]) -> web.Response:
        begin = int(seen.query.get("$skipToken", "0"))
        body: dict[str, Any] = {"value": [_shown_zone(zone) for zone in zones[begin : begin + self.page_size]]}
        if begin + self.page_size < len(zones):
            root = self.next_host or self.url
            body["nextLink"] = f"{root}{seen.path}?%24skipToken={begin + self.page_size}"
        elif begin:
            body["nextLink"] = None
        return problem(200, body)

    def _shown_set(self, zone: FakeZone, relative: str) -> web.Response | None:
        held = zone.sets.get(relative)
        if held is None:
            return None
        shown = {
            "id": f"{zone.id}/TXT/{relative}",
            "name": relative,
            "type": "Microsoft.Network/dnszones/TXT",
            "etag": held["etag"],
            "properties": {"fqdn": f"{relative}.{zone.name}.", "targetResource": {}, **held["properties"]},
        }
        return problem(200, shown)

    def _lost(self, seen: Seen, zone: FakeZone, relative: str) -> web.Response | None:
        if self.meddle:
            name, properties = self.meddle.pop(0)
            zone.sets.pop(name, None)
            if properties is not None:
                self.put(zone, name, properties)
        held = zone.sets.get(relative)
        etag, absent = seen.headers.get("if-match"), seen.headers.get("if-none-match")
        if etag is None and absent is None:
            self.violation(f"{seen.line} would take other programs' values with it")
        if (absent == "*" and held) or (etag is not None and held is not None and etag != held["etag"]):
            return failure(412, "PreconditionFailed", "The condition set in the request was not met.")
        if etag is not None and held is None and seen.method == "PUT":
            return failure(412, "PreconditionFailed", "The record set does not exist.")
        return None

    def _put(self, seen: Seen, zone: FakeZone, relative: str) -> web.Response:
        if lost := self._lost(seen, zone, relative):
            return lost
        properties = json.loads(seen.body)["properties"]
        strings = [string for record in properties.get("TXTRecords", ()) for string in record["value"]]
        if len(properties.get("TXTRecords", ())) > RECORDS_MAX or any(len(string) > 255 for string in strings):
            return failure(400, "BadRequest", "Too many records, or too long.")
        is_new = relative not in zone.sets
        self.put(zone, relative, properties)
        self._tell(zone, relative)
        shown = self._shown_set(zone, relative)
        assert shown is not None
        shown.set_status(201 if is_new else 200)
        return shown

    def _delete(self, seen: Seen, zone: FakeZone, relative: str) -> web.Response:
        if lost := self._lost(seen, zone, relative):
            return lost
        if zone.sets.pop(relative, None) is None:
            return web.Response(status=204)
        self._tell(zone, relative)
        return web.Response(status=200)

    def _tell(self, zone: FakeZone, relative: str) -> None:
        if self.on_txt is not None:
            name = zone.name if relative == "@" else f"{relative}.{zone.name}"
            self.on_txt(name, tuple(values(zone, relative)))


def values(zone: FakeZone, relative: str) -> list[str]:
    """The TXT values of a set, strings joined."""
    properties = zone.sets.get(relative, {}).get("properties", {})
    return ["".join(record["value"]) for record in properties.get("TXTRecords") or ()]


def failure(status: int, code: str, message: str, **headers: str) -> web.Response:
    """An error as the resource manager answers it."""
    return problem(status, {"error": {"code": code, "message": message}}, **{"x-ms-request-id": "r-1", **headers})


def judged(value: Any, form: Mapping[str, Any], place: str) -> Iterator[str]:
    """What is wrong with a value by the description's schema; members may be left out, but not added."""
    if "$ref" in form:
        form = DESCRIPTION["definitions"][form["$ref"].rpartition("/")[2]]
    kinds: dict[str, type] = {"string": str, "integer": int}
    match form.get("type", "object"):
        case "object":
            if not isinstance(value, dict):
                yield f"{place} is no object"
                return
            for name, member in value.items():
                known = form.get("properties", {}).get(name, form.get("additionalProperties"))
                if known is None or known.get("readOnly"):
                    yield f"{place} may not have the member {name}"
                else:
                    yield from judged(member, known, f"{place}.{name}")
        case "array":
            if not isinstance(value, list):
                yield f"{place} is no array"
                return
            for number, each in enumerate(value):
                yield from judged(each, form["items"], f"{place}[{number}]")
        case kind if isinstance(value, bool) or not isinstance(value, kinds[kind]):
            yield f"{place} is no {kind}"


def _refusal(error: str, number: int, text: str, status: int = 400) -> web.Response:
    body = {"error": error, "error_description": f"AADSTS{number}: {text} Trace ID: x", "error_codes": [number]}
    return problem(status, body)


def _shown_zone(zone: FakeZone) -> dict[str, Any]:
    properties: dict[str, Any] = {"nameServers": list(zone.name_servers), "maxNumberOfRecordSets": 10000}
    if zone.zone_type is not None:
        properties["zoneType"] = zone.zone_type
    return {"id": zone.id, "name": zone.name, "location": "global", "tags": None, "properties": properties}


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))

"""Google Cloud DNS at the socket: DNS API, token endpoint, metadata server and IAM credentials, on one port.

Every request is judged by the description of the API; a change is atomic, and its deletions have to match exactly.
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
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from scaivaultd.plugin import normal_name, unquoted
from tests.fakes.http import FakeApi, Seen, problem

DESCRIPTION = json.loads((Path(__file__).parent / "descriptions" / "google-cloud-dns.json").read_text())
PROJECT = "dns-project"
ACCOUNT = "writer@dns-project.iam.gserviceaccount.com"
OTHER_ACCOUNT = "other@elsewhere.iam.gserviceaccount.com"
DNS_SCOPE = "https://www.googleapis.com/auth/ndev.clouddns.readwrite"
IAM_SCOPE = "https://www.googleapis.com/auth/cloud-platform"

RSet = dict[str, Any]


@dataclass
class FakeZone:
    """A managed zone and its record sets by name."""

    name: str
    dns_name: str
    visibility: str | None = "public"
    name_servers: Sequence[str] = ("ns-cloud-a1.googledomains.com.", "ns-cloud-a2.googledomains.com.")
    sets: dict[str, RSet] = field(default_factory=dict)


class FakeGoogle(FakeApi):
    """One project. `pending_looks`: how often a change is shown as pending before it is done."""

    def __init__(self, private_key: rsa.RSAPrivateKey) -> None:
        super().__init__()
        self.key = private_key
        self.zones: dict[str, FakeZone] = {}
        self.page_size = 100
        self.pending_looks = 0
        self.ignores_filters = False
        self.expires_in: Any = 3599
        self.metadata_flavor: str | None = "Google"
        self.meddle: list[tuple[str, RSet | None]] = []
        """Record sets that another program writes just before the next changes: zone and set, or None to delete."""
        self.tokens: dict[str, str] = {}
        self.token_requests = 0
        self.revoked: set[str] = set()
        self._changes: dict[str, int] = {}
        self._numbers = itertools.count(1)

    @property
    def api_base(self) -> str:
        return f"{self.url}/dns/v1"

    def key_file(self, key: rsa.RSAPrivateKey | None = None, **members: Any) -> str:
        """The JSON key of the account that the server knows, or one with another key."""
        pem = (key or self.key).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        known = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "k1",
            "private_key": pem.decode(),
            "client_email": ACCOUNT,
            "client_id": "1234",
            "token_uri": f"{self.url}/token",
        }
        return json.dumps({**known, **members})

    def add_zone(self, name: str, dns_name: str, **members: Any) -> FakeZone:
        self.zones[name] = FakeZone(name, dns_name, **members)
        return self.zones[name]

    def revoke_tokens(self) -> None:
        self.revoked |= set(self.tokens)

    async def answer(self, seen: Seen) -> web.StreamResponse:
        if seen.path == "/token":
            return self._token(seen)
        if seen.path.startswith("/computeMetadata/"):
            return self._metadata(seen)
        if seen.path.startswith("/v1/projects/-/serviceAccounts/"):
            return self._impersonate(seen)
        return self._dns(seen)

    # Tokens

    def _issue(self, scope: str) -> str:
        token = f"ya29.{next(self._numbers)}-token-of-the-fake"
        self.tokens[token] = scope
        return token

    def _token(self, seen: Seen) -> web.Response:
        self.token_requests += 1
        form = {name: values[0] for name, values in parse_qs(seen.body.decode(), keep_blank_values=True).items()}
        if seen.method != "POST" or seen.headers.get("content-type") != "application/x-www-form-urlencoded":
            self.violation(f"the token endpoint takes forms by POST, not {seen.method}")
        if set(form) != {"grant_type", "assertion"} or seen.query:
            self.violation(f"the token endpoint got {sorted(form)} and {sorted(seen.query)}")
        if form.get("grant_type") != DESCRIPTION["oauth_token_endpoint"]["form"]["grant_type"]:
            return problem(400, {"error": "unsupported_grant_type"})
        header, claims, fault = self._judged_assertion(form.get("assertion", ""))
        if fault:
            return problem(400, {"error": "invalid_grant", "error_description": fault})
        if header.get("alg") != "RS256" or header.get("typ") != "JWT" or set(header) - {"alg", "typ", "kid"}:
            self.violation(f"the assertion has the header {header}")
        if set(claims) != {"iss", "scope", "aud", "iat", "exp"}:
            self.violation(f"the assertion has the claims {sorted(claims)}")
        return problem(
            200,
            {"access_token": self._issue(claims["scope"]), "expires_in": self.expires_in, "token_type": "Bearer"},
        )

    def _judged_assertion(self, assertion: str) -> tuple[dict[str, Any], dict[str, Any], str]:
        try:
            first, second, third = assertion.split(".")
            header, claims = (json.loads(_decoded(part)) for part in (first, second))
            self.key.public_key().verify(
                _decoded(third), f"{first}.{second}".encode(), padding.PKCS1v15(), hashes.SHA256()
            )
        except InvalidSignature:
            return {}, {}, "Invalid JWT Signature."
        except ValueError:
            return {}, {}, "Invalid JWT: it cannot be read."
        if claims.get("aud") != f"{self.url}/token" or claims.get("iss") != ACCOUNT:
            return header, claims, "Invalid JWT: audience or issuer."
        times = [claims.get("iat"), claims.get("exp")]
        if not all(type(each) is int for each in times) or not 0 < times[1] - times[0] <= 3600:
            return header, claims, "Invalid JWT: Token must be a short-lived token (60 minutes)."
        return header, claims, ""

    def _metadata(self, seen: Seen) -> web.Response:
        if seen.headers.get("metadata-flavor") != "Google":
            self.violation("the metadata server was asked without Metadata-Flavor")
            return web.Response(status=403)
        flavor = {"Metadata-Flavor": self.metadata_flavor} if self.metadata_flavor else {}
        if seen.method != "GET" or seen.query or "authorization" in seen.headers:
            self.violation(f"the metadata server was asked {seen.line} {sorted(seen.query)}")
        if seen.path == "/computeMetadata/v1/project/project-id":
            return web.Response(text=f"{PROJECT}\n", headers=flavor)
        if seen.path == "/computeMetadata/v1/instance/service-accounts/default/token":
            self.token_requests += 1
            body = {
                "access_token": self._issue(f"{DNS_SCOPE} {IAM_SCOPE}"),
                "expires_in": self.expires_in,
                "token_type": "Bearer",
            }
            return problem(200, body, **flavor)
        return web.Response(status=404, headers=flavor)

    def _impersonate(self, seen: Seen) -> web.Response:
        account = (
            unquote(seen.path).removeprefix("/v1/projects/-/serviceAccounts/").removesuffix(":generateAccessToken")
        )
        if seen.method != "POST" or not seen.path.endswith(":generateAccessToken"):
            self.violation(f"no such method of IAM credentials: {seen.line}")
        if denied := self._denied(seen, IAM_SCOPE):
            return denied
        if json.loads(seen.body) != {"scope": [DNS_SCOPE], "lifetime": "3600s"}:
            self.violation(f"generateAccessToken got {seen.body!r}")
        if account != OTHER_ACCOUNT:
            return failure(403, "forbidden", f"Permission 'iam.serviceAccounts.getAccessToken' denied on {account}")
        return problem(200, {"accessToken": self._issue(DNS_SCOPE), "expireTime": "2099-01-01T00:00:00Z"})

    def _denied(self, seen: Seen, scope: str) -> web.Response | None:
        kind, _, token = seen.headers.get("authorization", "").partition(" ")
        if kind != "Bearer" or token not in self.tokens or token in self.revoked:
            return failure(401, "authError", "Invalid Credentials")
        if scope not in self.tokens[token].split():
            self.violation(f"{seen.line} was asked with a token for {self.tokens[token]}")
            return failure(403, "insufficientPermissions", "Request had insufficient authentication scopes.")
        return None

    # DNS

    def _dns(self, seen: Seen) -> web.Response:
        method = self._method(seen)
        if method is None:
            self.violation(f"the API has no {seen.line}")
            return web.Response(status=404, text="<html>Not Found</html>", content_type="text/html")
        if denied := self._denied(seen, DNS_SCOPE):
            return denied
        description, segments = method
        self._judge_parameters(seen, description)
        if segments["project"] != PROJECT:
            return failure(403, "forbidden", "Permission denied on the project")
        if description["id"] == "dns.managedZones.list":
            return self._list_zones(seen)
        zone = self.zones.get(segments["managedZone"])
        if zone is None:
            return failure(404, "notFound", "The 'parameters.managedZone' resource does not exist.")
        match description["id"]:
            case "dns.managedZones.get":
                return problem(200, _shown_zone(zone))
            case "dns.resourceRecordSets.list":
                return self._list_sets(seen, zone)
            case "dns.changes.create":
                return self._change(seen, zone)
            case "dns.changes.get":
                return self._show_change(segments["changeId"])
        self.violation(f"the fake does not know {description['id']}")
        return web.Response(status=501)

    def _method(self, seen: Seen) -> tuple[dict[str, Any], Mapping[str, str]] | None:
        for resource in DESCRIPTION["resources"].values():
            for description in resource["methods"].values():
                pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(f"/{description['path']}"))
                found = re.fullmatch(pattern, seen.path)
                if found and description["httpMethod"] == seen.method:
                    return description, {name: unquote(value) for name, value in found.groupdict().items()}
        return None

    def _judge_parameters(self, seen: Seen, description: dict[str, Any]) -> None:
        known = {name for name, each in description["parameters"].items() if each["location"] == "query"}
        if unknown := set(seen.query) - known - set(DESCRIPTION["parameters"]):
            self.violation(f"{seen.line} got the parameters {sorted(unknown)}")
        if "type" in seen.query and "name" not in seen.query:
            self.violation("`type` is taken together with `name` only")
        for name in ("dnsName", "name"):
            if name in seen.query and not seen.query[name].endswith("."):
                self.violation(f"{name} lacks its dot: {seen.query[name]}")
        if "request" not in description:
            if seen.body:
                self.violation(f"{seen.line} has a body")
            return
        if not seen.headers.get("content-type", "").startswith("application/json"):
            self.violation(f"{seen.line} is sent as {seen.headers.get('content-type')}")
        self.violations.extend(judged(json.loads(seen.body), description["request"], "$"))

    def _list_zones(self, seen: Seen) -> web.Response:
        wanted = seen.query.get("dnsName")
        found = [_shown_zone(zone) for zone in self.zones.values() if wanted in (None, f"{zone.dns_name}.")]
        return self._page(seen, "managedZones", found)

    def _list_sets(self, seen: Seen, zone: FakeZone) -> web.Response:
        others = [{"name": f"{zone.dns_name}.", "type": "SOA", "ttl": 21600, "rrdatas": ["ns. mail. 1 2 3 4 5"]}]
        found = [
            {"kind": "dns#resourceRecordSet", "signatureRrdatas": [], **each}
            for each in [*others, *zone.sets.values()]
            if self.ignores_filters
            or (
                seen.query.get("name", each["name"]) == each["name"]
                and seen.query.get("type", each["type"]) == each["type"]
            )
        ]
        return self._page(seen, "rrsets", found)

    def _page(self, seen: Seen, member: str, items: list[Any]) -> web.Response:
        size = min(self.page_size, int(seen.query.get("maxResults", self.page_size)))
        begin = int(seen.query.get("pageToken", "0"))
        body: dict[str, Any] = {"kind": "dns#list", "header": {"operationId": "x"}}
        # An empty list is left out, as Google does.
        if shown := items[begin : begin + size]:
            body[member] = shown
        if begin + size < len(items):
            body["nextPageToken"] = str(begin + size)
        return problem(200, body)

    def _change(self, seen: Seen, zone: FakeZone) -> web.Response:
        if self.meddle:
            self._meddle(zone)
        change = json.loads(seen.body)
        left = dict(zone.sets)
        for each in change.get("deletions", ()):
            present = left.get(each["name"])
            if present is None:
                return failure(404, "notFound", "The 'entity.change.deletions[0]' resource does not exist.")
            if any(present[member] != each.get(member) for member in ("name", "type", "ttl", "rrdatas")):
                return failure(412, "conditionNotMet", "Precondition not met for 'entity.change.deletions[0]'")
            del left[each["name"]]
        for each in change.get("additions", ()):
            values = [unquoted(text) for text in each["rrdatas"]]
            if each["name"] in left or len(set(values)) < len(values):
                return failure(409, "alreadyExists", "The resource 'entity.change.additions[0]' already exists")
            if not normal_name(each["name"]).endswith(normal_name(zone.dns_name)):
                return failure(400, "invalid", f"{each['name']} is not in the zone")
            left[each["name"]] = dict(each)
        changed = {each["name"] for part in change.values() for each in part}
        zone.sets = left
        self._tell(zone, changed)
        number = str(next(self._numbers))
        self._changes[number] = self.pending_looks
        return problem(200, {**change, "kind": "dns#change", "id": number, "status": "pending"})

    def _meddle(self, zone: FakeZone) -> None:
        name, foreign = self.meddle.pop(0)
        if foreign is None:
            zone.sets.pop(name, None)
        else:
            zone.sets[name] = foreign

    def _show_change(self, number: str) -> web.Response:
        if number not in self._changes:
            return failure(404, "notFound", "The 'parameters.changeId' resource does not exist.")
        self._changes[number] -= 1
        return problem(200, {"id": number, "status": "done" if self._changes[number] < 0 else "pending"})

    def _tell(self, zone: FakeZone, names: set[str]) -> None:
        for name in names:
            if self.on_txt is not None:
                texts = zone.sets.get(name, {}).get("rrdatas", ())
                self.on_txt(normal_name(name), tuple(unquoted(text) for text in texts))


def txt_set(name: str, *rrdatas: str, ttl: int = 60) -> RSet:
    """A record set as the API shows it."""
    return {"name": f"{name}.", "type": "TXT", "ttl": ttl, "rrdatas": list(rrdatas)}


def failure(status: int, reason: str, message: str) -> web.Response:
    """An error as Google's APIs answer it."""
    errors = [{"message": message, "domain": "global", "reason": reason}]
    return problem(status, {"error": {"code": status, "message": message, "errors": errors}})


def judged(value: Any, form: Mapping[str, Any], place: str) -> Iterator[str]:
    """What is wrong with a value by the description's schema; members may be left out, but not added."""
    if "$ref" in form:
        form = DESCRIPTION["schemas"][form["$ref"]]
    kinds: dict[str, type | tuple[type, ...]] = {"string": str, "integer": int, "boolean": bool, "number": (int, float)}
    match form["type"]:
        case "object":
            if not isinstance(value, dict):
                yield f"{place} is no object"
                return
            for name, member in value.items():
                known = form.get("properties", {}).get(name, form.get("additionalProperties"))
                if known is None:
                    yield f"{place} has no member {name}"
                else:
                    yield from judged(member, known, f"{place}.{name}")
        case "array":
            if not isinstance(value, list):
                yield f"{place} is no array"
                return
            for number, each in enumerate(value):
                yield from judged(each, form["items"], f"{place}[{number}]")
        case kind if (type(value) is bool and kind != "boolean") or not isinstance(value, kinds[kind]):
            yield f"{place} is no {kind}"


def _shown_zone(zone: FakeZone) -> dict[str, Any]:
    shown = {
        "kind": "dns#managedZone",
        "id": str(abs(hash(zone.name))),
        "name": zone.name,
        "dnsName": f"{zone.dns_name}.",
        "nameServers": list(zone.name_servers),
        "newMemberOfNextYear": {"x": None},
    }
    return shown if zone.visibility is None else {**shown, "visibility": zone.visibility}


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))

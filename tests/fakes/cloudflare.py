"""Cloudflare as far as TXT records go, with its habits: codes that matter more than statuses, lists that lag."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from scaivaultd.plugin import unquoted
from tests.fakes.descriptions import Asked, DescribedApi, Description
from tests.fakes.http import Fault, problem

TOKEN = "right-cloudflare-token-0123456789abcdef"
ACCOUNT = "acc00000000000000000000000000001"


@dataclass
class CloudflareZone:
    id: str
    name: str
    status: str = "active"
    type: str = "full"
    account: str = ACCOUNT

    def document(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "status": self.status,
            "type": self.type,
            "paused": False,
            "name_servers": ["ada.ns.cloudflare.test", "bob.ns.cloudflare.test"],
            "account": {"id": self.account, "name": "Example"},
            "activated_on": None,
            "meta": {},
        }


@dataclass
class CloudflareRecord:
    id: str
    zone: str
    name: str
    type: str
    content: str
    ttl: int
    extra: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "type": self.type,
            "content": self.content,
            "ttl": self.ttl,
            "proxiable": False,
            "meta": {},
            "comment": None,
            "created_on": "2026-01-01T00:00:00Z",
            "modified_on": "2026-01-01T00:00:00Z",
            **self.extra,
        }


class FakeCloudflare(DescribedApi):
    """Zones `example.com`, `dns.example.com` and others; rights are `zone` (Zone:Read) and `dns` (DNS:Edit)."""

    description = Description("cloudflare", base="/client/v4")
    throttled = Fault(
        "status",
        status=429,
        body=b'{"success":false,"errors":[{"code":971,"message":"throttled"}],"messages":[],"result":null}',
        content_type="application/json",
    )

    def __init__(self) -> None:
        super().__init__({TOKEN: {"zone", "dns"}})
        self.zones = [
            CloudflareZone("2" * 31 + "0", "example.org"),
            CloudflareZone("3" * 31 + "0", "example.net"),
            CloudflareZone("1" * 31 + "0", "example.com"),
            CloudflareZone("4" * 31 + "0", "dns.example.com"),
        ]
        self.records: list[CloudflareRecord] = []
        self.error_status = 400
        self.knows_name_filter = True
        self.shows_paging = True
        self.odd_page_status = 200
        """How a page behind the last one is answered."""
        self.hidden: set[str] = set()
        """Ids that lists do not show yet."""
        self.lists_missing = 0
        """How many lists of records will answer 404, as of a zone not known everywhere yet."""
        self.token_status = "active"
        self._made = 0

    @property
    def api_base(self) -> str:
        return f"{self.url}/client/v4"

    def txt_values(self, name: str) -> list[str]:
        return [unquoted(each.content) for each in self.records if each.name == name and each.type == "TXT"]

    def put(self, name: str, text: str, ttl: int = 60, kind: str = "TXT") -> str:
        holding = [each for each in self.zones if name == each.name or name.endswith(f".{each.name}")]
        zone = max(holding, key=lambda each: len(each.name))
        return self._store(zone.id, name, kind, text, ttl).id

    def unknown_token(self) -> web.Response:
        return self._error(9109, "Invalid access token")

    async def carry_out(self, asked: Asked, rights: Collection[str]) -> web.Response:
        zone = next((each for each in self.zones if each.id == asked.path.get("zone_id")), None)
        match asked.operation:
            case "GET /user/tokens/verify":
                return self._verified()
            case "GET /zones":
                return self._list_zones(asked, rights)
            case "GET /zones/{zone_id}" if "zone" not in rights:
                return self._error(10000, "Authentication error")
            case _ if zone is None:
                return self._error(7003, "Could not route, perhaps your object identifier is invalid?")
            case "GET /zones/{zone_id}":
                return _result(zone.document())
            case _ if "dns" not in rights:
                return self._error(10000, "Authentication error")
            case "GET /zones/{zone_id}/dns_records":
                return self._list_records(asked, zone)
            case "POST /zones/{zone_id}/dns_records":
                return self._create(asked, zone)
            case "GET /zones/{zone_id}/dns_records/{dns_record_id}":
                return self._show(asked.path["dns_record_id"])
            case "DELETE /zones/{zone_id}/dns_records/{dns_record_id}":
                return self._delete(asked.path["dns_record_id"])
        raise AssertionError(f"not played here: {asked.operation}")

    def _verified(self) -> web.Response:
        if self.token_status == "unknown":
            return self._error(1000, "Invalid API Token")
        return _result({"id": "t", "status": self.token_status, "expires_on": "2026-01-01T00:00:00Z"})

    def _list_zones(self, asked: Asked, rights: Collection[str]) -> web.Response:
        if "name" in asked.query and not self.knows_name_filter:
            return self._error(1004, "the filter name is deprecated")
        seen = [each for each in self.zones if "zone" in rights]
        if "name" in asked.query:
            seen = [each for each in seen if each.name == asked.query["name"]]
        if "account.id" in asked.query:
            seen = [each for each in seen if each.account == asked.query["account.id"]]
        return self._page(asked, [each.document() for each in seen], 20)

    def _list_records(self, asked: Asked, zone: CloudflareZone) -> web.Response:
        if self.lists_missing:
            self.lists_missing -= 1
            return self._error(7003, "Could not route", status=404)
        found = [each for each in self.records if each.zone == zone.id and each.id not in self.hidden]
        for name, wanted in asked.query.items():
            if name in ("type", "name", "name.exact"):
                found = [each for each in found if getattr(each, name.partition(".")[0]) == wanted]
        return self._page(asked, [each.document() for each in found], 100)

    def _create(self, asked: Asked, zone: CloudflareZone) -> web.Response:
        name = asked.body["name"]
        if name != name.lower() or name.endswith("."):
            self.violation(f"an odd name: {name}")
        if name != zone.name and not name.endswith(f".{zone.name}"):
            name = f"{name}.{zone.name}"
        beside = [each for each in self.records if each.name == name and each.zone == zone.id]
        if any(each.type in ("CNAME", "A") for each in beside):
            return self._error(81053, "An A, AAAA, or CNAME record with that host already exists.")
        # It keeps what it is given, but tells duplicates by their text.
        if any(unquoted(each.content) == unquoted(asked.body["content"]) for each in beside):
            return self._error(81058, "An identical record already exists.")
        record = self._store(zone.id, name, "TXT", asked.body["content"], asked.body["ttl"])
        return _result(record.document())

    def _show(self, record_id: str) -> web.Response:
        record = next((each for each in self.records if each.id == record_id), None)
        return self._error(81044, "Record does not exist.") if record is None else _result(record.document())

    def _delete(self, record_id: str) -> web.Response:
        record = next((each for each in self.records if each.id == record_id), None)
        if record is None:
            return self._error(81044, "Record does not exist.")
        self.records.remove(record)
        self.tell(record.name)
        return _result({"id": record_id})

    def _store(self, zone: str, name: str, kind: str, content: str, ttl: int) -> CloudflareRecord:
        self._made += 1
        record = CloudflareRecord(f"{self._made:032x}", zone, name, kind, content, ttl)
        self.records.append(record)
        self.tell(name)
        return record

    def _page(self, asked: Asked, entries: list[dict[str, Any]], default: int) -> web.Response:
        shown, page, pages = self.page_of(asked, entries, default)
        if page > pages and self.odd_page_status != 200:
            return self._error(1005, "there is no such page", status=self.odd_page_status)
        paging = {"page": page, "total_pages": pages, "count": len(shown), "total_count": len(entries)}
        return _result(shown, **({"result_info": paging} if self.shows_paging else {}))

    def _error(self, code: int, message: str, status: int = 0) -> web.Response:
        errors = [{"code": code, "message": message}]
        if code == 9109:
            errors = [{"code": 6100, "message": "see the chain", "error_chain": errors}]
        return problem(
            status or self.error_status, {"success": False, "errors": errors, "messages": [], "result": None}
        )


def _result(result: Any, **more: Any) -> web.Response:
    return problem(200, {"success": True, "errors": [], "messages": None, "result": result, **more})

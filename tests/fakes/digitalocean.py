"""DigitalOcean as far as TXT records go, with its habits: relative names, and duplicates taken without a word."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.fakes.descriptions import Asked, DescribedApi, Description
from tests.fakes.http import Fault, problem

TOKEN = "right_digitalocean_token_0123456789abcdef"
SCOPES = frozenset({"domain:read", "domain:create", "domain:update", "domain:delete"})


@dataclass
class DigitalOceanRecord:
    id: int
    domain: str
    name: str
    type: str
    data: str
    ttl: int

    def document(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": self.type,
            "name": self.name,
            "data": self.data,
            "ttl": self.ttl,
            "priority": None,
            "port": None,
            "weight": None,
            "flags": None,
            "tag": None,
        }

    @property
    def full_name(self) -> str:
        return self.domain if self.name == "@" else f"{self.name}.{self.domain}"


class FakeDigitalOcean(DescribedApi):
    """Domains `example.com`, `dns.example.com` and others; rights are the scopes."""

    description = Description("digitalocean", excused=("flags", "tag"))
    throttled = Fault(
        "status",
        status=429,
        body=b'{"id":"too_many_requests","message":"API rate limit exceeded."}',
        content_type="application/json",
    )

    def __init__(self) -> None:
        super().__init__({TOKEN: SCOPES})
        self.domains = ["example.org", "example.net", "example.com", "dns.example.com"]
        self.records: list[DigitalOceanRecord] = []
        self.link_root = ""
        """Where `links.pages.next` leads; its own address when empty."""
        self.shows_links = True
        self.shows_meta = True
        self.odd_names_status = 404
        self.odd_page_status = 200
        """How a page behind the last one is answered."""
        self._made = 1000

    @property
    def api_base(self) -> str:
        return f"{self.url}/v2"

    def txt_values(self, name: str) -> list[str]:
        return [each.data for each in self.records if each.full_name == name and each.type == "TXT"]

    def put(self, name: str, text: str, ttl: int = 1800, kind: str = "TXT") -> str:
        domain = max((each for each in self.domains if name == each or name.endswith(f".{each}")), key=len)
        relative = "@" if name == domain else name.removesuffix(f".{domain}")
        return str(self._store(domain, relative, kind, text, ttl).id)

    def unknown_token(self) -> web.Response:
        return _error(401, "unauthorized", "Unable to authenticate you")

    async def carry_out(self, asked: Asked, rights: Collection[str]) -> web.Response:
        method, _, template = asked.operation.partition(" ")
        wanted = {"GET": {"domain:read"}, "POST": {"domain:create", "domain:update"}, "DELETE": {"domain:delete"}}
        if not wanted[method] & set(rights):
            return _error(403, "forbidden", "You are not authorized to perform this operation")
        if template == "/v2/domains":
            return self._page(asked, "domains", [{"name": each, "ttl": 1800} for each in self.domains])
        domain = asked.path["domain_name"]
        if domain not in self.domains:
            return _error(self.odd_names_status if "_" in domain else 404, "not_found", "no such domain")
        match asked.operation:
            case "GET /v2/domains/{domain_name}":
                return problem(200, {"domain": {"name": domain, "ttl": 1800, "zone_file": None}})
            case "GET /v2/domains/{domain_name}/records":
                return self._list_records(asked, domain)
            case "POST /v2/domains/{domain_name}/records":
                return self._create(asked, domain)
            case "GET /v2/domains/{domain_name}/records/{domain_record_id}":
                return self._show(domain, int(asked.path["domain_record_id"]))
            case "DELETE /v2/domains/{domain_name}/records/{domain_record_id}":
                return self._delete(domain, int(asked.path["domain_record_id"]))
        raise AssertionError(f"not played here: {asked.operation}")

    def _list_records(self, asked: Asked, domain: str) -> web.Response:
        found = [each for each in self.records if each.domain == domain]
        if "type" in asked.query:
            found = [each for each in found if each.type == asked.query["type"]]
        if "name" in asked.query:
            found = [each for each in found if each.full_name == asked.query["name"]]
        return self._page(asked, "domain_records", [each.document() for each in found])

    def _create(self, asked: Asked, domain: str) -> web.Response:
        name, ttl = asked.body["name"], asked.body.get("ttl", 1800)
        if name != "@" and (name.endswith(domain) or name != name.lower()):
            self.violation(f"the domain would be appended again: {name}")
        if ttl < 30:
            return _error(422, "unprocessable_entity", "TTL must be at least 30")
        if any(each.name == name and each.type == "CNAME" for each in self.records):
            return _error(422, "unprocessable_entity", "CNAME records cannot share a name with other records")
        record = self._store(domain, name, asked.body["type"], asked.body["data"], ttl)
        return problem(201, {"domain_record": record.document()})

    def _show(self, domain: str, record_id: int) -> web.Response:
        record = next((each for each in self.records if each.id == record_id and each.domain == domain), None)
        if record is None:
            return _error(404, "not_found", "The resource you requested could not be found.")
        return problem(200, {"domain_record": record.document()})

    def _delete(self, domain: str, record_id: int) -> web.Response:
        record = next((each for each in self.records if each.id == record_id and each.domain == domain), None)
        if record is None:
            return _error(404, "not_found", "The resource you requested could not be found.")
        self.records.remove(record)
        self.tell(record.full_name)
        return web.Response(status=204)

    def _store(self, domain: str, name: str, kind: str, data: str, ttl: int) -> DigitalOceanRecord:
        self._made += 1
        record = DigitalOceanRecord(self._made, domain, name, kind, data, ttl)
        self.records.append(record)
        self.tell(record.full_name)
        return record

    def _page(self, asked: Asked, member: str, entries: list[dict[str, Any]]) -> web.Response:
        shown, page, pages = self.page_of(asked, entries, 20)
        if page > pages and self.odd_page_status != 200:
            return _error(self.odd_page_status, "not_found", "there is no such page")
        body: dict[str, Any] = {member: shown}
        if self.shows_links:
            following = {"next": f"{self.link_root or self.url}/v2/{member}?page={page + 1}"} if page < pages else {}
            body["links"] = {"pages": following}
        if self.shows_meta:
            body["meta"] = {"total": len(entries)}
        return problem(200, body)


def _error(status: int, name: str, message: str) -> web.Response:
    return problem(status, {"id": name, "message": message, "request_id": "req-1"})

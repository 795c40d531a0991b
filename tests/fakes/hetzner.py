"""Hetzner's Cloud API as far as TXT record sets go: actions, locks, one TTL for a set, errors for duplicates."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from scaivaultd.plugin import unquoted
from tests.fakes.descriptions import Asked, DescribedApi, Description
from tests.fakes.http import Fault, problem

TOKEN = "right0hetzner0token0" + "0123456789abcdef" * 2 + "0123456789ab"
ADD = "POST /zones/{id_or_name}/rrsets/{rr_name}/{rr_type}/actions/add_records"
REMOVE = "POST /zones/{id_or_name}/rrsets/{rr_name}/{rr_type}/actions/remove_records"


@dataclass
class HetznerZone:
    id: int
    name: str
    mode: str = "primary"
    delegation_status: str = "valid"

    def document(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "mode": self.mode,
            "status": "ok",
            "ttl": 3600,
            "labels": {},
            "registrar": "other",
            "authoritative_nameservers": {
                "assigned": ["hydrogen.ns.hetzner.test.", "oxygen.ns.hetzner.test."],
                "delegated": [],
                "delegation_last_check": None,
                "delegation_status": self.delegation_status,
            },
        }


@dataclass
class HetznerSet:
    """`values` are in quotes."""

    ttl: int | None
    values: list[str] = field(default_factory=list)


class FakeHetzner(DescribedApi):
    """Zones `example.com` and others of one project; rights are `read` and `write`."""

    description = Description("hetzner", base="/v1")
    throttled = Fault(
        "status",
        status=429,
        headers={"RateLimit-Remaining": "0", "RateLimit-Reset": "4102444800"},
        body=b'{"error":{"code":"rate_limit_exceeded","message":"limit of 3600 requests per hour reached"}}',
        content_type="application/json",
    )

    def __init__(self) -> None:
        super().__init__({TOKEN: {"read", "write"}})
        self.zones = [HetznerZone(11, "example.org"), HetznerZone(12, "example.com"), HetznerZone(13, "example.net")]
        self.sets: dict[tuple[str, str], HetznerSet] = {}
        self.duplicate_error = (409, "uniqueness_error")
        self.polls = 1
        """How often an action is still running when it is asked for."""
        self.action_error: str | None = None
        """What the next actions end in; they change nothing then."""
        self.locked_zones = False
        """Whether a zone is locked until its action was seen to be done."""
        self.hidden_once: set[str] = set()
        """Relative names whose set is not shown the next time: somebody writes after that."""
        self.going: dict[str, str] = {}
        """Values in quotes by relative name that somebody removes after the next look."""
        self.ttl_it_takes = 0
        """The TTL that a set takes instead of its own, if not 0."""
        self._running: dict[int, int] = {}
        self._failed: dict[int, str] = {}
        self._locks: dict[str, int] = {}
        self._made = 0

    @property
    def api_base(self) -> str:
        return f"{self.url}/v1"

    def txt_values(self, name: str) -> list[str]:
        found = self.sets.get(self._key(name))
        return [unquoted(each) for each in found.values] if found else []

    def put(self, name: str, text: str, ttl: int | None = 60) -> str:
        self.sets.setdefault(self._key(name), HetznerSet(ttl)).values.append(text)
        self.tell(name)
        return ""

    def unknown_token(self) -> web.Response:
        return _error(401, "unauthorized", "unable to authenticate")

    async def carry_out(self, asked: Asked, rights: Collection[str]) -> web.Response:
        if asked.operation.startswith("POST") and "write" not in rights:
            return _error(403, "forbidden", "insufficient permissions for this request")
        if asked.operation == "GET /actions/{id}":
            return self._action_now(int(asked.path["id"]))
        if asked.operation == "GET /zones":
            shown, page, pages = self.page_of(asked, [each.document() for each in self.zones], 25)
            return problem(200, {"zones": shown, "meta": {"pagination": self._paging(page, pages)}})
        given = asked.path["id_or_name"]
        zone = next((each for each in self.zones if given in (str(each.id), each.name)), None)
        if zone is None:
            return _error(404, "not_found", f"zone with ID or name '{given}' not found")
        if asked.operation == "GET /zones/{id_or_name}":
            return problem(200, {"zone": zone.document()})
        return self._of_set(asked, zone)

    def _of_set(self, asked: Asked, zone: HetznerZone) -> web.Response:
        relative = asked.path["rr_name"]
        if relative != relative.lower() or relative.endswith((".", zone.name)) or asked.path["rr_type"] != "TXT":
            self.violation(f"an odd name: {relative}")
        found = self.sets.get((zone.name, relative))
        if relative in self.hidden_once and asked.operation.startswith("GET"):
            self.hidden_once.remove(relative)
            found = None
        match asked.operation:
            case "GET /zones/{id_or_name}/rrsets/{rr_name}/{rr_type}":
                shown = _set_document(relative, found)
                if found is not None and relative in self.going:
                    found.values.remove(self.going.pop(relative))
                return shown
            case _ if zone.mode == "secondary":
                return _error(422, "incorrect_zone_mode", "the zone is a secondary one")
            case _ if self._locks.get(zone.name) in self._running:
                return _error(423, "locked", "another action is running")
            case operation if operation == ADD:
                return self._add(asked, zone, relative, found)
            case operation if operation == REMOVE:
                return self._remove(asked, zone, relative, found)
        raise AssertionError(f"not played here: {asked.operation}")

    def _add(self, asked: Asked, zone: HetznerZone, relative: str, found: HetznerSet | None) -> web.Response:
        values = [each["value"] for each in asked.body["records"]]
        if any(not value.startswith('"') or not value.endswith('"') for value in values):
            return _error(422, "invalid_input", "TXT values must be in quotes")
        ttl = asked.body.get("ttl")
        if found is not None and ttl is not None and ttl != (self.ttl_it_takes or found.ttl):
            return _error(422, "invalid_input", "invalid input", fields={"ttl": "does not match the record set"})
        if found is not None and set(values) & set(found.values):
            return _error(*self.duplicate_error, "a record with this value exists already")
        return self._begin(zone, relative, (found.ttl if found else ttl), (found.values if found else []) + values)

    def _remove(self, asked: Asked, zone: HetznerZone, relative: str, found: HetznerSet | None) -> web.Response:
        values = [each["value"] for each in asked.body["records"]]
        if found is None:
            return _error(404, "not_found", "no such record set")
        if not set(values) <= set(found.values):
            return _error(422, "invalid_input", "a record with this value does not exist")
        return self._begin(zone, relative, found.ttl, [each for each in found.values if each not in values])

    def _begin(self, zone: HetznerZone, relative: str, ttl: int | None, values: list[str]) -> web.Response:
        self._made += 1
        if self.action_error is not None:
            self._failed[self._made] = self.action_error
        elif values:
            self.sets[zone.name, relative] = HetznerSet(ttl, values)
        else:
            del self.sets[zone.name, relative]
        if self.polls:
            self._running[self._made] = self.polls
            if self.locked_zones:
                self._locks[zone.name] = self._made
        self.tell(zone.name if relative == "@" else f"{relative}.{zone.name}")
        return problem(201, {"action": self._action(self._made)})

    def _action_now(self, action_id: int) -> web.Response:
        left = self._running.get(action_id, 0) - 1
        if left > 0:
            self._running[action_id] = left
        else:
            self._running.pop(action_id, None)
        return problem(200, {"action": self._action(action_id)})

    def _action(self, action_id: int) -> dict[str, Any]:
        status = "running" if action_id in self._running else "error" if action_id in self._failed else "success"
        error = {"code": self._failed[action_id], "message": "it did not work"} if status == "error" else None
        return {"id": action_id, "command": "add_records", "status": status, "progress": 0, "error": error}

    def _paging(self, page: int, pages: int) -> dict[str, Any]:
        return {
            "page": page,
            "next_page": page + 1 if page < pages else None,
            "last_page": pages,
            "total_entries": len(self.zones),
        }

    def _key(self, name: str) -> tuple[str, str]:
        zone = next(each.name for each in self.zones if name == each.name or name.endswith(f".{each.name}"))
        return zone, "@" if name == zone else name.removesuffix(f".{zone}")


def _set_document(relative: str, found: HetznerSet | None) -> web.Response:
    if found is None:
        return _error(404, "not_found", "no such record set")
    records = [{"value": each, "comment": ""} for each in found.values]
    rrset = {"id": f"{relative}/TXT", "name": relative, "type": "TXT", "ttl": found.ttl, "records": records}
    return problem(200, {"rrset": {**rrset, "labels": {}, "protection": {"change": False}, "zone": 12}})


def _error(status: int, code: str, message: str, fields: dict[str, str] | None = None) -> web.Response:
    details = {"fields": [{"name": name, "messages": [text]} for name, text in fields.items()]} if fields else None
    return problem(status, {"error": {"code": code, "message": message, "details": details}})

"""A DNS bridge that speaks lego's httpreq convention, strictly."""

from __future__ import annotations

import base64
import re

import msgspec
from aiohttp import web

from tests.fakes.http import FakeApi, Seen


class FakeHttpreq(FakeApi):
    """`authorization` is the header it wants; empty for none."""

    def __init__(self) -> None:
        super().__init__()
        self.authorization = ""
        self.records: dict[str, list[str]] = {}

    def demand_password(self, username: str, password: str) -> None:
        self.authorization = f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"

    async def answer(self, seen: Seen) -> web.StreamResponse:
        if seen.headers.get("authorization", "") != self.authorization:
            return web.Response(status=401, text="no")
        if seen.method != "POST" or seen.path not in ("/acme/present", "/acme/cleanup") or seen.query:
            self.violation(f"no such operation: {seen.line}")
            return web.Response(status=404)
        body = msgspec.json.decode(seen.body, type=dict[str, str])
        name = body.get("fqdn", "")
        if set(body) != {"fqdn", "value"} or not re.fullmatch(r"([a-z0-9_-]+\.)+", name):
            self.violation(f"not of the default mode: {body}")
        if not seen.headers.get("content-type", "").startswith("application/json"):
            self.violation("not sent as JSON")
        return self._change(seen.path.rpartition("/")[2], name.rstrip("."), body["value"])

    def _change(self, action: str, name: str, value: str) -> web.Response:
        values = self.records.setdefault(name, [])
        if action == "present":
            self.records[name] = [*(each for each in values if each != value), value]
        elif value not in values:
            return web.Response(status=404, text="no such record")
        else:
            values.remove(value)
        if self.on_txt is not None:
            self.on_txt(name, tuple(self.records[name]))
        return web.Response(status=204 if action == "cleanup" else 200)

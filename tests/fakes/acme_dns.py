"""acme-dns after its published behaviour: two values for each account, the older of which gives way."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from tests.fakes.http import FakeApi, Seen, problem


@dataclass
class Place:
    """One of the two rows of an account; its time is in whole seconds, as the server's database has it."""

    value: str = ""
    second: int = 0


@dataclass
class FakeAccount:
    username: str
    password: str
    subdomain: str
    places: list[Place] = field(default_factory=lambda: [Place(), Place()])


class FakeAcmeDns(FakeApi):
    """`monotonic` is the server's clock: tests hand in the one the provider waits by."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        super().__init__()
        self._monotonic = monotonic
        self.domain = "auth.example.org"
        self.accounts: list[FakeAccount] = []

    def register(self, subdomain: str, username: str, password: str) -> FakeAccount:
        account = FakeAccount(username, password, subdomain)
        self.accounts.append(account)
        return account

    def values(self, name: str) -> list[str]:
        found = [each for each in self.accounts if f"{each.subdomain}.{self.domain}" == name]
        return [place.value for each in found for place in each.places if place.value]

    async def answer(self, seen: Seen) -> web.StreamResponse:
        if seen.line != "POST /update":
            self.violation(f"no such operation: {seen.line}")
            return web.Response(status=404)
        user, key = seen.headers.get("x-api-user"), seen.headers.get("x-api-key")
        account = next((each for each in self.accounts if (each.username, each.password) == (user, key)), None)
        if account is None:
            return problem(401, {"error": "forbidden"})
        body = msgspec.json.decode(seen.body, type=dict[str, str])
        if set(body) != {"subdomain", "txt"}:
            self.violation(f"members {set(body)}")
        if body["subdomain"] != account.subdomain:
            return problem(401, {"error": "forbidden"})
        if not re.fullmatch(r"[A-Za-z0-9_-]{43}", body["txt"]):
            return problem(400, {"error": "bad_txt"})
        # As its SQL does: the first row of the smallest time.
        oldest = min(account.places, key=lambda place: place.second)
        oldest.value, oldest.second = body["txt"], int(self._monotonic())
        name = f"{account.subdomain}.{self.domain}"
        if self.on_txt is not None:
            self.on_txt(name, tuple(self.values(name)))
        return problem(200, {"txt": body["txt"]})

"""Whose certificates are, for real clients: filtered lists, quotas, and renewals that end with the right to them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from scaivaultd.demo.ca_settings import CaSettings
from scaivaultd.demo.process import free_port, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

pytestmark = pytest.mark.system

ACTIONS = ["cert.issue", "cert.renew", "cert.read", "order.read", "account.read"]


@dataclass
class Caller:
    """A client over HTTP."""

    session: aiohttp.ClientSession
    base: str

    async def ask(self, method: str, path: str, key: str | None = None, **body: Any) -> tuple[int, Any]:
        headers = {} if key is None else {"Idempotency-Key": key}
        sent = None if method == "GET" else body
        async with self.session.request(method, f"{self.base}/v1{path}", json=sent, headers=headers) as answer:
            return answer.status, json.loads(await answer.read())

    async def issue(self, account_id: str, *domains: str, key: str | None = None) -> tuple[int, Any]:
        asked = {"account_id": account_id, "domains": list(domains), "challenge_type": "http-01"}
        return await self.ask("POST", "/pki/acme/issue", key, **asked)


@dataclass
class House:
    daemon: Any
    root: Caller
    web: Caller
    shop: Caller
    account_id: str

    async def allow(self, team: str, **members: Any) -> None:
        rule = {"actions": ACTIONS, "domains": [f"**.{team}.example.org"], **members}
        answer = await self.root.ask("PUT", f"/policies/{team}", principals=[f"token:{team}"], rules=[rule])
        assert answer[0] == 200, answer

    async def renewal(self, certificate_id: str) -> Any:
        return (await self.root.ask("GET", f"/pki/certificates/{certificate_id}"))[1]


@pytest.fixture
async def make_house(stack: AsyncExitStack, make_ca: Any, new_daemon: Callable[..., Any]) -> Callable[..., Any]:
    """A daemon with two teams, each of which may do all with its own names."""

    async def session(**members: Any) -> aiohttp.ClientSession:
        return await stack.enter_async_context(aiohttp.ClientSession(**members))

    async def make(**options: Any) -> House:
        local, port = await make_ca(free_port(), **options), free_port()
        daemon = new_daemon(local, rest=f'listen = ["127.0.0.1:{port}"]')
        await daemon.start()
        connector = aiohttp.UnixConnector(str(daemon.state_dir / "api.sock"))
        root = Caller(await session(connector=connector), "http://localhost")
        callers = []
        for team in ("web", "shop"):
            made = (await root.ask("POST", "/tokens", name=team))[1]
            headers = {"Authorization": f"Bearer {made['token']}"}
            callers.append(Caller(await session(headers=headers), f"http://127.0.0.1:{port}"))
        house = House(daemon, root, callers[0], callers[1], await daemon.account(local, name="le"))
        for team in ("web", "shop"):
            await house.allow(team)
        return house

    return make


async def test_each_team_sees_its_own_and_nobody_gets_anothers_order(make_house: Callable[..., Any]) -> None:
    """By lists, by the same `Idempotency-Key`, and by what the CA's limits tell."""
    house = await make_house()
    for team, caller in (("web", house.web), ("shop", house.shop)):
        for number in range(3):
            status, order = await caller.issue(house.account_id, f"n{number}.{team}.example.org", key=str(number))
            assert status == 202, order
            assert order["requested_by"].startswith("token:")
            assert order["domains"] == [f"n{number}.{team}.example.org"]
            await house.daemon.finished(order["order_id"])
    for team, caller in (("web", house.web), ("shop", house.shop)):
        for path in ("/pki/certificates", "/pki/acme/orders"):
            _, page = await caller.ask("GET", f"{path}?limit=2")
            names = [each["domains"][0] for each in page["items"]]
            assert names == [f"n0.{team}.example.org", f"n1.{team}.example.org"], page
            _, rest = await caller.ask("GET", f"{path}?limit=2&cursor={page['next_cursor']}")
            assert [each["domains"][0] for each in rest["items"]] == [f"n2.{team}.example.org"]
            assert rest["next_cursor"] is None
    _, everything = await house.root.ask("GET", "/pki/certificates")
    assert len(everything["items"]) == 6
    await house.allow("shop", accounts=["another"])
    assert (await house.shop.ask("GET", "/pki/acme/accounts"))[1]["items"] == []
    assert (await house.shop.ask("GET", "/pki/acme/limits"))[1] == {"cas": [], "items": [], "waiting": []}
    assert (await house.web.ask("GET", "/pki/acme/limits"))[1]["cas"]


async def test_a_quota_holds_against_many_at_once_and_over_a_restart(make_house: Callable[..., Any]) -> None:
    """And says when there is room again; renewals and other teams do not feel it."""
    house = await make_house()
    await house.allow("web", quota={"issue_per_day": 3})
    answers = await asyncio.gather(
        *(house.web.issue(house.account_id, f"n{number}.web.example.org") for number in range(12))
    )
    assert sorted(status for status, _ in answers) == [202] * 3 + [403] * 9
    refused = next(body for status, body in answers if status == 403)
    assert refused["code"] == "permission_denied"
    assert "3 new certificates in 24 hours; next at 20" in refused["detail"]
    orders = [await house.daemon.finished(body["order_id"]) for status, body in answers if status == 202]
    await house.daemon.stop()
    await house.daemon.start()
    assert (await house.web.issue(house.account_id, "late.web.example.org"))[0] == 403
    assert (await house.shop.issue(house.account_id, "a.shop.example.org"))[0] == 202
    certificate_id = orders[0]["certificate_id"]
    status, order = await house.web.ask("POST", f"/pki/certificates/{certificate_id}/renew")
    assert status in (200, 202), order
    assert (await house.daemon.finished(order["order_id"]))["status"] == "valid"


async def test_a_renewal_ends_with_the_right_and_comes_back_with_it(make_house: Callable[..., Any]) -> None:
    """A certificate of seconds: without its policy it stays as it is, and is alarmed about once."""
    house = await make_house(settings=CaSettings(lifetime=timedelta(seconds=30)))
    _, order = await house.web.issue(house.account_id, "a.web.example.org")
    certificate_id = (await house.daemon.finished(order["order_id"]))["certificate_id"]
    assert (await house.root.ask("DELETE", "/policies/web"))[0] == 200

    async def is_blocked() -> bool:
        error = (await house.renewal(certificate_id))["renewal"]["error"]
        return error is not None and error["code"] == "permission_denied"

    await until(is_blocked, "the renewal is blocked", seconds=40)
    shown = await house.renewal(certificate_id)
    assert (shown["version"], shown["renewal"]["is_stopped"]) == (1, False)
    assert "(web)" in shown["renewal"]["error"]["detail"]
    (event,) = await house.daemon.events_of("certificate.renewal_blocked", 1)
    await house.allow("web")

    async def is_renewed() -> bool:
        shown = await house.renewal(certificate_id)
        return bool(shown["version"] == 2 and shown["renewal"]["error"] is None)

    await until(is_renewed, "it goes on at once")
    assert event

"""Policies as they hold for real clients: HTTP over TCP with tokens, and the UNIX socket as root."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from scaivaultd.demo.process import free_port, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack
    from pathlib import Path

pytestmark = pytest.mark.system

WEB = [
    {
        "actions": ["cert.issue", "cert.renew", "cert.read", "cert.update", "cert.revoke", "order.read"],
        "domains": ["*.web.example.org", "web.example.org"],
        "accounts": ["le"],
        "challenges": ["http-01"],
    },
    {"effect": "deny", "actions": ["cert.*"], "domains": ["admin.web.example.org"]},
]


@dataclass
class Answer:
    status: int
    body: Any

    @property
    def pointers(self) -> list[str]:
        return [each["pointer"] for each in self.body.get("errors", [])]


@dataclass
class Caller:
    """A client over HTTP, with the headers of one caller."""

    session: aiohttp.ClientSession
    base: str

    async def ask(self, method: str, path: str, **body: Any) -> Answer:
        sent = None if method == "GET" else body
        async with self.session.request(method, f"{self.base}/v1{path}", json=sent) as answer:
            return Answer(answer.status, json.loads(await answer.read()))

    async def issue(self, account_id: str, *domains: str, **more: Any) -> Answer:
        asked = {"account_id": account_id, "domains": list(domains), "challenge_type": "http-01", **more}
        return await self.ask("POST", "/pki/acme/issue", **asked)


@dataclass
class House:
    """A daemon with a certificate of somebody else's, and a token of the web team."""

    daemon: Any
    base: str
    root: Caller
    web: Caller
    token_id: str
    account_id: str
    theirs: str
    their_order: str
    policy_file: Path

    async def with_token(self, stack: AsyncExitStack, name: str, **members: Any) -> Caller:
        made = await self.root.ask("POST", "/tokens", name=name, **members)
        assert made.status == 201, made
        return await caller(stack, self.base, made.body["token"])


async def caller(stack: AsyncExitStack, base: str, token: str) -> Caller:
    headers = {"Authorization": f"Bearer {token}"}
    return Caller(await stack.enter_async_context(aiohttp.ClientSession(headers=headers)), base)


@pytest.fixture
async def house(stack: AsyncExitStack, make_ca: Any, new_daemon: Callable[..., Any], tmp_path: Path) -> House:
    local = await make_ca(free_port())
    port = free_port()
    policy_file = tmp_path / "policies.toml"
    policy_file.touch()
    daemon = new_daemon(local, rest=f'listen = ["127.0.0.1:{port}"]', access=f'policy_files = ["{policy_file}"]')
    await daemon.start()
    base = f"http://127.0.0.1:{port}"
    connector = aiohttp.UnixConnector(str(daemon.state_dir / "api.sock"))
    root = Caller(await stack.enter_async_context(aiohttp.ClientSession(connector=connector)), "http://localhost")
    account_id = await daemon.account(local, name="le")
    order = await daemon.issue(account_id, "a.bank.example.org")
    assert order["status"] == "valid", order
    written = await root.ask("PUT", "/policies/web-team", principals=["token:web-*"], rules=WEB)
    assert written.status == 200, written
    made = await root.ask("POST", "/tokens", name="web-ci")
    assert made.status == 201, made
    web = await caller(stack, base, made.body["token"])
    return House(
        daemon=daemon,
        base=base,
        root=root,
        web=web,
        token_id=made.body["id"],
        account_id=account_id,
        theirs=order["certificate_id"],
        their_order=order["order_id"],
        policy_file=policy_file,
    )


async def test_a_team_gets_its_names_and_no_others(house: House) -> None:
    """However they are spelled, alone or among its own, for a new certificate or an old one."""
    web, account_id = house.web, house.account_id
    ours = await web.issue(account_id, "A.Web.Example.ORG.", "web.example.org")
    assert ours.status == 202, ours
    assert ours.body["domains"] == ["a.web.example.org", "web.example.org"]
    for name in (
        "a.bank.example.org",
        "A.BANK.EXAMPLE.ORG.",
        "bank.example.org",
        "example.org",
        "a.b.web.example.org",
        "a.web.example.org.example.com",
        "a.w\u0435b.example.org",
        "xn--wb-8kc.example.org",
        "notweb.example.org",
        "127.0.0.1",
    ):
        answer = await web.issue(account_id, "a.web.example.org", name)
        assert (answer.status, answer.body["code"]) == (403, "permission_denied"), answer
        assert answer.pointers == ["/domains/1"], answer
    for name in ("*.web.example.org", "*.a.web.example.org"):
        answer = await web.issue(account_id, name, challenge_type="dns-01")
        assert answer.status == 403
        assert "/domains/0" in answer.pointers
    order = await house.daemon.finished(ours.body["order_id"])
    certificate = f"/pki/certificates/{order['certificate_id']}"
    assert (await web.ask("GET", certificate)).status == 200
    taken = await web.ask("PATCH", certificate, domains=["a.web.example.org", "a.bank.example.org"])
    assert (taken.status, taken.pointers) == (403, ["/domains/1"])
    assert (await web.ask("GET", certificate)).body["domains"] == ["a.web.example.org", "web.example.org"]
    key = await web.ask("GET", f"{certificate}/key")
    assert (key.status, key.body["code"]) == (403, "permission_denied")


async def test_a_denial_wins_over_what_allows(house: House) -> None:
    """In each spelling, and as long as it stands."""
    for name in ("admin.web.example.org", "ADMIN.web.example.org."):
        answer = await house.web.issue(house.account_id, name)
        assert answer.status == 403
        assert "rule 2 of policy web-team denies it" in answer.body["detail"]
        assert answer.pointers == ["/domains/0"]
    lifted = await house.root.ask("PUT", "/policies/web-team", principals=["token:web-*"], rules=WEB[:1])
    assert lifted.status == 200
    assert (await house.web.issue(house.account_id, "admin.web.example.org")).status == 202
    assert (await house.root.ask("DELETE", "/policies/web-team")).status == 200
    answer = await house.web.issue(house.account_id, "b.web.example.org")
    assert (answer.status, answer.pointers) == (403, [])


async def test_what_belongs_to_others_is_not_there(house: House) -> None:
    """404 in the words of what never was, so that nothing can be found out by trying."""
    for method, path, members in (
        ("GET", f"/pki/certificates/{house.theirs}", {}),
        ("GET", f"/pki/certificates/{house.theirs}/pem", {}),
        ("GET", f"/pki/certificates/{house.theirs}/versions", {}),
        ("POST", f"/pki/certificates/{house.theirs}/renew", {}),
        ("PATCH", f"/pki/certificates/{house.theirs}", {"auto_renew": False}),
        ("POST", "/pki/revoke", {"certificate_id": house.theirs}),
        ("GET", f"/pki/acme/orders/{house.their_order}", {}),
    ):
        hidden = await house.web.ask(method, path, **members)
        last = house.theirs if house.theirs in path or "certificate_id" in members else house.their_order
        absent = last[:-4] + "0000"
        gone = {name: absent if value == last else value for name, value in members.items()}
        missing = await house.web.ask(method, path.replace(last, absent), **gone)
        assert (hidden.status, missing.status) == (404, 404), (path, hidden, missing)
        assert hidden.body["detail"] == missing.body["detail"].replace(absent, last)
        assert hidden.body.keys() == missing.body.keys()
    # What the team may do to nothing at all is refused before anything is looked up.
    for path in (f"/pki/certificates/{house.theirs}/key", "/pki/certificates/cert_0000/key", "/pki/acme/accounts"):
        assert (await house.web.ask("GET", path)).status == 403
    assert (await house.root.ask("GET", f"/pki/certificates/{house.theirs}")).status == 200


async def test_a_secret_is_used_by_whoever_may(house: House, stack: AsyncExitStack) -> None:
    """An operator of one team does not lend the credentials of another."""
    for path in ("infra/aws/key", "infra/aws-prod/key"):
        assert (await house.root.ask("PUT", f"/secrets/{path}", value="v")).status == 200
    rules = [
        {"actions": ["dns_provider.*", "account.create", "secret.list"]},
        {"actions": ["secret.use", "secret.write", "secret.delete"], "secrets": ["infra/aws"]},
    ]
    await house.root.ask("PUT", "/policies/ops", principals=["token:ops"], rules=rules)
    ops = await house.with_token(stack, "ops")
    config = {"server": "127.0.0.1:5353", "tsig_name": "k", "tsig_secret_path": "infra/aws-prod/key"}
    provider = {"name": "p", "type": "rfc2136", "zones": ["example.org"]}
    answer = await ops.ask("POST", "/pki/dns-providers", **provider, config=config)
    assert (answer.status, answer.pointers) == (403, ["/config/tsig_secret_path"])
    answer = await ops.ask(
        "POST",
        "/pki/acme/accounts",
        name="x",
        provider="zerossl",
        eab={"key_id": "k", "hmac_key_path": "infra/aws/../aws-prod/key"},
    )
    assert (answer.status, answer.pointers) == (403, ["/eab/hmac_key_path"])
    assert (await ops.ask("PUT", "/secrets/infra/aws-prod/key", value="mine")).status == 403
    assert (await ops.ask("PUT", "/secrets/infra/aws/key", value="mine")).status == 200


async def test_policies_hold_after_a_kill_and_root_gets_back_in(house: House, stack: AsyncExitStack) -> None:
    """A denial of everything to everybody is undone over the UNIX socket, and survives until then."""
    denial = [{"effect": "deny", "actions": ["*"]}]
    everybody = ["unix:*", "token:*", "nats:*"]
    assert (await house.root.ask("PUT", "/policies/oops", principals=everybody, rules=denial)).status == 200
    await house.daemon.disconnect()
    await house.daemon.process.stop(signal.SIGKILL)
    house.daemon.process.start()
    await house.daemon.connect()
    assert (await house.web.issue(house.account_id, "a.web.example.org")).status == 403
    assert (await house.root.ask("GET", "/pki/certificates")).status == 403
    refused = await house.daemon.ask("pki.certificates.list")
    assert refused["code"] == "permission_denied"
    why = await house.web.ask("POST", "/auth/can-i", action="cert.issue", domains=["a.web.example.org"])
    assert (why.body["allowed"], why.body["policy"]) == (False, "oops")
    assert (await house.root.ask("DELETE", "/policies/oops")).status == 200
    assert (await house.web.issue(house.account_id, "a.web.example.org")).status == 202


async def test_a_file_is_read_again_when_the_daemon_is_told_to(house: House) -> None:
    """A mistake in it changes nothing; what it says cannot be changed by request."""
    rule = '[[policy.rule]]\nactions = ["cert.issue"]\ndomains = ["*.lab.example.org"]\n'
    house.policy_file.write_text(f'[[policy]]\nname = "lab"\nprincipals = ["token:web-ci"]\n{rule}')
    os.kill(house.daemon.process.pid, signal.SIGHUP)
    lab = {"action": "cert.issue", "domains": ["a.lab.example.org"], "account_id": "le"}

    async def is_allowed() -> bool:
        return bool((await house.web.ask("POST", "/auth/can-i", **lab)).body["allowed"])

    async def is_told() -> bool:
        return "configuration.not_reloaded" in house.daemon.process.log

    await until(is_allowed, "the file is read")
    assert (await house.root.ask("GET", "/policies/lab")).body["origin"] == "file"
    assert (await house.root.ask("PUT", "/policies/lab", rules=[])).status == 409
    house.policy_file.write_text('[[policy]]\nname = "admin"\n')
    os.kill(house.daemon.process.pid, signal.SIGHUP)
    await until(is_told, "the mistake is told")
    assert await is_allowed()


async def test_roles_need_no_policy_and_questions_are_answered(house: House, stack: AsyncExitStack) -> None:
    """And what is built in cannot be taken away by request."""
    for name in ("admin", "local-admins", "embedded-owner"):
        assert (await house.root.ask("PUT", f"/policies/{name}", rules=[])).status == 409
        assert (await house.root.ask("DELETE", f"/policies/{name}")).status == 409
    viewer = await house.with_token(stack, "dashboard", policies=["viewer"])
    assert (await viewer.ask("GET", f"/pki/certificates/{house.theirs}")).status == 200
    assert (await viewer.ask("POST", f"/pki/certificates/{house.theirs}/renew")).status == 403
    assert (await viewer.ask("GET", f"/pki/certificates/{house.theirs}/key")).status == 403
    me = await viewer.ask("GET", "/auth/whoami")
    assert (me.body["name"], me.body["policies"]) == ("dashboard", ["viewer"])
    other = await viewer.ask("POST", "/auth/can-i", action="cert.issue", principal="token:web-ci")
    assert (other.status, other.pointers) == (403, ["/principal"])
    for principal in ("token:web-ci", f"token:{house.token_id}"):
        asked = {"action": "cert.issue", "domains": ["a.web.example.org"], "account_id": "le"}
        answer = await house.root.ask("POST", "/auth/can-i", **asked, principal=principal)
        assert (answer.body["allowed"], answer.body["policy"], answer.body["rule"]) == (True, "web-team", 1)

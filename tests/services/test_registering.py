"""Registrations: bindings that are fetched, budgets that are kept, and each only once."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from scaivaultd.acme.limit_rules import Rule
from scaivaultd.acme.signing import AccountKey
from scaivaultd.acme.x509 import make_key, private_key_pem
from scaivaultd.api import messages as m
from scaivaultd.model.errors import (
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    Conflict,
    SecretNotFound,
)
from scaivaultd.model.resources import Account
from scaivaultd.services.documents import ACCOUNTS
from tests.fakes.care import CONTEXT, failing

HMAC = base64.urlsafe_b64encode(b"m" * 32).rstrip(b"=").decode()


class EabApi:
    """ZeroSSL's API: gives a new binding at each call, after what is scripted."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.script: list[Exception] = []
        self.hmac_key = HMAC

    async def by_access_key(self, access_key: str) -> tuple[str, str]:
        return self._give(access_key)

    async def by_email(self, email: str) -> tuple[str, str]:
        return self._give(email)

    def _give(self, who: str) -> tuple[str, str]:
        self.asked.append(who)
        if self.script:
            raise self.script.pop(0)
        return f"kid-{len(self.asked)}", self.hmac_key


ZEROSSL: dict[str, Any] = {"provider": "zerossl", "directory_url": None}


class TestFetchedBinding:
    @pytest.fixture
    def api(self) -> EabApi:
        return EabApi()

    @pytest.fixture
    def world(self, make_world: Any, api: EabApi) -> Any:
        world = make_world(eab_source=api)
        world.secrets.values["cred:zerossl"] = "access-key-0123456789"
        return world

    @pytest.mark.parametrize(
        ("members", "asked"),
        [
            ({"zerossl_access_key_path": "cred:zerossl"}, "access-key-0123456789"),
            ({"zerossl_access_key_path": "cred:zerossl", "email": "a@b.test"}, "access-key-0123456789"),
            ({"email": "a@b.test"}, "a@b.test"),
        ],
    )
    async def test_it_is_fetched_by_access_key_or_else_by_email(
        self, world: Any, api: EabApi, members: dict[str, Any], asked: str
    ) -> None:
        """Nobody has to copy keys from a web page."""
        account_id = await world.account(**ZEROSSL, **members)
        assert api.asked == [asked]
        ((registration),) = world.ca.registrations
        assert (registration["eab_key_id"], registration["eab_hmac_key"]) == ("kid-1", b"m" * 32)
        stored = (await world.sqlite.get(ACCOUNTS.key(account_id))).document
        assert HMAC.encode() not in stored
        assert b"access-key" not in stored
        assert (await world.accounts.get(m.AccountById(id=account_id), CONTEXT)).eab_key_id == "kid-1"

    @pytest.mark.parametrize("dies", [False, True])
    async def test_a_retry_uses_the_binding_that_was_fetched(self, world: Any, api: EabApi, dies: bool) -> None:
        """ZeroSSL counts how many it gives away; it is on disk before it is used."""
        reached = asyncio.Event()

        async def fail() -> None:
            reached.set()
            if not dies:
                raise CaUnavailable("down")
            await asyncio.Event().wait()

        world.ca.script["register"].append(fail)
        account_id = await world.account(**ZEROSSL, email="a@b.test", wait_seconds=0)
        async with asyncio.timeout(10):
            await reached.wait()
        if dies:
            await world.die()
            await world.accounts.resume()
        await world.idle()
        assert (await world.shown_account(account_id)).status == "valid"
        assert len(api.asked) == 1
        assert [each["eab_key_id"] for each in world.ca.registrations] == ["kid-1"]

    async def test_an_api_that_is_down_only_costs_time(self, world: Any, api: EabApi) -> None:
        """The CA itself is not asked before there is a binding."""
        api.script.extend([CaUnavailable("down"), CaMisbehaved("rubbish")])
        account = await world.shown_account(await world.account(**ZEROSSL, email="a@b.test"))
        assert (account.status, account.error) == ("valid", None)
        assert len(world.ca.asked("register")) == 1

    async def test_a_refusal_of_the_api_reaches_the_caller(self, world: Any, api: EabApi) -> None:
        """It is for good: the access key is wrong."""
        api.script.append(CaRefused("invalid_access_key"))
        error = await failing(world, **ZEROSSL, zerossl_access_key_path="cred:zerossl")
        assert isinstance(error, CaRefused)
        assert world.ca.calls == []

    async def test_an_access_key_that_is_not_there_is_pointed_at(self, world: Any) -> None:
        """It is the caller's own reference."""
        error = await failing(world, **ZEROSSL, zerossl_access_key_path="cred:nowhere")
        assert isinstance(error, SecretNotFound)
        assert [each.pointer for each in error.fields] == ["/zerossl_access_key_path"]

    async def test_an_unreadable_mac_key_is_the_cas_fault(self, world: Any, api: EabApi) -> None:
        """Not the caller's, who has given none."""
        api.hmac_key = "*"
        assert isinstance(await failing(world, **ZEROSSL, email="a@b.test"), CaRefused)

    async def test_the_same_request_finds_the_same_account(self, world: Any, api: EabApi) -> None:
        """Also when the binding has a name by then; another access key is another request."""
        asked = {**ZEROSSL, "email": "a@b.test", "zerossl_access_key_path": "cred:zerossl"}
        assert await world.account(**asked) == await world.account(**asked)
        assert len(api.asked) == 1
        assert isinstance(await failing(world, **{**asked, "zerossl_access_key_path": "cred:other"}), Conflict)
        assert isinstance(await failing(world, **ZEROSSL, email="a@b.test"), Conflict)
        given = m.EabRequest(key_id="mine", hmac_key=HMAC)
        assert isinstance(await failing(world, **ZEROSSL, email="a@b.test", eab=given), Conflict)


class TestTrouble:
    """What an account's `error` says beside the error itself."""

    @pytest.mark.parametrize(
        ("problem_type", "kind", "remedy"),
        [
            ("userActionRequired", "permanent", "visit the page"),
            ("externalAccountRequired", "permanent", "`eab`"),
            ("invalidContact", "transient", "the CA's own words"),
        ],
    )
    async def test_a_person_reads_what_to_do(
        self, world: Any, ca_refuses: Any, problem_type: str, kind: str, remedy: str
    ) -> None:
        """As in the errors of orders: whoever looks at it has to act, or knows that nobody has to."""
        world.ca.script["register"].append(ca_refuses(problem_type))
        noted: list[Account] = []

        async def look(changes: Any) -> None:
            accounts = [each for each in changes if each.key.startswith("account/")]
            noted.extend(msgspec.json.decode(each.document, type=Account) for each in accounts)

        world.store.before_commit = look
        with contextlib.suppress(CaRefused):
            await world.account(wait_seconds=0)
        await world.idle()
        error = next(each.error for each in noted if each.error is not None)
        assert (error.kind, error.fault) == (kind, "ca")
        assert error.remedy is not None
        assert remedy in error.remedy

    async def test_weather_is_said_to_pass(self, world: Any) -> None:
        """Nobody has to do anything."""
        reached = asyncio.Event()

        async def second() -> None:
            reached.set()
            await asyncio.Event().wait()

        world.ca.script["register"].extend([CaUnavailable("down"), second])
        account_id = await world.account(wait_seconds=0)
        async with asyncio.timeout(10):
            await reached.wait()
        reply = await world.accounts.get(m.AccountById(id=account_id), CONTEXT)
        assert (reply.status, reply.error.kind, reply.error.fault) == ("pending", "transient", "ca")
        assert reply.error.remedy == CaUnavailable.remedy


class TestBudget:
    """The CA's limit for new accounts, as ours: one in three hours here."""

    @pytest.fixture
    def world(self, make_world: Any) -> Any:
        rule = Rule(kind="new_accounts", scope="address", amount=1, window_seconds=3 * 3600)
        return make_world(rules={"https://ca.test/directory": [rule]}, patience_seconds=4 * 3600)

    async def test_a_registration_waits_for_its_turn(self, world: Any) -> None:
        """Asking would only be refused, and cost us goodwill."""
        await world.account(name="first")
        start = world.clock.now()
        shown = asyncio.Event()
        waiting: list[Any] = []

        async def look(changes: Any) -> None:
            waiting.extend(changes)
            shown.set()

        account_id = await world.account(name="second", wait_seconds=0)
        world.store.before_commit = look
        await world.idle()
        assert (world.clock.now() - start).total_seconds() > 3 * 3600 - 60
        account = await world.shown_account(account_id)
        assert (account.status, account.error, account.attempt) == ("valid", None, 0)
        noted = msgspec.json.decode(waiting[0].document)
        assert (noted["status"], noted["error"]["code"]) == ("pending", "backend_rate_limited")
        assert noted["error"]["limit"] == "new_accounts_per_address"
        assert noted["error"]["retry_at"] == noted["next_try_at"]
        assert (noted["error"]["kind"], noted["error"]["fault"]) == ("transient", "ca")
        assert "retry_at" in noted["error"]["remedy"]

    async def test_a_turn_beyond_our_patience_is_a_refusal_with_its_time(self, make_world: Any) -> None:
        """The caller can decide what to do meanwhile."""
        rule = Rule(kind="new_accounts", scope="address", amount=1, window_seconds=7 * 86400)
        world = make_world(rules={"https://ca.test/directory": [rule]})
        await world.account(name="first")
        error = await failing(world, name="second")
        assert isinstance(error, BackendRateLimited)
        assert error.retry_at is not None
        assert error.retry_at > world.clock.now() + timedelta(days=6)
        assert len(world.ca.asked("register")) == 1

    async def test_retries_of_one_registration_are_paid_for_once(self, world: Any) -> None:
        """The CA counts accounts, not requests."""
        world.ca.script["register"].extend([CaUnavailable("down")] * 3)
        start = world.clock.now()
        await world.account(name="first")
        assert (world.clock.now() - start).total_seconds() < 600

    async def test_an_account_that_is_found_costs_nothing(self, world: Any) -> None:
        """Neither by its key, nor by its binding."""
        await world.account(name="first")
        start = world.clock.now()
        private_key = make_key("ec-p256")
        world.ca.accounts[AccountKey(private_key).thumbprint] = "https://ca.test/account/old"
        await world.account(name="found", account_key_pem=private_key_pem(private_key))
        assert world.clock.now() == start

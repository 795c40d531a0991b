"""Accounts: key and intent first, one registration for ever, and honest errors when there is none."""

from __future__ import annotations

import asyncio
import base64
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import structlog

from scaivaultd.acme.signing import AccountKey
from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import (
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    Conflict,
    InvalidRequest,
    NotFound,
    SecretNotFound,
    StorageUnavailable,
)
from scaivaultd.services.documents import ACCOUNTS, KEYS
from tests.fakes.care import failing, idle

HMAC = base64.urlsafe_b64encode(b"m" * 32).rstrip(b"=").decode()
CONTEXT = RequestContext(request_id="req_1")


class TestRegistering:
    async def test_an_account_is_registered_with_its_event_and_a_key_that_opens(self, world: Any) -> None:
        """From then on the account works without anybody asking the CA who it is."""
        account = await world.shown_account(await world.account(email="ops@example.org"))
        assert (account.status, account.url) == ("valid", "https://ca.test/account/1")
        sealed = (await world.read(KEYS, account.key_id)).value.sealed
        key = AccountKey(world.sealer.open(sealed, KEYS.key(account.key_id), "private_key"))
        assert key.thumbprint == account.key_thumbprint
        assert world.ca.registrations == [
            {"contacts": ["mailto:ops@example.org"], "agreed": True, "eab_key_id": None, "eab_hmac_key": None}
        ]
        ((kind, body),) = await world.events()
        assert kind == "account.created"
        assert body["account_url"] == account.url

    async def test_key_and_intent_are_on_disk_before_the_ca_is_asked(self, world: Any) -> None:
        """A key that only the CA has seen is an account nobody can use."""
        found: list[Any] = []

        async def look() -> None:
            (account,) = await ACCOUNTS.all(world.sqlite, structlog.get_logger(), status="pending")
            found.append(await KEYS.get(world.sqlite, account.value.key_id))

        world.ca.script["register"].append(look)
        await world.account()
        assert found[0] is not None

    async def test_a_lost_answer_never_makes_a_second_account(self, world: Any, lost: Any) -> None:
        """The same key finds the same account."""
        world.ca.script["register"].extend([lost(CaUnavailable("reset"))] * 3)
        account = await world.shown_account(await world.account())
        assert account.status == "valid"
        assert len(world.ca.accounts) == 1
        assert await world.event_types() == ["account.created"]

    async def test_a_registration_cut_off_by_a_stop_goes_on_with_the_same_key(self, world: Any) -> None:
        """Also when the CA had made it already."""
        reached = asyncio.Event()

        async def hang() -> None:
            world.ca.register(world.ca.asked("register")[0], {})
            reached.set()
            await asyncio.Event().wait()

        world.ca.script["register"].append(hang)
        reply = await world.accounts.create(
            m.CreateAccount(name="n", provider="custom", directory_url="https://ca.test/directory", wait_seconds=0),
            CONTEXT,
        )
        assert reply.status == "pending"
        async with asyncio.timeout(10):
            await reached.wait()
        await world.die()
        await world.accounts.resume()
        await world.idle()
        assert (await world.shown_account(reply.id)).status == "valid"
        assert len(world.ca.accounts) == 1

    async def test_the_same_request_finds_the_same_account(self, world: Any) -> None:
        """A deployment script runs many times."""
        assert await world.account() == await world.account()
        assert len(world.ca.accounts) == 1

    async def test_several_at_once_make_one_account(self, world: Any) -> None:
        """Five hosts boot together with the same script."""
        accounts = await asyncio.gather(*(world.account() for _ in range(3)))
        assert len(set(accounts)) == 1
        assert len(world.ca.accounts) == 1

    @pytest.mark.parametrize(
        "changes", [{"directory_url": "https://other.test/d"}, {"email": "a@b.test"}, {"provider": "letsencrypt"}]
    )
    async def test_a_name_that_means_another_account_is_refused(self, world: Any, changes: dict[str, Any]) -> None:
        """Giving out the other one would order at the wrong CA."""
        await world.account()
        if "provider" in changes:
            changes = {**changes, "directory_url": None}
        error = await failing(world, **changes)
        assert isinstance(error, Conflict)
        assert [each.pointer for each in error.fields] == ["/name"]

    async def test_the_name_of_a_failed_registration_is_free_again(self, world: Any, ca_refuses: Any) -> None:
        """Correct the mistake, ask again under the same name."""
        world.ca.script["register"].append(ca_refuses("invalidContact", 400))
        await failing(world, email="wrong@example.org")
        account = await world.shown_account(await world.account(email="right@example.org"))
        assert (account.status, account.email) == ("valid", "right@example.org")

    async def test_an_order_waits_for_its_accounts_registration(self, world: Any) -> None:
        """Register and issue in one script, while the CA is slow: no reason to fail."""
        gate = asyncio.Event()
        world.ca.script["register"].append(gate.wait)
        reply = await world.accounts.create(
            m.CreateAccount(name="n", provider="custom", directory_url="https://ca.test/directory", wait_seconds=0),
            CONTEXT,
        )
        order_id = await world.order(account_id=reply.id)
        gate.set()
        assert (await world.ended(order_id)).status == "valid"


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"email": "Ops <ops@example.org>"}, "/email"),
            ({"email": "a@b.test,c@d.test"}, "/email"),
            ({"email": "a@b.test?subject=x"}, "/email"),
            ({"email": "mailto:ops@example.org"}, "/email"),
            ({"email": "öps@example.org"}, "/email"),
            ({"email": "ops"}, "/email"),
            ({"eab": {"key_id": "k"}}, "/eab"),
            ({"eab": {"key_id": "k", "hmac_key": HMAC, "hmac_key_path": "cred:x"}}, "/eab"),
            ({"eab": {"key_id": "k", "hmac_key": "***"}}, "/eab/hmac_key"),
            ({"provider": "zerossl", "directory_url": None}, "/eab"),
            ({"provider": "google", "directory_url": None}, "/eab"),
            ({"provider": "buypass", "directory_url": None}, "/provider"),
            ({"provider": "zerossl", "directory_url": None, "environment": "staging"}, "/environment"),
            ({"directory_url": "http://ca.test/directory"}, "/directory_url"),
            ({"directory_url": None}, "/directory_url"),
            ({"ca_certificates_pem": "nonsense"}, "/ca_certificates_pem"),
            ({"zerossl_access_key_path": "cred:x"}, "/zerossl_access_key_path"),
            (
                {"provider": "zerossl", "directory_url": None, "zerossl_access_key_path": "Not A Path"},
                "/zerossl_access_key_path",
            ),
            (
                {"eab": {"key_id": "k", "hmac_key": HMAC}, "zerossl_access_key_path": "cred:x"},
                "/zerossl_access_key_path",
            ),
            ({"account_key_path": "cred:x", "account_key_pem": "y"}, "/account_key_path"),
            ({"account_key_path": "cred:x", "eab": {"key_id": "k", "hmac_key": HMAC}}, "/eab"),
            ({"account_key_pem": "y", "zerossl_access_key_path": "cred:x"}, "/zerossl_access_key_path"),
            ({"account_key_path": "Not A Path"}, "/account_key_path"),
        ],
    )
    async def test_a_wrong_request_points_at_its_mistake_and_leaves_nothing(
        self, world: Any, changes: dict[str, Any], pointer: str
    ) -> None:
        """Nothing is written and no CA is asked for a request that cannot work."""
        if "eab" in changes:
            changes = {**changes, "eab": m.EabRequest(**changes["eab"])}
        error = await failing(world, **changes)
        assert isinstance(error, InvalidRequest)
        assert [each.pointer for each in error.fields] == [pointer]
        assert await ACCOUNTS.all(world.sqlite, structlog.get_logger()) == []
        assert world.ca.calls == []

    async def test_a_forbidden_address_and_a_forbidden_reference_are_refused(self, world: Any) -> None:
        """Callers choose neither where the daemon connects nor what it reads."""
        world.cas.forbidden.add("https://10.0.0.1/directory")
        assert isinstance(await failing(world, directory_url="https://10.0.0.1/directory"), InvalidRequest)
        eab = m.EabRequest(key_id="k", hmac_key_path="file:/etc/shadow")
        assert isinstance(await failing(world, eab=eab), InvalidRequest)
        assert world.ca.calls == []

    @pytest.mark.parametrize("hostile", ["acme_none", "../key/key_1", "", "a" * 5000])
    async def test_an_unknown_account_is_not_found(self, world: Any, hostile: str) -> None:
        """Whatever the id looks like."""
        with pytest.raises(NotFound) as caught:
            await world.accounts.get(m.AccountById(id=hostile), CONTEXT)
        assert len(caught.value.detail) < 200


class TestExternalBinding:
    async def test_a_key_given_directly_is_stored_sealed_and_used(self, world: Any) -> None:
        """It arrives once over a trusted channel and stands nowhere in the clear."""
        account_id = await world.account(eab=m.EabRequest(key_id="kid", hmac_key=HMAC))
        assert world.ca.registrations[0]["eab_hmac_key"] == b"m" * 32
        stored = await world.sqlite.get(ACCOUNTS.key(account_id))
        assert HMAC.encode() not in stored.document
        assert base64.b64encode(b"m" * 32) not in stored.document
        shown = await world.accounts.get(m.AccountById(id=account_id), CONTEXT)
        assert shown.eab_key_id == "kid"
        assert HMAC.encode() not in msgspec.json.encode(shown)

    async def test_a_referenced_key_is_read_at_the_moment_of_use(self, world: Any) -> None:
        """Rotating the file is enough."""
        world.secrets.values["cred:eab"] = f" {HMAC}\n"
        await world.account(eab=m.EabRequest(key_id="kid", hmac_key_path="cred:eab"))
        assert world.ca.registrations[0]["eab_hmac_key"] == b"m" * 32

    async def test_a_missing_reference_is_said_as_such(self, world: Any) -> None:
        """`secret_not_found` tells the caller where to look; `ca_error` sends them to the CA."""
        error = await failing(world, eab=m.EabRequest(key_id="kid", hmac_key_path="cred:nowhere"))
        assert isinstance(error, SecretNotFound)
        assert "cred:nowhere" in error.detail
        assert [each.pointer for each in error.fields] == ["/eab/hmac_key_path"]


class TestSetbacks:
    @pytest.mark.parametrize("error", [CaUnavailable("down"), CaMisbehaved("rubbish"), ZeroDivisionError()])
    async def test_a_passing_fault_only_costs_time(self, world: Any, error: Exception) -> None:
        """The caller who waits sees the account valid in the end."""
        world.ca.script["register"].extend([error, error])
        account = await world.shown_account(await world.account())
        assert (account.status, account.error) == ("valid", None)

    async def test_the_cas_refusal_reaches_the_caller_with_its_words(self, world: Any, ca_refuses: Any) -> None:
        """`externalAccountRequired` says what to do; our own words could not."""
        world.ca.script["register"].append(ca_refuses("externalAccountRequired", 403, "bring a binding"))
        error = await failing(world)
        assert isinstance(error, CaRefused)
        assert error.problem is not None
        assert error.problem.detail == "bring a binding"
        assert len(world.ca.asked("register")) == 1

    async def test_a_ca_that_stays_away_is_unavailable_in_the_end(self, world: Any) -> None:
        """Patience is bounded, and its end is no `ca_error`: the CA has refused nothing."""
        world.ca.script["register"].extend([CaUnavailable("down")] * 1000)
        assert isinstance(await failing(world), CaUnavailable)
        (account,) = await ACCOUNTS.all(world.sqlite, structlog.get_logger())
        assert account.value.status == "invalid"

    async def test_a_rate_limit_beyond_our_patience_keeps_its_code_and_time(self, world: Any) -> None:
        """`backend_rate_limited` with the time until which to wait is what callers are promised."""
        until = world.clock.now() + timedelta(days=7)
        limited = BackendRateLimited("too many accounts", retry_after=604_800, retry_at=until)
        world.ca.script["register"].append(limited)
        error = await failing(world)
        assert isinstance(error, BackendRateLimited)
        assert error.retry_at == until

    async def test_an_outage_of_the_store_when_the_ca_has_answered_only_costs_time(self, world: Any) -> None:
        """Asking the CA once more with the same key finds the account it made."""
        await self._with_full_disk(world)
        assert len(world.ca.accounts) == 1

    async def test_an_outage_of_the_store_while_a_setback_is_noted_only_costs_time(self, world: Any) -> None:
        """The registration must not be forgotten until the next restart."""
        world.ca.script["register"].append(CaUnavailable("down"))
        await self._with_full_disk(world)

    async def _with_full_disk(self, world: Any) -> None:
        """Register while the two commits after the acceptance fail."""
        commits = 0

        async def full(_: Any) -> None:
            nonlocal commits
            commits += 1
            if commits in (2, 3):
                raise StorageUnavailable("full")

        world.store.before_commit = full
        reply = await world.accounts.create(
            m.CreateAccount(name="n", provider="custom", directory_url="https://ca.test/directory", wait_seconds=0),
            CONTEXT,
        )
        await world.idle()
        assert (await world.shown_account(reply.id)).status == "valid"
        assert not world.said("job.failed")


class TestExamining:
    async def test_a_moved_account_url_is_written_down(self, world: Any, ca_refuses: Any) -> None:
        """Some CAs move; the `kid` must follow or every request is refused."""
        account_id = await world.account()
        world.ca.script["new_order"].append(ca_refuses("accountDoesNotExist", 400))
        world.ca.script["find_account"].append("https://ca.test/moved/1")
        await world.ended(await world.order(account_id=account_id))
        assert (await world.shown_account(account_id)).url == "https://ca.test/moved/1"

    async def test_an_account_the_ca_has_lost_is_reported_and_never_made_anew(
        self, world: Any, ca_refuses: Any
    ) -> None:
        """Making another in silence would hide that all its authorizations and limits are gone."""
        account_id = await world.account()
        world.ca.accounts.clear()
        world.ca.script["new_order"].append(ca_refuses("accountDoesNotExist", 400))
        order = await world.ended(await world.order(account_id=account_id))
        assert order.status == "invalid"
        assert world.said("account.unknown_to_ca")
        assert len(world.ca.asked("register")) == 1

    async def test_an_account_deactivated_from_outside_is_marked_once(self, world: Any, ca_refuses: Any) -> None:
        """Many orders find it out at the same time."""
        account = await world.shown_account(await world.account())
        told: list[str] = []
        world.accounts.deactivated.subscribe(told.append)
        world.ca.script["find_account"].extend([ca_refuses("unauthorized", 401)] * 3)
        assert await asyncio.gather(*(world.accounts.examine(account) for _ in range(3))) == [False] * 3
        await idle()
        world.ca.script["find_account"].append(ca_refuses("unauthorized", 401))
        await world.accounts.examine(account)
        assert told == [account.id]
        assert (await world.shown_account(account.id)).status == "deactivated"
        assert (await world.event_types()).count("account.deactivated") == 1

    @pytest.mark.parametrize("change", [{"key_id": "key_new"}, {"next_key_id": "key_next"}])
    async def test_a_refusal_of_a_key_that_is_changed_meanwhile_is_worth_another_try(
        self, world: Any, change: dict[str, str]
    ) -> None:
        """It was the key that was wrong, not the account."""
        account = await world.shown_account(await world.account())
        await world.accounts.change(account.id, lambda each: msgspec.structs.replace(each, **change))
        assert await world.accounts.examine(account) is True
        assert world.ca.asked("find_account") == []

    async def test_an_examination_that_fails_does_not_change_the_orders_fate(self, world: Any, ca_refuses: Any) -> None:
        """It is a look on the side."""
        account_id = await world.account()
        world.ca.script["new_order"].append(ca_refuses("unauthorized", 403, "no"))
        world.ca.script["find_account"].append(CaUnavailable("down"))
        order = await world.ended(await world.order(account_id=account_id))
        assert (order.status, order.error.acme.detail) == ("invalid", "no")
        assert (await world.shown_account(account_id)).status == "valid"


async def test_listing_filters_and_pages(world: Any) -> None:
    """Oldest first, each once."""
    accounts = []
    for number in range(3):
        accounts.append(await world.account(name=f"n{number}"))
        world.clock.advance(1)
    first = await world.accounts.list(m.ListAccounts(limit=2), CONTEXT)
    second = await world.accounts.list(m.ListAccounts(limit=2, cursor=first.next_cursor), CONTEXT)
    assert [each.id for each in (*first.items, *second.items)] == accounts
    assert second.next_cursor is None
    assert (await world.accounts.list(m.ListAccounts(status="invalid"), CONTEXT)).items == []

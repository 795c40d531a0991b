"""ACME accounts: registered once, found again for ever (RFC 8555 section 7.3).

The key and the intent are committed before the CA is asked, so a lost answer or a crash only
means asking again with the same key, which finds the same account.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme.signing import AccountKey
from scaivaultd.api import events
from scaivaultd.api import messages as m
from scaivaultd.model.errors import (
    AccountUnusable,
    BackendRateLimited,
    CaRefused,
    CaUnavailable,
    Internal,
    InvalidRequest,
    NotFound,
    RevisionConflict,
    ScaivaultError,
    SecretNotFound,
    StorageUnavailable,
    Timeout,
)
from scaivaultd.model.ids import AccountId
from scaivaultd.services import visible
from scaivaultd.services.account_holds import Holds
from scaivaultd.services.account_requests import AccountRequests, missing_secret
from scaivaultd.services.account_turns import Turns
from scaivaultd.services.documents import ACCOUNTS, KEYS, Versioned
from scaivaultd.services.registering import Registering
from scaivaultd.services.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.ids import IdMaker, KeyId
    from scaivaultd.model.resources import Account, Order, Trouble
    from scaivaultd.model.storage import OutboxEvent
    from scaivaultd.services.budgets import Budgets
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.ports import CaClient, Cas, EabSource, Sealer, Store
    from scaivaultd.services.secrets import Secrets
    from scaivaultd.services.waiting import Waiting


KEYS_AT_HAND = 64


class Accounts:
    """Handlers of `pki.acme.accounts.*`, and the way from an account to its CA."""

    def __init__(
        self,
        *,
        store: Store,
        sealer: Sealer,
        cas: Cas,
        secrets: Secrets,
        budgets: Budgets,
        eab_source: EabSource,
        jobs: Jobs,
        waiting: Waiting,
        ids: IdMaker,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
        patience_seconds: float,
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._cas = cas
        self._waiting = waiting
        self._clock = clock
        self._log = log
        self._turns = Turns()
        self._keys: dict[KeyId, AccountKey] = {}
        self._holds = Holds(self, store=store, clock=clock, randomness=randomness, log=log)
        self._requests = AccountRequests(
            store=store,
            sealer=sealer,
            cas=cas,
            secrets=secrets,
            ids=ids,
            clock=clock,
            log=log,
            patience_seconds=patience_seconds,
        )
        self._registering = Registering(
            self,
            store=store,
            sealer=sealer,
            secrets=secrets,
            budgets=budgets,
            eab_source=eab_source,
            jobs=jobs,
            clock=clock,
            randomness=randomness,
            log=log,
        )
        self.resumed: Signal[AccountId] = Signal()
        """Orders of the account that wait for it need wait no longer: its CA serves it, its key is settled."""
        self.deactivated: Signal[AccountId] = Signal()
        """The CA has been found to have ended the account; its certificates are still to be told of."""

    async def create(self, request: m.CreateAccount, context: RequestContext) -> m.AccountReply:
        """Handle `pki.acme.accounts.create`."""
        account_id = await self._requests.accept(request)
        self._registering.start(account_id)
        account = await self._waiting.until(
            ACCOUNTS, account_id, request.wait_seconds, lambda each: each.status != "pending"
        )
        if account.status == "invalid" and account.error is not None:
            raise _as_error(account)
        return account_reply(account)

    async def get(self, request: m.AccountById, context: RequestContext) -> m.AccountReply:
        """Handle `pki.acme.accounts.get`."""
        return account_reply((await self.load(request.id)).value)

    async def list(self, request: m.ListAccounts, context: RequestContext) -> m.AccountList:
        """Handle `pki.acme.accounts.list`."""
        page = await ACCOUNTS.page_seen(
            self._store,
            visible.accounts(context.permits),
            where={"status": request.status},
            cursor=request.cursor,
            limit=request.limit,
        )
        return m.AccountList(items=[account_reply(each.value) for each in page.items], next_cursor=page.next_cursor)

    async def resume(self) -> None:
        """Go on with registrations that a stop interrupted."""
        for account in await ACCOUNTS.all(self._store, self._log, status="pending"):
            self._registering.start(account.value.id)

    def register(self, account_id: AccountId) -> None:
        """Go on with a registration, at once if what it waited for is there by now."""
        self._registering.start(account_id)

    async def load(self, account_id: str) -> Versioned[Account]:
        """The account; raises NotFound."""
        account = await ACCOUNTS.get(self._store, account_id)
        if account is None:
            raise NotFound(f"there is no account {account_id[:100]!r}")
        return account

    async def client(self, account: Account) -> CaClient:
        """The account's view of its CA, signing with its key."""
        key = self._keys.get(account.key_id) or await self._opened(account)
        return self._cas.client(account.directory_url, account.ca_certificates_pem, key, account.url)

    def roots(self, account: Account) -> Sequence[bytes]:
        """The roots that its CA's chains may lead to, as far as they are known here: as DER."""
        return self._cas.roots(account.directory_url, account.ca_certificates_pem)

    async def _opened(self, account: Account) -> AccountKey:
        """The account's key out of its envelope; a few are kept, since every order of an account needs it."""
        stored = await KEYS.get(self._store, account.key_id)
        if stored is None:
            raise StorageUnavailable(f"the key {account.key_id} of account {account.id} is missing from the store")
        key = AccountKey(self._sealer.open(stored.value.sealed, KEYS.key(account.key_id), "private_key"))
        if len(self._keys) >= KEYS_AT_HAND:
            self._keys.pop(next(iter(self._keys)))
        self._keys[account.key_id] = key
        return key

    def using(self, account_id: AccountId) -> AbstractAsyncContextManager[None]:
        """Hold while an attempt signs with the account's key: its key is not changed meanwhile, and a change of key is
        waited for. Load the account and its client inside."""
        return self._turns.shared(account_id)

    def exclusively(self, account_id: AccountId, seconds: float) -> AbstractAsyncContextManager[None]:
        """Hold while the account's key is changed: nobody signs with it meanwhile.

        Raises:
            Conflict: those who sign with it now have not ended within `seconds`.
        """
        return self._turns.alone(account_id, seconds)

    async def held_until(self, account: Account) -> datetime | None:
        """Until when orders of the account are to wait: its CA waits for a person, or its key is being changed.

        None: they may ask; where it is time to see whether the person has acted, that goes for one caller only.
        """
        return await self._holds.until(account)

    async def hold(self, account: Account, trouble: Trouble, order: Order) -> datetime:
        """The CA wants a person to act (`userActionRequired`): no order asks before the moment returned."""
        return await self._holds.begin(account, trouble, order)

    async def served(self, account: Account) -> None:
        """The CA has taken an order of the account, as it was loaded for it: whoever had to act has acted."""
        await self._holds.end(account)

    async def with_key(self, thumbprint: str) -> AccountId | None:
        """The account whose key that is now, in whatever state: such a key is never certified (RFC 8555, 11.1)."""
        page = await ACCOUNTS.page(self._store, where={"thumbprint": thumbprint}, cursor=None, limit=1)
        return page.items[0].value.id if page.items else None

    async def examine(self, account: Account, *, was_unknown: bool = False) -> bool:
        """Find out what became of an account the CA will not serve (RFC 8555 sections 7.3.1 and 7.3.6).

        True: trying again is worth it, since its URL has moved, which is written down, or its key has changed, or since
        the CA knows it as it always did, although it has just denied that (`was_unknown`). An
        account deactivated from outside is marked, with an event, so that nobody asks in its name again. Never makes
        an account.
        """
        known = (await self.load(account.id)).value
        if known.key_id != account.key_id or known.next_key_id is not None:
            return True
        client = await self.client(known)
        try:
            url = await client.find_account()
        except CaRefused as refusal:
            if refusal.problem is None or refusal.problem.name != "unauthorized":
                raise
            await self._mark_deactivated(account.id)
            return False
        if url is None:
            self._log.error("account.unknown_to_ca", account_id=account.id)
            return False
        if url == account.url:
            return was_unknown
        await self.change(account.id, lambda each: msgspec.structs.replace(each, url=url))
        self._log.warning("account.moved", account_id=account.id, account_url=url)
        return True

    async def _mark_deactivated(self, account_id: AccountId) -> None:
        now = self._clock.now()
        changed = await self.change(
            account_id,
            lambda each: (
                each
                if each.status == "deactivated"
                else msgspec.structs.replace(each, status="deactivated", is_deactivating=True)
            ),
            lambda _, after: (events.account_deactivated(after, now),),
        )
        if changed:
            self._log.error("account.deactivated", account_id=account_id)
            self.deactivated.tell(account_id)

    async def change(
        self,
        account_id: AccountId,
        change: Callable[[Account], Account],
        events_of: Callable[[Account, Account], Sequence[OutboxEvent]] = lambda _before, _after: (),
    ) -> bool:
        """Change an account that others change too; False when it is as wanted already.

        `change` may be called several times, each time with the account as it is then; `events_of` gets it before
        and after.
        """
        while True:
            current = await self.load(account_id)
            changed = change(current.value)
            if changed == current.value:
                return False
            try:
                await self._store.commit([ACCOUNTS.put(changed, current.revision)], events_of(current.value, changed))
            except RevisionConflict:
                continue  # somebody else has changed it at the same time
            return True


def is_usable(account: Account) -> bool:
    """Whether anything can be asked in its name, now or when it is registered."""
    return account.status in ("pending", "valid") and not account.is_deactivating


def require_usable(account: Account) -> None:
    """Raise AccountUnusable unless something can be asked in its name; one that is being registered passes."""
    if is_usable(account):
        return
    if account.status == "invalid":
        why = "could not be registered" + (f": {account.error.detail}" if account.error else "")
    else:
        why = "is deactivated" if account.status == "deactivated" else "is being deactivated"
    raise AccountUnusable(f"account {account.id} ({account.name!r}) {why}; nothing can be asked in its name")


def account_reply(account: Account) -> m.AccountReply:
    """An account as callers see it."""
    return m.AccountReply(
        id=account.id,
        name=account.name,
        provider=account.provider,
        environment=account.environment,
        email=account.email,
        status=account.status,
        created_at=account.created_at,
        directory_url=account.directory_url,
        account_url=account.url,
        key_thumbprint=account.key_thumbprint,
        eab_key_id=(account.eab.key_id or None) if account.eab else None,
        ca=account.ca,
        error=account.error,
        action_required=account.action,
        terms_changed_to=account.terms_changed_to,
        key_change_pending=account.next_key_id is not None,
        deactivation_pending=account.is_deactivating and account.status != "deactivated",
    )


def _as_error(account: Account) -> ScaivaultError:
    """The error of a registration that failed for good, as its caller would have seen it directly."""
    trouble = account.error
    assert trouble is not None
    if trouble.code == BackendRateLimited.code:
        return BackendRateLimited(
            trouble.detail, trouble.acme, retry_after=trouble.retry_after, retry_at=trouble.retry_at
        )
    if trouble.code == CaUnavailable.code:
        return CaUnavailable(trouble.detail, trouble.retry_after)
    if trouble.code == SecretNotFound.code:
        # Of all references of a request only that of the binding is read at the registration.
        is_fetched = account.eab is not None and not account.eab.key_id
        return missing_secret("/zerossl_access_key_path" if is_fetched else "/eab/hmac_key_path", trouble.detail)
    plain: dict[str, type[ScaivaultError]] = {each.code: each for each in (InvalidRequest, Timeout, Internal)}
    kind = plain.get(trouble.code)
    return CaRefused(trouble.detail, trouble.acme) if kind is None else kind(trouble.detail)

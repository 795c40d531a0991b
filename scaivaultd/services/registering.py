"""The registration job: from a stored key and intent to an account at the CA (RFC 8555 section 7.3).

Everything that the CA is going to be told, a fetched external account binding too, is committed before it is told:
a lost answer or a crash only means asking again with the same key, which finds the same account.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme import causes
from scaivaultd.acme.limit_rules import limit_name
from scaivaultd.acme.signing import parse_hmac_key
from scaivaultd.api import events
from scaivaultd.model.errors import (
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    InvalidRequest,
    Problem,
    RevisionConflict,
    StorageUnavailable,
)
from scaivaultd.model.resources import CaDescription, Trouble
from scaivaultd.services import setbacks
from scaivaultd.services.documents import ACCOUNTS, Versioned
from scaivaultd.services.jobs import outcome_of
from scaivaultd.services.setbacks import Memory
from scaivaultd.services.waiting import sleep_until

if TYPE_CHECKING:
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.acme.wire import Directory
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.errors import ScaivaultError
    from scaivaultd.model.ids import AccountId
    from scaivaultd.model.resources import Account
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.budgets import Budgets
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.ports import CaClient, EabSource, Sealer, Store
    from scaivaultd.services.secrets import Secrets

STORAGE_PAUSE_SECONDS = 5.0


class _Held(Exception):
    """The budget for new accounts at this CA is spent; nothing was asked."""

    def __init__(self, until: datetime) -> None:
        super().__init__(until.isoformat())
        self.until = until


class Registering:
    """The jobs of all accounts that are `pending`."""

    def __init__(
        self,
        accounts: Accounts,
        *,
        store: Store,
        sealer: Sealer,
        secrets: Secrets,
        budgets: Budgets,
        eab_source: EabSource,
        jobs: Jobs,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
    ) -> None:
        self._accounts = accounts
        self._store = store
        self._sealer = sealer
        self._secrets = secrets
        self._budgets = budgets
        self._eab_source = eab_source
        self._jobs = jobs
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self._paid: set[AccountId] = set()
        self._woken: dict[AccountId, asyncio.Event] = {}

    def start(self, account_id: AccountId) -> None:
        """Register an account; where that is under way, see at once whether it may go on by now."""
        if (woken := self._woken.get(account_id)) is not None:
            woken.set()
        self._jobs.start(f"register {account_id}", lambda: self._register(account_id))

    async def _register(self, account_id: AccountId) -> None:
        try:
            while await self._is_pending(account_id):
                try:
                    await self._try(await self._accounts.load(account_id))
                except RevisionConflict:
                    continue  # it was changed, replaced or given up meanwhile: look again
                except StorageUnavailable as error:
                    await self._wait_for_store(account_id, error)
        finally:
            self._paid.discard(account_id)
            self._woken.pop(account_id, None)

    async def _is_pending(self, account_id: AccountId) -> bool:
        """Whether there is more to do; returns when it is due."""
        woken = self._woken.setdefault(account_id, asyncio.Event())
        while True:
            woken.clear()
            try:
                account = (await self._accounts.load(account_id)).value
            except StorageUnavailable as error:
                await self._wait_for_store(account_id, error)
                continue
            if not _is_wanted(account):
                return False
            if account.next_try_at is None or account.next_try_at <= self._clock.now():
                return True
            await sleep_until(self._clock, account.next_try_at, woken)

    async def _wait_for_store(self, account_id: AccountId, error: StorageUnavailable) -> None:
        self._log.warning("account.store_unavailable", account_id=account_id, detail=error.detail)
        await self._clock.sleep(STORAGE_PAUSE_SECONDS)

    async def _try(self, current: Versioned[Account]) -> None:
        if not _is_wanted(current.value):
            return
        step = self._bind if _is_unbound(current.value) else self._once
        log = self._log.bind(account_id=current.value.id)
        try:
            error = await outcome_of(step(current), log, let_pass=(RevisionConflict, _Held))
        except _Held as held:
            await self._hold_back(current, held.until)
            return
        if isinstance(error, StorageUnavailable):
            raise error
        if error is not None:
            await self._set_back(current, error)

    async def _once(self, current: Versioned[Account]) -> None:
        account = current.value
        client = await self._accounts.client(account)
        # An external account binding may be good for one use only: never send it for an account that is there.
        hmac_key = await self._hmac_key(account)
        url = await client.find_account() if hmac_key is not None or account.must_exist else None
        if url is None and account.must_exist:
            raise _no_such_account(account)
        if url is None:
            await self._pay(account)
            url = await self._new_account(client, account, hmac_key)
        directory = await client.directory()
        registered = msgspec.structs.replace(
            account,
            status="valid",
            url=url,
            ca=ca_description(directory, directory.terms_of_service),
            error=None,
            next_try_at=None,
            give_up_at=None,
        )
        await self._store.commit(
            [ACCOUNTS.put(registered, current.revision)], [events.account_created(registered, self._clock.now())]
        )
        self._log.info("account.created", account_id=account.id, directory_url=account.directory_url)

    @staticmethod
    async def _new_account(client: CaClient, account: Account, hmac_key: bytes | None) -> str:
        fetched = await client.register(
            contacts=contacts_of(account.email),
            terms_of_service_agreed=account.terms_of_service_agreed,
            eab_key_id=account.eab.key_id if account.eab else None,
            eab_hmac_key=hmac_key,
        )
        return fetched.url

    async def _pay(self, account: Account) -> None:
        """Take it from the budget once, however often newAccount is repeated; raises _Held."""
        if account.id in self._paid:
            return
        changes, until = self._budgets.spend_account(account.directory_url)
        if until is not None:
            raise _Held(until)
        if changes:
            await self._store.commit(changes)
        self._paid.add(account.id)

    async def _bind(self, current: Versioned[Account]) -> None:
        """Fetch an external account binding, and write it down before it is used: a retry uses the same."""
        account = current.value
        assert account.eab is not None
        if account.eab.hmac_key_path is not None:
            access_key = await self._secrets.read(account.eab.hmac_key_path)
            key_id, text = await self._eab_source.by_access_key(access_key.reveal())
        else:
            assert account.email is not None
            key_id, text = await self._eab_source.by_email(account.email)
        try:
            hmac_key = parse_hmac_key(text)
        except InvalidRequest:
            raise CaMisbehaved("the external account binding that the CA gave has an unreadable MAC key") from None
        sealed = self._sealer.seal(hmac_key, ACCOUNTS.key(account.id), "eab_hmac_key")
        binding = msgspec.structs.replace(account.eab, key_id=key_id, sealed_hmac_key=sealed)
        await self._store.commit([ACCOUNTS.put(msgspec.structs.replace(account, eab=binding), current.revision)])
        self._log.info("account.bound", account_id=account.id, eab_key_id=key_id)

    async def _hmac_key(self, account: Account) -> bytes | None:
        if account.eab is None:
            return None
        if account.eab.sealed_hmac_key is not None:
            return self._sealer.open(account.eab.sealed_hmac_key, ACCOUNTS.key(account.id), "eab_hmac_key")
        assert account.eab.hmac_key_path is not None
        secret = await self._secrets.read(account.eab.hmac_key_path)
        return parse_hmac_key(secret.reveal(), "/eab/hmac_key_path")

    async def _hold_back(self, current: Versioned[Account], until: datetime) -> None:
        """Wait for the budget: nothing went wrong, so it is no attempt."""
        account, now = current.value, self._clock.now()
        assert account.give_up_at is not None
        in_time = until <= account.give_up_at
        trouble = Trouble(
            code=BackendRateLimited.code,
            detail=f"the CA's limit for new accounts is used up here; there is room again at {until.isoformat()}",
            retryable=in_time,
            limit=limit_name("new_accounts", "address"),
            retry_after=(until - now).total_seconds(),
            retry_at=until,
        )
        judged = causes.judged(trouble, causes.cause_of_trouble(trouble))
        await self._note(current, judged, until if in_time else None)

    async def _set_back(self, current: Versioned[Account], error: ScaivaultError) -> None:
        account = current.value
        assert account.give_up_at is not None
        memory = Memory(attempt=account.attempt, misbehaved=account.misbehaved, give_up_at=account.give_up_at)
        verdict = setbacks.judge(error, memory, now=self._clock.now(), fraction=self._randomness.fraction())
        tried = msgspec.structs.replace(account, attempt=verdict.attempt, misbehaved=verdict.misbehaved)
        trouble = causes.judged(verdict.trouble, causes.cause_of(error))
        await self._note(Versioned(tried, current.revision), trouble, verdict.next_try_at)

    async def _note(self, current: Versioned[Account], trouble: Trouble, next_try_at: datetime | None) -> None:
        changed = msgspec.structs.replace(
            current.value, status="pending" if next_try_at else "invalid", error=trouble, next_try_at=next_try_at
        )
        await self._store.commit([ACCOUNTS.put(changed, current.revision)])
        self._log.warning(
            "account.not_registered",
            account_id=changed.id,
            error_code=trouble.code,
            detail=trouble.detail,
            next_try_at=next_try_at and next_try_at.isoformat(),
        )


def ca_description(directory: Directory, terms_of_service: str | None) -> CaDescription:
    """What a CA says of itself; `terms_of_service` are those that were agreed to."""
    return CaDescription(
        terms_of_service=terms_of_service,
        website=directory.website,
        caa_identities=directory.caa_identities,
        external_account_required=directory.external_account_required,
        profiles=directory.profiles,
        renewal_info=directory.renewal_info is not None,
        key_change=directory.key_change is not None,
    )


def contacts_of(email: str | None) -> list[str]:
    """An e-mail address as a CA wants it."""
    return [f"mailto:{email}"] if email else []


def _is_wanted(account: Account) -> bool:
    return account.status == "pending" and not account.is_deactivating


def _is_unbound(account: Account) -> bool:
    return account.eab is not None and not account.eab.key_id


def _no_such_account(account: Account) -> CaRefused:
    detail = f"there is no account with this key at {account.directory_url}"
    return CaRefused(detail, Problem(type="urn:ietf:params:acme:error:accountDoesNotExist", detail=detail))

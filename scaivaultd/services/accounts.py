"""ACME accounts: registered once, found again for ever (RFC 8555 section 7.3).

The key and the intent are committed before the CA is asked, so a lost answer or a crash only
means asking again with the same key, which finds the same account.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509 as cryptography_x509

from scaivaultd.acme import directories, x509
from scaivaultd.acme.signing import AccountKey, parse_hmac_key
from scaivaultd.api import events
from scaivaultd.api import messages as m
from scaivaultd.model.errors import (
    BackendRateLimited,
    CaRefused,
    CaUnavailable,
    Conflict,
    FieldError,
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
from scaivaultd.model.resources import Account, AccountName, CaDescription, ExternalAccount, KeyType, SealedKey
from scaivaultd.model.storage import ABSENT
from scaivaultd.services import setbacks
from scaivaultd.services.documents import ACCOUNT_NAMES, ACCOUNTS, KEYS, Versioned, digest
from scaivaultd.services.jobs import outcome_of
from scaivaultd.services.setbacks import Memory
from scaivaultd.services.waiting import sleep_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.ids import IdMaker
    from scaivaultd.model.resources import Order, Trouble
    from scaivaultd.model.storage import OutboxEvent
    from scaivaultd.services.budgets import Budgets
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.ports import CaClient, Cas, EabSource, Sealer, Store
    from scaivaultd.services.secrets import Secrets
    from scaivaultd.services.waiting import Waiting

ACCOUNT_KEY_TYPE: KeyType = "ec-p256"
_EMAIL = re.compile(r"[^\s\x00-\x1f\x7f@,?&<>\"]+@[^\s\x00-\x1f\x7f@,?&<>\"]+")
_STORAGE_PAUSE_SECONDS = 5.0


class Accounts:
    """Handlers of `pki.acme.accounts.*`, the registration job, and the way from an account to its CA."""

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
        self._secrets = secrets
        self._budgets = budgets
        self._eab_source = eab_source
        self._jobs = jobs
        self._waiting = waiting
        self._ids = ids
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self._patience_seconds = patience_seconds

    async def create(self, request: m.CreateAccount, context: RequestContext) -> m.AccountReply:
        """Handle `pki.acme.accounts.create`."""
        account_id = await self._accept(request)
        self._start(account_id)
        account = await self._waiting.until(
            ACCOUNTS, account_id, request.wait_seconds, lambda each: each.status != "pending"
        )
        if account.status == "invalid" and account.error is not None:
            raise _as_error(account)
        return _reply(account)

    async def get(self, request: m.AccountById, context: RequestContext) -> m.AccountReply:
        """Handle `pki.acme.accounts.get`."""
        return _reply((await self.load(request.id)).value)

    async def list(self, request: m.ListAccounts, context: RequestContext) -> m.AccountList:
        """Handle `pki.acme.accounts.list`."""
        page = await ACCOUNTS.page(
            self._store, where={"status": request.status}, cursor=request.cursor, limit=request.limit
        )
        return m.AccountList(items=[_reply(each.value) for each in page.items], next_cursor=page.next_cursor)

    async def resume(self) -> None:
        """Go on with registrations that a stop interrupted."""
        for account in await ACCOUNTS.all(self._store, self._log, status="pending"):
            self._start(account.value.id)

    async def load(self, account_id: str) -> Versioned[Account]:
        """The account; raises NotFound."""
        account = await ACCOUNTS.get(self._store, account_id)
        if account is None:
            raise NotFound(f"there is no account {account_id[:100]!r}")
        return account

    async def client(self, account: Account) -> CaClient:
        """The account's view of its CA, signing with its key."""
        stored = await KEYS.get(self._store, account.key_id)
        if stored is None:
            raise StorageUnavailable(f"the key {account.key_id} of account {account.id} is missing from the store")
        key = AccountKey(self._sealer.open(stored.value.sealed, KEYS.key(account.key_id), "private_key"))
        return self._cas.client(account.directory_url, account.ca_certificates_pem, key, account.url)

    @asynccontextmanager
    async def using(self, account_id: AccountId) -> AsyncIterator[None]:
        """Hold while an attempt signs with the account's key: its key is not changed meanwhile, and a change of key is
        waited for."""
        yield

    async def held_until(self, account: Account) -> datetime | None:
        """Until when orders of the account are to wait, since its CA waits for a person.

        None: they may ask; where it is time to see whether the person has acted, that goes for one caller only.
        """
        return None

    async def hold(self, account: Account, trouble: Trouble, order: Order) -> datetime:
        """The CA wants a person to act (`userActionRequired`): no order asks before the moment returned."""
        return self._clock.now() + timedelta(hours=1)

    async def served(self, account: Account) -> None:
        """The CA has taken an order of the account: whoever had to act has acted."""

    async def examine(self, account: Account) -> bool:
        """Find out what became of an account the CA will not serve (RFC 8555 sections 7.3.1 and 7.3.6).

        A moved URL is written down: then, and only then, it is worth trying again. An account deactivated
        from outside is marked, with an event, so that nobody asks in its name again. Never makes an account.
        """
        client = await self.client(account)
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
            return False
        await self._change(account.id, lambda each: msgspec.structs.replace(each, url=url))
        self._log.warning("account.moved", account_id=account.id, account_url=url)
        return True

    async def _mark_deactivated(self, account_id: AccountId) -> None:
        now = self._clock.now()
        changed = await self._change(
            account_id,
            lambda each: msgspec.structs.replace(each, status="deactivated"),
            lambda each: (events.account_deactivated(each, now),),
        )
        if changed:
            self._log.error("account.deactivated", account_id=account_id)

    async def _change(
        self,
        account_id: AccountId,
        change: Callable[[Account], Account],
        events_of: Callable[[Account], tuple[OutboxEvent, ...]] = lambda _: (),
    ) -> bool:
        """Change an account that others change too; False when it is as wanted already."""
        while True:
            current = await self.load(account_id)
            changed = change(current.value)
            if changed == current.value:
                return False
            try:
                await self._store.commit([ACCOUNTS.put(changed, current.revision)], events_of(changed))
            except RevisionConflict:
                continue  # several orders of the account have found it out at once
            return True

    async def _accept(self, request: m.CreateAccount) -> AccountId:
        await self._check(request)
        for _ in range(3):
            try:
                holder = await ACCOUNT_NAMES.get(self._store, digest(request.name))
                if holder is not None and (same := await self._same(request, holder.value.account_id)):
                    return same
                return await self._write(request, ABSENT if holder is None else holder.revision)
            except RevisionConflict:
                continue  # somebody took the name a moment ago: look at what they made
        raise Conflict(f"the name {request.name!r} is being taken by several requests at once; ask again")

    async def _check(self, request: m.CreateAccount) -> None:
        directory_url = directories.directory_url_for(request.provider, request.environment, request.directory_url)
        if request.email is not None and not _EMAIL.fullmatch(request.email):
            raise _invalid("/email", "bad_email", "give one plain address, without name, list or parameters")
        if request.eab is not None:
            self._check_eab(request.eab)
        elif request.provider in directories.NEEDS_EAB:
            raise _invalid(
                "/eab", "missing", f"{request.provider} takes new accounts only with an external account binding"
            )
        if request.ca_certificates_pem is not None:
            _check_pem(request.ca_certificates_pem)
        if request.provider == "custom":
            await self._cas.check_directory(directory_url)

    def _check_eab(self, eab: m.EabRequest) -> None:
        if (eab.hmac_key is None) == (eab.hmac_key_path is None):
            raise _invalid("/eab", "one_of", "give exactly one of hmac_key and hmac_key_path")
        if eab.hmac_key is not None:
            parse_hmac_key(eab.hmac_key)
        if eab.hmac_key_path is not None:
            self._secrets.check(eab.hmac_key_path, "/eab/hmac_key_path")

    async def _same(self, request: m.CreateAccount, account_id: AccountId) -> AccountId | None:
        """The account that has the name, if the request describes it; None if the name is free again."""
        current = await self.load(account_id)
        account = current.value
        if account.status in ("invalid", "deactivated"):
            return None
        asked = directories.directory_url_for(request.provider, request.environment, request.directory_url)
        described = (request.provider, request.environment, asked, request.email, request.ca_certificates_pem)
        has = (
            account.provider,
            account.environment,
            account.directory_url,
            account.email,
            account.ca_certificates_pem,
        )
        bound = (request.eab and request.eab.key_id) == (account.eab and account.eab.key_id)
        if described == has and bound:
            return account.id
        if account.status == "pending" and account.error is not None:
            await self._replace(current)
            return None
        raise Conflict(f"the name {request.name!r} belongs to another account, {account.id}; choose another")

    async def _replace(self, current: Versioned[Account]) -> None:
        """Give up a registration that does not come through for one that its owner has corrected."""
        replaced = msgspec.structs.replace(current.value, status="invalid", next_try_at=None)
        await self._store.commit([ACCOUNTS.put(replaced, current.revision)])
        self._log.info("account.replaced", account_id=current.value.id)

    async def _write(self, request: m.CreateAccount, name_revision: int) -> AccountId:
        """Write order, step 0: key and intent, before the CA hears of it."""
        now = self._clock.now()
        private_key = x509.make_key(ACCOUNT_KEY_TYPE)
        account_id, key_id = self._ids.account(), self._ids.key()
        sealed = self._sealer.seal(private_key, KEYS.key(key_id), "private_key")
        account = Account(
            id=account_id,
            name=request.name,
            provider=request.provider,
            environment=request.environment,
            email=request.email,
            directory_url=directories.directory_url_for(request.provider, request.environment, request.directory_url),
            status="pending",
            key_id=key_id,
            key_thumbprint=AccountKey(private_key).thumbprint,
            created_at=now,
            ca_certificates_pem=request.ca_certificates_pem,
            eab=self._eab_of(request.eab, account_id),
            terms_of_service_agreed=request.terms_of_service_agreed,
            give_up_at=now + timedelta(seconds=self._patience_seconds),
        )
        await self._store.commit(
            [
                KEYS.put(SealedKey(id=key_id, key_type=ACCOUNT_KEY_TYPE, sealed=sealed, created_at=now)),
                ACCOUNTS.put(account),
                ACCOUNT_NAMES.put(AccountName(name=request.name, account_id=account_id), name_revision),
            ]
        )
        return account_id

    def _eab_of(self, eab: m.EabRequest | None, account_id: AccountId) -> ExternalAccount | None:
        if eab is None:
            return None
        if eab.hmac_key is None:
            return ExternalAccount(key_id=eab.key_id, hmac_key_path=eab.hmac_key_path)
        sealed = self._sealer.seal(parse_hmac_key(eab.hmac_key), ACCOUNTS.key(account_id), "eab_hmac_key")
        return ExternalAccount(key_id=eab.key_id, sealed_hmac_key=sealed)

    def _start(self, account_id: AccountId) -> None:
        self._jobs.start(f"register {account_id}", lambda: self._register(account_id))

    async def _register(self, account_id: AccountId) -> None:
        while await self._is_pending(account_id):
            try:
                await self._try_to_register(await self.load(account_id))
            except RevisionConflict:
                continue  # it was replaced meanwhile: look again
            except StorageUnavailable as error:
                await self._wait_for_store(account_id, error)

    async def _is_pending(self, account_id: AccountId) -> bool:
        """Whether there is more to do; returns when it is due."""
        while True:
            try:
                account = (await self.load(account_id)).value
            except StorageUnavailable as error:
                await self._wait_for_store(account_id, error)
                continue
            if account.next_try_at is not None:
                await sleep_until(self._clock, account.next_try_at)
            return account.status == "pending"

    async def _try_to_register(self, current: Versioned[Account]) -> None:
        if current.value.status != "pending":
            return
        log = self._log.bind(account_id=current.value.id)
        error = await outcome_of(self._register_once(current), log, let_pass=(RevisionConflict,))
        if isinstance(error, StorageUnavailable):
            raise error
        if error is not None:
            await self._set_back(current, error)

    async def _wait_for_store(self, account_id: AccountId, error: StorageUnavailable) -> None:
        self._log.warning("account.store_unavailable", account_id=account_id, detail=error.detail)
        await self._clock.sleep(_STORAGE_PAUSE_SECONDS)

    async def _register_once(self, current: Versioned[Account]) -> None:
        account = current.value
        client = await self.client(account)
        # An external account binding may be good for one use only: never send it for an account that is there.
        hmac_key = await self._hmac_key(account)
        url = await client.find_account() if hmac_key is not None else None
        if url is None:
            url = await self._new_account(client, account, hmac_key)
        directory = await client.directory()
        registered = msgspec.structs.replace(
            account,
            status="valid",
            url=url,
            ca=CaDescription(
                terms_of_service=directory.terms_of_service,
                website=directory.website,
                caa_identities=directory.caa_identities,
                external_account_required=directory.external_account_required,
                profiles=directory.profiles,
            ),
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
            contacts=[f"mailto:{account.email}"] if account.email else [],
            terms_of_service_agreed=account.terms_of_service_agreed,
            eab_key_id=account.eab.key_id if account.eab else None,
            eab_hmac_key=hmac_key,
        )
        return fetched.url

    async def _hmac_key(self, account: Account) -> bytes | None:
        if account.eab is None:
            return None
        if account.eab.sealed_hmac_key is not None:
            return self._sealer.open(account.eab.sealed_hmac_key, ACCOUNTS.key(account.id), "eab_hmac_key")
        assert account.eab.hmac_key_path is not None
        secret = await self._secrets.read(account.eab.hmac_key_path)
        return parse_hmac_key(secret.reveal(), "/eab/hmac_key_path")

    async def _set_back(self, current: Versioned[Account], error: ScaivaultError) -> None:
        account = current.value
        assert account.give_up_at is not None
        memory = Memory(attempt=account.attempt, misbehaved=account.misbehaved, give_up_at=account.give_up_at)
        verdict = setbacks.judge(error, memory, now=self._clock.now(), fraction=self._randomness.fraction())
        changed = msgspec.structs.replace(
            account,
            status="pending" if verdict.next_try_at else "invalid",
            error=verdict.trouble,
            attempt=verdict.attempt,
            misbehaved=verdict.misbehaved,
            next_try_at=verdict.next_try_at,
        )
        await self._store.commit([ACCOUNTS.put(changed, current.revision)])
        self._log.warning(
            "account.not_registered",
            account_id=account.id,
            error_code=error.code,
            detail=error.detail,
            next_try_at=verdict.next_try_at and verdict.next_try_at.isoformat(),
        )


def _reply(account: Account) -> m.AccountReply:
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
        eab_key_id=account.eab.key_id if account.eab else None,
        ca=account.ca,
        error=account.error,
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
    plain: dict[str, type[ScaivaultError]] = {
        each.code: each for each in (InvalidRequest, SecretNotFound, Timeout, Internal)
    }
    kind = plain.get(trouble.code)
    return CaRefused(trouble.detail, trouble.acme) if kind is None else kind(trouble.detail)


def _check_pem(pem: str) -> None:
    try:
        cryptography_x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise _invalid("/ca_certificates_pem", "bad_pem", "these are no PEM certificates") from None


def _invalid(pointer: str, code: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=pointer, code=code, detail=detail)])

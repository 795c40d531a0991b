"""Requests for an account: judged, and written down with a key before any CA hears of them (write order, step 0)."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509 as cryptography_x509

from scaivaultd.acme import directories, x509
from scaivaultd.acme.signing import AccountKey, parse_hmac_key
from scaivaultd.model.errors import Conflict, FieldError, InvalidRequest, NotFound, RevisionConflict, SecretNotFound
from scaivaultd.model.resources import Account, AccountName, ExternalAccount, KeyType
from scaivaultd.model.storage import ABSENT
from scaivaultd.services.account_keys import read_account_key, sealed_key
from scaivaultd.services.documents import ACCOUNT_NAMES, ACCOUNTS, KEYS, Versioned, digest

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import messages as m
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.ids import AccountId, IdMaker
    from scaivaultd.services.ports import Cas, Sealer, Store
    from scaivaultd.services.secrets import Secrets

ACCOUNT_KEY_TYPE: KeyType = "ec-p256"
_PART = r"[!#-%'*+\-./0-9=A-Z^_`a-z{|}~]+"
_EMAIL = re.compile(f"{_PART}@{_PART}")


class _Key(msgspec.Struct, frozen=True):
    """The private key (PKCS #8 DER) of an account to be; `is_given`: the CA knows it already."""

    der: bytes
    key_type: KeyType
    is_given: bool

    def __repr__(self) -> str:
        return f"_Key({self.key_type})"

    @property
    def thumbprint(self) -> str:
        return AccountKey(self.der).thumbprint


class AccountRequests:
    """What becomes of `pki.acme.accounts.create` until there is a document to work on."""

    def __init__(
        self,
        *,
        store: Store,
        sealer: Sealer,
        cas: Cas,
        secrets: Secrets,
        ids: IdMaker,
        clock: Clock,
        log: FilteringBoundLogger,
        patience_seconds: float,
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._cas = cas
        self._secrets = secrets
        self._ids = ids
        self._clock = clock
        self._log = log
        self._patience_seconds = patience_seconds
        self._accepting = asyncio.Lock()

    async def accept(self, request: m.CreateAccount) -> AccountId:
        """The account that the request describes, made unless it is there.

        Raises:
            InvalidRequest, SecretNotFound: it cannot work.
            Conflict: its name or its key belongs to another account.
        """
        await self._check(request)
        key = await self._key_of(request)
        # One after the other: two names must not get one key between the look and the commit.
        async with self._accepting:
            for _ in range(3):
                try:
                    return await self._find_or_make(request, key)
                except RevisionConflict:
                    continue  # somebody took the name a moment ago: look at what they made
        raise Conflict(f"the name {request.name!r} is being taken by several requests at once; ask again")

    async def _find_or_make(self, request: m.CreateAccount, key: _Key) -> AccountId:
        holder = await ACCOUNT_NAMES.get(self._store, digest(request.name))
        if holder is not None and (same := await self._same(request, key, holder.value.account_id)):
            return same
        if key.is_given:
            await self._require_free(request, key)
        return await self._write(request, key, ABSENT if holder is None else holder.revision)

    async def _check(self, request: m.CreateAccount) -> None:
        directory_url = _directory_url(request)
        if request.email is not None:
            check_email(request.email)
        self._check_binding(request)
        if request.ca_certificates_pem is not None:
            _check_pem(request.ca_certificates_pem)
        if request.provider == "custom":
            await self._cas.check_directory(directory_url)

    def _check_binding(self, request: m.CreateAccount) -> None:
        """How the CA is to know whose account it is: by its key, by an external binding, or not at all."""
        if request.account_key_path is not None or request.account_key_pem is not None:
            self._check_account_key(request)
        elif request.eab is not None:
            self._check_eab(request.eab)
            if request.zerossl_access_key_path is not None:
                raise _invalid("/zerossl_access_key_path", "one_of", "with eab there is no binding to fetch: give one")
        elif request.zerossl_access_key_path is not None:
            if request.provider != "zerossl":
                raise _invalid("/zerossl_access_key_path", "not_zerossl", "it goes with provider zerossl only")
            self._secrets.check(request.zerossl_access_key_path, "/zerossl_access_key_path")
        elif request.provider == "zerossl" and request.email is None:
            raise _invalid(
                "/eab",
                "missing",
                "zerossl takes new accounts only with an external account binding: give eab, or let it be fetched by "
                "giving zerossl_access_key_path or an email",
            )
        elif request.provider in directories.NEEDS_EAB and request.provider != "zerossl":
            raise _invalid(
                "/eab", "missing", f"{request.provider} takes new accounts only with an external account binding"
            )

    def _check_account_key(self, request: m.CreateAccount) -> None:
        if request.account_key_path is not None and request.account_key_pem is not None:
            raise _invalid("/account_key_path", "one_of", "give exactly one of account_key_path and account_key_pem")
        if request.eab is not None:
            raise _invalid("/eab", "not_for_this", "an account that exists is bound already: leave eab out")
        if request.zerossl_access_key_path is not None:
            raise _invalid("/zerossl_access_key_path", "not_for_this", "an account that exists is bound already")
        if request.account_key_path is not None:
            self._secrets.check(request.account_key_path, "/account_key_path")

    def _check_eab(self, eab: m.EabRequest) -> None:
        if (eab.hmac_key is None) == (eab.hmac_key_path is None):
            raise _invalid("/eab", "one_of", "give exactly one of hmac_key and hmac_key_path")
        if eab.hmac_key is not None:
            parse_hmac_key(eab.hmac_key)
        if eab.hmac_key_path is not None:
            self._secrets.check(eab.hmac_key_path, "/eab/hmac_key_path")

    async def _key_of(self, request: m.CreateAccount) -> _Key:
        if request.account_key_pem is not None:
            return _Key(*read_account_key(request.account_key_pem, "/account_key_pem"), is_given=True)
        if request.account_key_path is not None:
            try:
                secret = await self._secrets.read(request.account_key_path)
            except SecretNotFound as error:
                raise missing_secret("/account_key_path", error.detail) from None
            return _Key(*read_account_key(secret.reveal(), "/account_key_path"), is_given=True)
        return _Key(x509.make_key(ACCOUNT_KEY_TYPE), ACCOUNT_KEY_TYPE, is_given=False)

    async def _same(self, request: m.CreateAccount, key: _Key, account_id: AccountId) -> AccountId | None:
        """The account that has the name, if the request describes it; None if the name is free again."""
        current = await ACCOUNTS.get(self._store, account_id)
        if current is None:
            raise NotFound(f"there is no account {account_id}")
        account = current.value
        if account.status in ("invalid", "deactivated"):
            return None
        if account.is_deactivating:
            raise _taken("/name", f"the name {request.name!r} belongs to {account.id} until the CA has deactivated it")
        asked = (
            request.provider,
            request.environment,
            _directory_url(request),
            request.email,
            request.ca_certificates_pem,
        )
        has = (
            account.provider,
            account.environment,
            account.directory_url,
            account.email,
            account.ca_certificates_pem,
        )
        if asked == has and _has_key(account, key) and _has_binding(account, request, key):
            await self._agree(request, current)
            return account.id
        if account.status == "pending" and account.error is not None:
            await self._replace(current)
            return None
        raise _taken("/name", f"the name {request.name!r} belongs to another account, {account.id}; choose another")

    async def _agree(self, request: m.CreateAccount, current: Versioned[Account]) -> None:
        """Take the word that was withheld the first time, while there is still somebody to give it to."""
        account = current.value
        if account.status != "pending" or account.terms_of_service_agreed or not request.terms_of_service_agreed:
            return
        next_try_at = None if waits_for_a_person(account) else account.next_try_at
        agreed = msgspec.structs.replace(account, terms_of_service_agreed=True, next_try_at=next_try_at)
        await self._store.commit([ACCOUNTS.put(agreed, current.revision)])

    async def _replace(self, current: Versioned[Account]) -> None:
        """Give up a registration that does not come through for one that its owner has corrected."""
        replaced = msgspec.structs.replace(current.value, status="invalid", next_try_at=None)
        await self._store.commit([ACCOUNTS.put(replaced, current.revision)])
        self._log.info("account.replaced", account_id=current.value.id)

    async def _require_free(self, request: m.CreateAccount, key: _Key) -> None:
        found = await ACCOUNTS.page(self._store, where={"thumbprint": key.thumbprint}, cursor=None, limit=500)
        for other in (each.value for each in found.items):
            if other.status in ("pending", "valid") and other.directory_url == _directory_url(request):
                raise _taken(
                    "/account_key_path" if request.account_key_pem is None else "/account_key_pem",
                    f"this key is that of account {other.id} ({other.name!r}) at the same CA; use that one",
                )

    async def _write(self, request: m.CreateAccount, key: _Key, name_revision: int) -> AccountId:
        now = self._clock.now()
        account_id, key_id = self._ids.account(), self._ids.key()
        account = Account(
            id=account_id,
            name=request.name,
            provider=request.provider,
            environment=request.environment,
            email=request.email,
            directory_url=_directory_url(request),
            status="pending",
            key_id=key_id,
            key_thumbprint=key.thumbprint,
            created_at=now,
            ca_certificates_pem=request.ca_certificates_pem,
            eab=None if key.is_given else self._binding_of(request, account_id),
            terms_of_service_agreed=request.terms_of_service_agreed,
            give_up_at=now + timedelta(seconds=self._patience_seconds),
            must_exist=key.is_given,
        )
        await self._store.commit(
            [
                KEYS.put(sealed_key(self._sealer, key_id, key.key_type, key.der, now)),
                ACCOUNTS.put(account),
                ACCOUNT_NAMES.put(AccountName(name=request.name, account_id=account_id), name_revision),
            ]
        )
        return account_id

    def _binding_of(self, request: m.CreateAccount, account_id: AccountId) -> ExternalAccount | None:
        eab = request.eab
        if eab is None:
            # No key identifier yet: the job fetches the binding, by the access key if there is one.
            is_fetched = request.provider == "zerossl"
            return ExternalAccount(key_id="", hmac_key_path=request.zerossl_access_key_path) if is_fetched else None
        if eab.hmac_key is None:
            return ExternalAccount(key_id=eab.key_id, hmac_key_path=eab.hmac_key_path)
        sealed = self._sealer.seal(parse_hmac_key(eab.hmac_key), ACCOUNTS.key(account_id), "eab_hmac_key")
        return ExternalAccount(key_id=eab.key_id, sealed_hmac_key=sealed)


def waits_for_a_person(account: Account) -> bool:
    """Whether the CA does not register it before somebody has agreed or acted (RFC 8555 section 7.3.3)."""
    problem = None if account.error is None else account.error.acme
    return account.status == "pending" and problem is not None and problem.name == "userActionRequired"


def check_email(email: str) -> None:
    """Refuse what is no plain address (RFC 8555 section 7.3): one, without name, list or header fields."""
    if not _EMAIL.fullmatch(email):
        raise _invalid("/email", "bad_email", "give one plain address, without name, list or parameters")


def _directory_url(request: m.CreateAccount) -> str:
    return directories.directory_url_for(request.provider, request.environment, request.directory_url)


def _has_key(account: Account, key: _Key) -> bool:
    return account.key_thumbprint == key.thumbprint if key.is_given else not account.must_exist


def _has_binding(account: Account, request: m.CreateAccount, key: _Key) -> bool:
    eab = account.eab
    if key.is_given:
        return True
    if request.eab is not None:
        return eab is not None and request.eab.key_id == eab.key_id
    if eab is None:
        return True
    was_fetched = not eab.key_id or eab.sealed_hmac_key is not None
    return request.provider == "zerossl" and was_fetched and eab.hmac_key_path == request.zerossl_access_key_path


def _check_pem(pem: str) -> None:
    try:
        cryptography_x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise _invalid("/ca_certificates_pem", "bad_pem", "these are no PEM certificates") from None


def missing_secret(pointer: str, detail: str) -> SecretNotFound:
    """The error about a member that refers to a secret that is not there."""
    return SecretNotFound(detail, [FieldError(pointer=pointer, code=SecretNotFound.code, detail=detail)])


def _taken(pointer: str, detail: str) -> Conflict:
    return Conflict(detail, [FieldError(pointer=pointer, code="taken", detail=detail)])


def _invalid(pointer: str, code: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=pointer, code=code, detail=detail)])

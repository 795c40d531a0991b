"""Changes to an account: its name here, its contact and its agreement at the CA first (RFC 8555 section 7.3.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from scaivaultd.api import events
from scaivaultd.model.errors import Conflict, FieldError, InvalidRequest, RevisionConflict, Timeout
from scaivaultd.model.resources import AccountName
from scaivaultd.model.storage import ABSENT, Delete
from scaivaultd.services.account_holds import without_hold
from scaivaultd.services.account_requests import check_email, waits_for_a_person
from scaivaultd.services.accounts import require_usable
from scaivaultd.services.documents import ACCOUNT_NAMES, ACCOUNTS, Versioned, digest
from scaivaultd.services.registering import contacts_of

if TYPE_CHECKING:
    from scaivaultd.api import messages as m
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.resources import Account
    from scaivaultd.model.storage import Change
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.ports import Store

CA_SECONDS_MIN = 1.0
TRIES = 3


class AccountUpdates:
    """What becomes of `pki.acme.accounts.update`."""

    def __init__(self, *, store: Store, accounts: Accounts, clock: Clock) -> None:
        self._store = store
        self._accounts = accounts
        self._clock = clock

    async def update(self, request: m.UpdateAccount) -> Account:
        """The account as it is afterwards.

        Raises:
            NotFound, AccountUnusable, InvalidRequest, Conflict: nothing was changed.
            CaRefused, CaUnavailable, Timeout: nothing was changed here; the CA may have heard of it.
        """
        _check(request)
        for _ in range(TRIES):
            current = await self._accounts.load(request.id)
            require_usable(current.value)
            names = await self._moved_name(current.value, request)
            try:
                told = await self._tell_ca(current, request)
                return await self._write(current, request, names, told=told)
            except RevisionConflict:
                continue  # somebody else has changed it at the same time
        raise Conflict(f"account {request.id} is being changed by others at the same time; ask again")

    async def _moved_name(self, account: Account, request: m.UpdateAccount) -> list[Change]:
        """What moves the name; raises Conflict if another account has it."""
        if request.name is UNSET or request.name == account.name:
            return []
        holder = await ACCOUNT_NAMES.get(self._store, digest(request.name))
        if holder is not None:
            other = (await self._accounts.load(holder.value.account_id)).value
            if other.status in ("pending", "valid"):
                raise Conflict(f"the name {request.name!r} belongs to another account, {other.id}; choose another")
        taken = AccountName(name=request.name, account_id=account.id)
        changes: list[Change] = [ACCOUNT_NAMES.put(taken, ABSENT if holder is None else holder.revision)]
        left = await ACCOUNT_NAMES.get(self._store, digest(account.name))
        if left is not None and left.value.account_id == account.id:
            changes.append(Delete(key=ACCOUNT_NAMES.key(digest(account.name)), expect_revision=left.revision))
        return changes

    async def _tell_ca(self, current: Versioned[Account], request: m.UpdateAccount) -> bool:
        """Tell the CA what it has to know; False if that is nothing."""
        account = current.value
        has_contact = request.email is not UNSET and request.email != account.email
        if account.status != "valid" or not (has_contact or request.terms_of_service_agreed is True):
            return False
        seconds = max(request.wait_seconds, CA_SECONDS_MIN)
        try:
            async with asyncio.timeout(seconds), self._accounts.using(account.id):
                if (await self._accounts.load(account.id)).revision != current.revision:
                    raise RevisionConflict(ACCOUNTS.key(account.id))
                if account.next_key_id is not None:
                    raise Conflict(f"the key of account {account.id} is being changed; ask again when that is over")
                client = await self._accounts.client(account)
                if has_contact:
                    await client.update_contacts(contacts_of(request.email or None))
                if request.terms_of_service_agreed is True:
                    await client.agree_to_terms()
        except TimeoutError:
            raise Timeout(
                f"the CA has not answered within {seconds:.0f} s; nothing was changed here: ask again, or with a "
                "longer wait_seconds"
            ) from None
        return True

    async def _write(
        self, current: Versioned[Account], request: m.UpdateAccount, names: list[Change], *, told: bool
    ) -> Account:
        account, now = current.value, self._clock.now()
        changed = _changed(account, request)
        queued = [events.account_updated(changed, now)] if told else []
        is_resolved = account.action is not None and changed.action is None
        if is_resolved:
            queued.append(events.account_action_resolved(changed, now))
        if changed != account:
            await self._store.commit([ACCOUNTS.put(changed, current.revision), *names], queued)
        if is_resolved:
            self._accounts.resumed.tell(account.id)
        if changed.status == "pending":
            self._accounts.register(account.id)
        return changed


def _check(request: m.UpdateAccount) -> None:
    if isinstance(request.email, str):
        check_email(request.email)
    if request.terms_of_service_agreed is False:
        detail = "an agreement cannot be taken back; deactivate the account instead"
        raise InvalidRequest(detail, [FieldError(pointer="/terms_of_service_agreed", code="not_false", detail=detail)])


def _changed(account: Account, request: m.UpdateAccount) -> Account:
    if request.name is not UNSET:
        account = msgspec.structs.replace(account, name=request.name)
    if request.email is not UNSET:
        account = msgspec.structs.replace(account, email=request.email)
    if request.terms_of_service_agreed is True:
        account = _agreed(without_hold(account))
    return account


def _agreed(account: Account) -> Account:
    ca = account.ca
    if ca is not None and account.terms_changed_to is not None:
        ca = msgspec.structs.replace(ca, terms_of_service=account.terms_changed_to)
    next_try_at = None if waits_for_a_person(account) else account.next_try_at
    return msgspec.structs.replace(
        account, terms_of_service_agreed=True, terms_changed_to=None, ca=ca, next_try_at=next_try_at
    )

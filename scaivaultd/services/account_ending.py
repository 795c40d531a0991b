"""The end of an account (RFC 8555 section 7.3.6): final, and made clear to every certificate that hung on it.

`Account.is_deactivating` is the intent and stays until the last step is done, also where the CA has ended the account
by itself: whatever a stop interrupts goes on from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import events
from scaivaultd.model.errors import AccountUnusable, CaRefused, CaUnavailable, RevisionConflict
from scaivaultd.model.resources import Trouble, terms_of
from scaivaultd.model.storage import ABSENT
from scaivaultd.services import renewals
from scaivaultd.services.accounts import is_usable
from scaivaultd.services.documents import ACCOUNTS, CERTIFICATES, RENEWALS
from scaivaultd.services.jobs import outcome_of
from scaivaultd.services.pauses import Pauses

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.errors import ScaivaultError
    from scaivaultd.model.ids import AccountId, CertificateId
    from scaivaultd.model.resources import Account, Certificate
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.ports import Store
    from scaivaultd.services.renewing import Renewing

PAGE_SIZE = 200
_GONE = ("unauthorized", "accountDoesNotExist")
"""What a CA says in place of everything once the account has ended, to its deactivation too."""


class AccountEnding:
    """The jobs of all accounts that end."""

    def __init__(
        self,
        *,
        store: Store,
        accounts: Accounts,
        issuing: Issuing,
        renewing: Renewing,
        jobs: Jobs,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._issuing = issuing
        self._renewing = renewing
        self._jobs = jobs
        self._clock = clock
        self._randomness = randomness
        self._log = log
        accounts.deactivated.subscribe(self.start)

    def start(self, account_id: AccountId) -> None:
        """Bring an account that `is_deactivating` to its end, unless that is under way."""
        self._jobs.start(f"deactivate {account_id}", lambda: self._end(account_id))

    async def begin(self, account_id: AccountId) -> None:
        """Commit the intent: from here on nobody orders with the account, and there is no way back."""
        await self._accounts.change(account_id, _given_up)
        self.start(account_id)

    async def _end(self, account_id: AccountId) -> None:
        pauses = Pauses(self._clock, self._randomness)
        log = self._log.bind(account_id=account_id)
        while (error := await outcome_of(self._take_steps(account_id), log)) is not None:
            log.warning("account.not_deactivated", error_code=error.code, detail=error.detail)
            await pauses.after(error)

    async def _take_steps(self, account_id: AccountId) -> None:
        """Everything that is left to do; each step may be done again."""
        account = (await self._accounts.load(account_id)).value
        if not account.is_deactivating:
            return
        if account.status != "deactivated":
            await self._issuing.end_orders_of(account_id, _unusable(account))
            await self._tell_ca(account_id)
            await self._mark(account_id)
        await self._stop_renewals(account_id)
        await self._accounts.change(account_id, lambda each: msgspec.structs.replace(each, is_deactivating=False))

    async def _tell_ca(self, account_id: AccountId) -> None:
        async with self._accounts.using(account_id):
            account = (await self._accounts.load(account_id)).value
            if account.url is None:
                return
            if account.next_key_id is not None:
                raise CaUnavailable(f"the key of account {account_id} is being changed; it is deactivated after that")
            client = await self._accounts.client(account)
            try:
                await client.deactivate_account()
            except CaRefused as refusal:
                if refusal.problem is None or refusal.problem.name not in _GONE:
                    raise
                self._log.info("account.was_gone", account_id=account_id, detail=refusal.detail)

    async def _mark(self, account_id: AccountId) -> None:
        now = self._clock.now()
        await self._accounts.change(
            account_id, _deactivated, lambda _, after: (events.account_deactivated(after, now),)
        )
        self._log.info("account.deactivated", account_id=account_id)

    async def _stop_renewals(self, account_id: AccountId) -> None:
        """Look at every certificate: the account of its current version may be another than those of its terms."""
        cursor: str | None = None
        while True:
            page = await CERTIFICATES.page(self._store, where={}, cursor=cursor, limit=PAGE_SIZE)
            for found in page.items:
                if account_id in terms_of(found.value).accounts:
                    await self._stop_renewal(found.value.id, account_id)
            if (cursor := page.next_cursor) is None:
                return

    async def _stop_renewal(self, certificate_id: CertificateId, account_id: AccountId) -> None:
        """Stop the renewals of one certificate, unless another account can go on with it."""
        while True:
            found = await CERTIFICATES.get(self._store, certificate_id)
            if found is None or not found.value.auto_renew or await self._has_account(found.value):
                return
            certificate, now = found.value, self._clock.now()
            known = await RENEWALS.get(self._store, certificate_id)
            renewal = (
                renewals.begun(certificate, None, now=now, fraction=self._randomness.fraction())
                if known is None
                else known.value
            )
            if renewal.is_stopped:
                return
            trouble = _trouble(account_id, certificate)
            # An order under way ends by itself, and takes its own id out.
            stopped = msgspec.structs.replace(renewals.stopped(renewal, trouble), order_id=renewal.order_id)
            try:
                await self._store.commit(
                    [RENEWALS.put(stopped, ABSENT if known is None else known.revision)],
                    [events.certificate_renewal_blocked(certificate, trouble, now)],
                )
            except RevisionConflict:
                continue
            self._log.error("certificate.renewal_blocked", certificate_id=certificate_id, detail=trouble.detail)
            self._renewing.changed(certificate_id)
            return

    async def _has_account(self, certificate: Certificate) -> bool:
        for account_id in terms_of(certificate).accounts:
            account = await ACCOUNTS.get(self._store, account_id)
            if account is not None and is_usable(account.value):
                return True
        return False


def _given_up(account: Account) -> Account:
    return account if account.status == "deactivated" else msgspec.structs.replace(account, is_deactivating=True)


def _deactivated(account: Account) -> Account:
    return msgspec.structs.replace(
        account, status="deactivated", error=None, next_try_at=None, action=None, action_probe_at=None
    )


def _unusable(account: Account) -> ScaivaultError:
    return AccountUnusable(f"account {account.id} ({account.name!r}) is being deactivated by its owner")


def _trouble(account_id: AccountId, certificate: Certificate) -> Trouble:
    others = len(terms_of(certificate).accounts) - 1
    detail = f"account {account_id} is deactivated" + (
        f", and the {others} other accounts of the certificate cannot be used either" if others else ""
    )
    return Trouble(
        code=AccountUnusable.code, detail=detail, kind="permanent", fault="ca", remedy=AccountUnusable.remedy
    )

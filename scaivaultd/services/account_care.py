"""What becomes of an account after its registration: changes, key rollover, its end, and the CA's terms."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import events
from scaivaultd.model.errors import FieldError, InvalidRequest
from scaivaultd.services.account_ending import AccountEnding
from scaivaultd.services.account_updates import AccountUpdates
from scaivaultd.services.accounts import account_reply
from scaivaultd.services.documents import ACCOUNTS
from scaivaultd.services.jobs import outcome_of, side_by_side, unbroken
from scaivaultd.services.key_rollover import KeyRollover
from scaivaultd.services.registering import ca_description
from scaivaultd.services.waiting import sleep_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.acme.wire import Directory
    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.ids import IdMaker
    from scaivaultd.model.resources import Account
    from scaivaultd.model.storage import OutboxEvent
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.ports import Sealer, Store
    from scaivaultd.services.renewing import Renewing
    from scaivaultd.services.waiting import Waiting

RESUME_SECONDS = 5.0
GRACE_SECONDS = 3.0
FIRST_LOOK = timedelta(minutes=5)
LOOK_EVERY = timedelta(days=1)
LOOK_JITTER = timedelta(hours=1)
DIRECTORIES_AT_ONCE = 4


class AccountCare:
    """Handlers of `pki.acme.accounts.update`, `.rotate_key` and `.deactivate`, their jobs, and the daily look."""

    def __init__(
        self,
        *,
        store: Store,
        sealer: Sealer,
        accounts: Accounts,
        issuing: Issuing,
        renewing: Renewing,
        jobs: Jobs,
        waiting: Waiting,
        ids: IdMaker,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._waiting = waiting
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self._updates = AccountUpdates(store=store, accounts=accounts, clock=clock)
        self._rollover = KeyRollover(
            store=store,
            sealer=sealer,
            accounts=accounts,
            jobs=jobs,
            waiting=waiting,
            ids=ids,
            clock=clock,
            randomness=randomness,
            log=log,
        )
        self._ending = AccountEnding(
            store=store,
            accounts=accounts,
            issuing=issuing,
            renewing=renewing,
            jobs=jobs,
            clock=clock,
            randomness=randomness,
            log=log,
        )

    async def update(self, request: m.UpdateAccount, context: RequestContext) -> m.AccountReply:
        """Handle `pki.acme.accounts.update`."""
        account = await self._updates.update(request)
        self._log.info("account.updated", account_id=account.id, request_id=context.request_id)
        return account_reply(account)

    async def rotate_key(self, request: m.RotateAccountKey, context: RequestContext) -> m.AccountReply:
        """Handle `pki.acme.accounts.rotate_key`."""
        self._log.info("account.key_change_asked", account_id=request.id, request_id=context.request_id)
        return account_reply(await self._rollover.rotate(request.id, request.key_type, request.wait_seconds))

    async def deactivate(self, request: m.DeactivateAccount, context: RequestContext) -> m.AccountReply:
        """Handle `pki.acme.accounts.deactivate`."""
        account = (await self._accounts.load(request.id)).value
        if request.confirm != account.name:
            detail = "this ends the account for good: give its name to confirm that you mean it"
            raise InvalidRequest(detail, [FieldError(pointer="/confirm", code="not_its_name", detail=detail)])
        if account.status != "deactivated":
            self._log.info("account.deactivation_asked", account_id=account.id, request_id=context.request_id)
            await unbroken(self._ending.begin(account.id), GRACE_SECONDS)
        account = await self._waiting.until(
            ACCOUNTS, account.id, request.wait_seconds, lambda each: each.status == "deactivated"
        )
        return account_reply(account)

    async def resume(self) -> None:
        """Finish key changes and deactivations that a stop interrupted, before any order goes on."""
        known = [each.value for each in await ACCOUNTS.all(self._store, self._log)]
        for account in known:
            if account.is_deactivating:
                self._ending.start(account.id)
        await self._rollover.resume([each for each in known if each.next_key_id is not None], RESUME_SECONDS)

    async def run(self) -> None:
        """Look at the directories of all accounts once a day, until cancelled."""
        pause = FIRST_LOOK
        while True:
            await sleep_until(self._clock, self._clock.now() + pause + self._randomness.fraction() * LOOK_JITTER)
            if error := await outcome_of(self.look(), self._log):
                self._log.warning("account.not_looked_after", detail=error.detail)
            pause = LOOK_EVERY

    async def look(self) -> None:
        """Compare what every CA says of itself with what we know: new terms of service are told of, once."""
        by_ca: defaultdict[tuple[str, str | None], list[Account]] = defaultdict(list)
        for account in await ACCOUNTS.all(self._store, self._log, status="valid"):
            by_ca[account.value.directory_url, account.value.ca_certificates_pem].append(account.value)
        await side_by_side([self._look_at(accounts) for accounts in by_ca.values()], DIRECTORIES_AT_ONCE)

    async def _look_at(self, accounts: Sequence[Account]) -> None:
        log = self._log.bind(directory_url=accounts[0].directory_url)
        if error := await outcome_of(self._compare(accounts), log):
            # Tomorrow is soon enough: whoever needs the CA today finds out that it is down without us.
            log.debug("account.directory_not_read", detail=error.detail)

    async def _compare(self, accounts: Sequence[Account]) -> None:
        directory = await (await self._accounts.client(accounts[0])).directory()
        for account in accounts:
            await self._accounts.change(account.id, partial(_seen, directory), self._told)

    def _told(self, before: Account, after: Account) -> Sequence[OutboxEvent]:
        if after.terms_changed_to in (None, before.terms_changed_to):
            return ()
        self._log.warning("account.terms_changed", account_id=after.id, terms_of_service=after.terms_changed_to)
        return (events.account_terms_changed(after, self._clock.now()),)


def _seen(directory: Directory, account: Account) -> Account:
    """The account with what its CA says of itself now; the terms in there stay those that were agreed to."""
    agreed = account.ca.terms_of_service if account.ca else directory.terms_of_service
    offered = directory.terms_of_service
    return msgspec.structs.replace(
        account,
        ca=ca_description(directory, agreed),
        # A CA that names no terms for once has not changed them.
        terms_changed_to=account.terms_changed_to if offered is None else None if offered == agreed else offered,
    )

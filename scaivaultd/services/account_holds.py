"""Accounts whose CA waits for a person (RFC 8555 section 7.3.3): who asks meanwhile, and how it ends.

One order an hour sees whether the person has acted; all others of the account wait for what it finds.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import events
from scaivaultd.model.errors import RevisionConflict
from scaivaultd.services.documents import ACCOUNTS

if TYPE_CHECKING:
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.resources import Account, Order, Trouble
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.ports import Store

PROBE_EVERY = timedelta(hours=1)
PROBE_JITTER = timedelta(minutes=5)
SPREAD = timedelta(minutes=1)
"""Over so long orders that wait for the same moment are spread."""
KEY_CHANGE_PAUSE = timedelta(seconds=15)


class Holds:
    """The holds of all accounts; they stand in the accounts' documents."""

    def __init__(
        self, accounts: Accounts, *, store: Store, clock: Clock, randomness: Randomness, log: FilteringBoundLogger
    ) -> None:
        self._accounts = accounts
        self._store = store
        self._clock = clock
        self._randomness = randomness
        self._log = log

    async def until(self, account: Account) -> datetime | None:
        """See `Accounts.held_until`."""
        if account.next_key_id is not None:
            # The CA knows one of two keys, and which is being found out; an order might sign with the dead one.
            return self._spread(self._clock.now() + KEY_CHANGE_PAUSE)
        while account.action is not None:
            current = await self._accounts.load(account.id)
            account = current.value
            probe_at, now = account.action_probe_at, self._clock.now()
            if account.action is None:
                break
            if probe_at is not None and now < probe_at:
                return self._spread(probe_at)
            claimed = msgspec.structs.replace(account, action_probe_at=self._next_probe())
            try:
                await self._store.commit([ACCOUNTS.put(claimed, current.revision)])
            except RevisionConflict:
                continue  # another order has claimed the probe, or it is over: look again
            self._log.info("account.probed", account_id=account.id)
            break
        return None

    async def begin(self, account: Account, trouble: Trouble, order: Order) -> datetime:
        """See `Accounts.hold`."""
        while True:
            current = await self._accounts.load(account.id)
            known, now = current.value, self._clock.now()
            is_new = known.action is None or known.action.acme != trouble.acme
            if not is_new and known.action_probe_at is not None and now < known.action_probe_at:
                return known.action_probe_at
            probe_at = self._next_probe()
            held = msgspec.structs.replace(known, action=trouble, action_probe_at=probe_at)
            told = [events.account_action_required(held, order, trouble, now)] if is_new else []
            try:
                await self._store.commit([ACCOUNTS.put(held, current.revision)], told)
            except RevisionConflict:
                continue
            if is_new:
                self._log.error("account.action_required", account_id=account.id, detail=trouble.detail)
            return probe_at

    async def end(self, account: Account) -> None:
        """See `Accounts.served`."""
        if account.action is None:
            # It was not held when its key was taken: it says nothing about a hold that came since.
            return
        now = self._clock.now()
        if await self._accounts.change(
            account.id, without_hold, lambda _, after: (events.account_action_resolved(after, now),)
        ):
            self._log.info("account.action_resolved", account_id=account.id)
            self._accounts.resumed.tell(account.id)

    def _next_probe(self) -> datetime:
        return self._clock.now() + PROBE_EVERY + self._randomness.fraction() * PROBE_JITTER

    def _spread(self, moment: datetime) -> datetime:
        return moment + self._randomness.fraction() * SPREAD


def without_hold(account: Account) -> Account:
    """The account without a hold."""
    return msgspec.structs.replace(account, action=None, action_probe_at=None)

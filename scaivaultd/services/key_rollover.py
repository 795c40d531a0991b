"""Another key for an account (RFC 8555 section 7.3.5), through any crash.

The new key and the intent (`Account.next_key_id`) are committed before the CA hears of them. While the intent stands
the CA knows one of the two keys; which, is found out by looking the account up by the new one. Orders wait meanwhile.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import msgspec

from scaivaultd.acme import x509
from scaivaultd.api import events
from scaivaultd.model.errors import (
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    Conflict,
    RevisionConflict,
    ScaivaultError,
    Timeout,
)
from scaivaultd.services.account_keys import sealed_key
from scaivaultd.services.accounts import require_usable
from scaivaultd.services.documents import ACCOUNTS, KEYS
from scaivaultd.services.jobs import outcome_of, side_by_side, unbroken
from scaivaultd.services.pauses import Pauses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.ids import AccountId, IdMaker, KeyId
    from scaivaultd.model.resources import Account, KeyType
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.ports import CaClient, Sealer, Store
    from scaivaultd.services.waiting import Waiting

TURN_SECONDS = 30.0
"""So long orders that sign with the old key may take to end their attempts."""
PATIENCE = timedelta(hours=1)
GRACE_SECONDS = 3.0
WAIT_MARGIN_SECONDS = 1.0


class _Outcome:
    """Why a key change was given up, for the callers who wait for it; it lives as long as they do."""

    def __init__(self, key_id: KeyId) -> None:
        self.key_id = key_id
        self.error: ScaivaultError | None = None


class _Doubt(msgspec.Struct, frozen=True):
    """Whether the CA may have changed the key already, and whether it is asked to for the last time."""

    is_open: bool
    is_last: bool


class KeyRollover:
    """The key changes of all accounts."""

    def __init__(
        self,
        *,
        store: Store,
        sealer: Sealer,
        accounts: Accounts,
        jobs: Jobs,
        waiting: Waiting,
        ids: IdMaker,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._accounts = accounts
        self._jobs = jobs
        self._waiting = waiting
        self._ids = ids
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self._outcomes: WeakValueDictionary[KeyId, _Outcome] = WeakValueDictionary()

    async def rotate(self, account_id: str, key_type: KeyType, wait_seconds: float) -> Account:
        """Give the account another key, or wait for the change that is under way; `next_key_id` is set if it goes on.

        Raises:
            NotFound, AccountUnusable: there is none, or no more.
            Conflict: it is not registered yet; orders are under way that do not end soon.
            CaRefused: the CA does not change keys, or not this one. The old key still works.
        """
        account = (await self._accounts.load(account_id)).value
        private_key = b"" if account.next_key_id else await asyncio.to_thread(x509.make_key, key_type)
        outcome = await unbroken(self._begin(account.id, private_key, key_type, wait_seconds), GRACE_SECONDS)
        account = await self._waiting.until(
            ACCOUNTS, account.id, wait_seconds, lambda each: each.next_key_id != outcome.key_id
        )
        if outcome.error is not None and outcome.key_id not in (account.key_id, account.next_key_id):
            raise outcome.error
        return account

    async def resume(self, accounts: Sequence[Account], wait_seconds: float) -> None:
        """Find out what became of changes that a stop interrupted; returns when all are settled, or time is over."""
        for account in accounts:
            if account.next_key_id is not None:
                self._start(account.id, account.next_key_id, TURN_SECONDS, is_doubtful=True)
        settling = [
            self._waiting.until(ACCOUNTS, each.id, wait_seconds, lambda account: account.next_key_id is None)
            for each in accounts
        ]
        await side_by_side(settling, max(1, len(settling)))

    async def _begin(
        self, account_id: AccountId, private_key: bytes, key_type: KeyType, wait_seconds: float
    ) -> _Outcome:
        while True:
            current = await self._accounts.load(account_id)
            account = current.value
            require_usable(account)
            if account.status == "pending":
                raise Conflict(f"account {account_id} is not registered yet; wait for it, then change its key")
            if account.next_key_id is not None:
                outcome = self._outcome_of(account.next_key_id)
                self._start(account_id, account.next_key_id, TURN_SECONDS, is_doubtful=True)
                return outcome
            if not private_key:
                # The change under way has ended since: it is the answer.
                return _Outcome(account.key_id)
            key_id, now = self._ids.key(), self._clock.now()
            new = sealed_key(self._sealer, key_id, key_type, private_key, now)
            intent = msgspec.structs.replace(account, next_key_id=key_id)
            try:
                await self._store.commit([KEYS.put(new), ACCOUNTS.put(intent, current.revision)])
            except RevisionConflict:
                continue
            outcome = self._outcome_of(key_id)
            # Whoever waits for it is to hear that it was nobody's turn, before the wait is over.
            is_heard = wait_seconds > 2 * WAIT_MARGIN_SECONDS
            turn_seconds = wait_seconds - WAIT_MARGIN_SECONDS if is_heard else TURN_SECONDS
            self._start(account_id, key_id, turn_seconds, is_doubtful=False)
            return outcome

    def _outcome_of(self, key_id: KeyId) -> _Outcome:
        return self._outcomes.setdefault(key_id, _Outcome(key_id))

    def _start(self, account_id: AccountId, key_id: KeyId, turn_seconds: float, *, is_doubtful: bool) -> None:
        # Named by the key: the job of the change before may still be about to end.
        self._jobs.start(
            f"rotate {account_id} {key_id}",
            lambda: self._change(account_id, key_id, turn_seconds, is_doubtful=is_doubtful),
        )

    async def _change(self, account_id: AccountId, key_id: KeyId, turn_seconds: float, *, is_doubtful: bool) -> None:
        """The job: until it is clear which key is the account's."""
        log = self._log.bind(account_id=account_id)
        pauses = Pauses(self._clock, self._randomness)
        give_up_at = self._clock.now() + PATIENCE
        while True:
            doubt = _Doubt(is_open=is_doubtful, is_last=self._clock.now() >= give_up_at)
            error = await outcome_of(self._attempt(account_id, key_id, turn_seconds, doubt), log)
            if error is None:
                break
            log.warning("account.key_change_doubtful", error_code=error.code, detail=error.detail)
            is_doubtful = True
            await pauses.after(error)
        self._accounts.resumed.tell(account_id)

    async def _attempt(self, account_id: AccountId, key_id: KeyId, turn_seconds: float, doubt: _Doubt) -> None:
        """Settle it, for or against the new key; an error leaves it open."""
        try:
            async with self._accounts.exclusively(account_id, turn_seconds):
                account = (await self._accounts.load(account_id)).value
                if account.next_key_id == key_id:
                    await self._settle(account, key_id, doubt)
        except Conflict as busy:
            if doubt.is_open:
                raise Timeout(busy.detail) from busy
            await self._give_up(account_id, key_id, busy)

    async def _settle(self, account: Account, key_id: KeyId, doubt: _Doubt) -> None:
        old = await self._accounts.client(account)
        new = await self._accounts.client(msgspec.structs.replace(account, key_id=key_id))
        known = await _known_as(new) if doubt.is_open else None
        if known is None:
            if doubt.is_open and (doubt.is_last or account.is_deactivating):
                lost = Conflict("the key change did not come through; the old key still works")
                await self._give_up(account.id, key_id, lost)
                return
            try:
                await old.key_change(new.key)
            except CaMisbehaved:
                raise
            except CaRefused as refusal:
                await self._give_up(account.id, key_id, refusal)
                return
        elif known != account.url:
            taken = Conflict(f"the new key belongs to another account at the CA, {known}")
            await self._give_up(account.id, key_id, taken)
            return
        await self._take_over(account, key_id, new.key.thumbprint)

    async def _take_over(self, account: Account, key_id: KeyId, thumbprint: str) -> None:
        now = self._clock.now()
        await self._accounts.change(
            account.id,
            lambda each: (
                msgspec.structs.replace(each, key_id=key_id, key_thumbprint=thumbprint, next_key_id=None)
                if each.next_key_id == key_id
                else each
            ),
            lambda _, after: (events.account_key_rotated(after, now),),
        )
        self._log.info("account.key_rotated", account_id=account.id, key_thumbprint=thumbprint)

    async def _give_up(self, account_id: AccountId, key_id: KeyId, error: ScaivaultError) -> None:
        if (outcome := self._outcomes.get(key_id)) is not None:
            outcome.error = error
        await self._accounts.change(
            account_id,
            lambda each: msgspec.structs.replace(each, next_key_id=None) if each.next_key_id == key_id else each,
        )
        self._log.warning("account.key_not_rotated", account_id=account_id, detail=error.detail)


async def _known_as(new: CaClient) -> str | None:
    """The URL of the account that has the new key; None also if the CA refuses to look for it."""
    try:
        return await new.find_account()
    except (CaMisbehaved, BackendRateLimited):
        raise
    except CaRefused:
        return None

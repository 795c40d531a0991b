"""Asking the CAs when certificates should be renewed (ARI, RFC 9773), and what follows from their answers.

A window that lies in the past is how a CA says that a certificate is revoked or about to be. It counts as
that if the CA has moved it there, or if the version is not new; else a CA whose windows are always in the past would
have us renew without end.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import msgspec

from scaivaultd.acme import ari
from scaivaultd.acme import renewal as rules
from scaivaultd.acme.exchange import NotOffered
from scaivaultd.api import events
from scaivaultd.model.errors import BackendRateLimited, CaUnavailable, ScaivaultError, Timeout
from scaivaultd.model.resources import Revocation
from scaivaultd.services.documents import CERTIFICATES, RENEWALS
from scaivaultd.services.jobs import Overdue, bounded
from scaivaultd.services.outages import Outages
from scaivaultd.services.renewal_changes import Draft, as_of, certificate_of, change, order_ended

if TYPE_CHECKING:
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.ids import CertificateId
    from scaivaultd.model.resources import Account, Certificate, Renewal, RenewalWindow
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.documents import Versioned
    from scaivaultd.services.ports import Fetched, Store

ASK_SECONDS = 120.0

_NEW_AT_LEAST = timedelta(minutes=1)
_NEW_SHARE = 50
_HURRIED_MAX = 10

Reading = Literal["open", "revoked", "nonsense"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A usable answer of a CA, and the chance it is weighed with."""

    info: ari.RenewalInfo
    retry_after: float | None
    fraction: float


class Polls:
    """Asks about one certificate at a time and commits what follows."""

    def __init__(
        self, store: Store, accounts: Accounts, clock: Clock, randomness: Randomness, log: FilteringBoundLogger
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self._without_ari: dict[str, datetime] = {}
        self._left_alone: dict[str, tuple[datetime, datetime]] = {}
        self._outages = Outages()

    def quiet_until(self, directory_url: str, renewal: Renewal) -> datetime | None:
        """Until when a CA is not to be asked: it has no ARI, or wants to be left alone; None if it may be asked."""
        now, pauses = self._clock.now(), []
        if (found_at := self._without_ari.get(directory_url)) is not None:
            pauses.append((found_at, found_at + _look_again(renewal)))
        if (left_alone := self._left_alone.get(directory_url)) is not None:
            pauses.append(left_alone)
        # One that begins in the future was begun by a clock that was wrong.
        return max((until for since, until in pauses if since <= now < until), default=None)

    async def poll(self, certificate_id: CertificateId) -> None:
        """Ask about one certificate if it is time, and commit the answer or its absence."""
        found = await RENEWALS.get(self._store, certificate_id)
        if found is None:
            return
        renewal, now = as_of(found.value, self._clock.now()), self._clock.now()
        if renewal.ari_id is None or renewal.poll_at is None or renewal.poll_at > now:
            return
        if (await certificate_of(self._store, renewal)).value.status != "valid":
            await self._stop(renewal)
            return
        account = (await self._accounts.load(renewal.account_id)).value
        if self.quiet_until(account.directory_url, renewal) is not None:
            return
        try:
            answer = await self._ask(account, renewal)
        except NotOffered:
            self._without_ari[account.directory_url] = now
        except ScaivaultError as error:
            self._leave_alone(account.directory_url, error)
            await self._note_failure(renewal, error, account.directory_url)
        else:
            await self._note(renewal, answer)
            if self._outages.answered(account.directory_url, self._clock.now(), had_failed=renewal.polls_failed > 0):
                self._log.info("renewal.windows_known_again", directory_url=account.directory_url)

    async def _ask(self, account: Account, renewal: Renewal) -> Answer:
        try:
            fetched = await bounded(self._fetch(account, renewal), ASK_SECONDS)
        except Overdue:
            raise Timeout(f"the CA did not say within {ASK_SECONDS:.0f} s when to renew") from None
        return Answer(
            info=ari.renewal_info_from(fetched.body),
            retry_after=fetched.retry_after,
            fraction=self._randomness.fraction(),
        )

    async def _fetch(self, account: Account, renewal: Renewal) -> Fetched:
        client = await self._accounts.client(account)
        if (await client.directory()).renewal_info is None:
            raise NotOffered("the CA does not offer renewal information")
        await self._note_question(renewal)
        assert renewal.ari_id is not None
        return await client.renewal_info(renewal.ari_id)

    async def _note_question(self, asked: Renewal) -> None:
        """Before the CA is asked: a process that is killed over the answer must not ask again the next moment."""
        soonest = self._clock.now() + ari.POLL_SOONEST

        async def draft(renewal: Renewal) -> Draft | None:
            return _same(asked, renewal, msgspec.structs.replace(renewal, poll_at=soonest))

        await change(self._store, asked.certificate_id, draft)

    def _leave_alone(self, directory_url: str, error: ScaivaultError) -> None:
        """What a CA answers to one question counts for all that wait: after a downtime they are thousands."""
        if (pause := _pause_wanted(error)) is not None:
            now = self._clock.now()
            self._left_alone[directory_url] = (now, now + pause)

    async def _stop(self, asked: Renewal) -> None:
        async def draft(renewal: Renewal) -> Draft | None:
            return _same(asked, renewal, msgspec.structs.replace(renewal, poll_at=None))

        await change(self._store, asked.certificate_id, draft)

    async def _note_failure(self, asked: Renewal, error: ScaivaultError, directory_url: str) -> None:
        fraction = self._randomness.fraction()

        async def draft(renewal: Renewal) -> Draft | None:
            failures = renewal.polls_failed + 1
            pause = ari.pause_after_failure(error, failures=failures, lifetime=_lifetime(renewal), fraction=fraction)
            at = _within_life(renewal, self._clock.now() + pause)
            return _same(asked, renewal, msgspec.structs.replace(renewal, poll_at=at, polls_failed=failures))

        await change(self._store, asked.certificate_id, draft)
        (self._log.warning if self._outages.failed(directory_url, self._clock.now()) else self._log.debug)(
            "renewal.window_unknown",
            certificate_id=asked.certificate_id,
            directory_url=directory_url,
            code=error.code,
            detail=error.detail,
        )

    async def _note(self, asked: Renewal, answer: Answer) -> None:
        reading: Reading = "open"

        async def draft(renewal: Renewal) -> Draft | None:
            nonlocal reading
            if not _is_same(asked, renewal):
                return None
            now = self._clock.now()
            certificate = await certificate_of(self._store, renewal)
            reading = read(renewal, answer.info.window, issued_at=_issued_at(certificate.value), now=now)
            answered = _answered(renewal, answer, reading, now)
            if reading == "revoked" and certificate.value.status == "valid":
                return await self._revoked(certificate, answered, now)
            return Draft(renewal=answered)

        renewal = await change(self._store, asked.certificate_id, draft)
        if renewal is not None:
            self._tell(asked, renewal, answer, reading)

    async def _revoked(self, certificate: Versioned[Certificate], renewal: Renewal, now: datetime) -> Draft:
        revocation = Revocation(at=now, origin="outside")
        revoked = msgspec.structs.replace(certificate.value, status="revoked", revocation=revocation)
        order = await order_ended(self._store, revoked.order_id, "revoked")
        return Draft(
            renewal=msgspec.structs.replace(renewal, poll_at=None),
            changes=(CERTIFICATES.put(revoked, certificate.revision), *order),
            events=(events.certificate_revoked(revoked, revoked, revocation, now),),
        )

    def _tell(self, asked: Renewal, renewal: Renewal, answer: Answer, reading: Reading) -> None:
        window = answer.info.window
        log = self._log.bind(
            certificate_id=asked.certificate_id,
            start=window.start.isoformat(),
            end=window.end.isoformat(),
            explanation_url=answer.info.explanation_url,
        )
        if reading == "nonsense":
            log.warning("renewal.window_in_the_past")
        elif reading == "revoked":
            log.warning("certificate.revoked_outside")
        elif asked.point is not None and asked.point.window != window:
            log.info("renewal.window_changed", moment=renewal.point.moment.isoformat() if renewal.point else None)


def read(renewal: Renewal, window: RenewalWindow, *, issued_at: datetime, now: datetime) -> Reading:
    """What a CA says with a window. `nonsense`: one in the past already for a version this new."""
    before = renewal.point.window if renewal.point else None
    if window.end > now or window == before:
        return "open"
    if before is not None and before.end > now:
        return "revoked"
    if now >= _own_moment(renewal):
        # Its time has come anyway, so the window says no more than that.
        return "open"
    # Each version that the CA wants replaced at once has the next one count as new for twice as long.
    new_for = max(_NEW_AT_LEAST, _lifetime(renewal) / _NEW_SHARE * 2 ** min(renewal.hurried, _HURRIED_MAX))
    return "nonsense" if now - issued_at <= new_for else "revoked"


def _answered(renewal: Renewal, answer: Answer, reading: Reading, now: datetime) -> Renewal:
    pause = ari.pause_after_answer(answer.retry_after, lifetime=_lifetime(renewal), fraction=answer.fraction)
    point = ari.choose_point(answer.info.window, renewal.point, now=now, fraction=answer.fraction)
    return msgspec.structs.replace(
        renewal,
        point=None if reading == "nonsense" else point,
        explanation_url=answer.info.explanation_url,
        poll_at=_within_life(renewal, now + pause),
        polls_failed=0,
    )


def _own_moment(renewal: Renewal) -> datetime:
    return rules.renewal_moment(
        renewal.not_before, renewal.not_after, window_point=None, renew_before=None, fraction=renewal.fraction
    )


def _within_life(renewal: Renewal, at: datetime) -> datetime | None:
    return at if at < renewal.not_after else None


def _same(asked: Renewal, renewal: Renewal, changed: Renewal) -> Draft | None:
    return Draft(renewal=changed) if _is_same(asked, renewal) else None


def _is_same(asked: Renewal, renewal: Renewal) -> bool:
    # The next version came while the CA was asked about this one; that one is asked about by itself.
    return renewal.version == asked.version


def _issued_at(certificate: Certificate) -> datetime:
    return certificate.issued_at or certificate.not_before


def _lifetime(renewal: Renewal) -> timedelta:
    return renewal.not_after - renewal.not_before


def _pause_wanted(error: ScaivaultError) -> timedelta | None:
    """For how long a CA wants no questions at all; None if it did not say so."""
    match error:
        case BackendRateLimited(retry_after=seconds):
            wanted = seconds or 0.0
        case CaUnavailable(retry_after=float() | int() as seconds):
            wanted = seconds
        case _:
            return None
    return max(timedelta(seconds=min(wanted, ari.POLL_LATEST.total_seconds())), ari.POLL_SOONEST)


def _look_again(renewal: Renewal) -> timedelta:
    return min(ari.POLL_LATEST, max(_lifetime(renewal) / 10, ari.POLL_SOONEST))

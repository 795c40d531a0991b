"""One attempt at one order: does what `acme/issuance.next_step` says, in the write order that survives kill -9.

Every step that asks something of the CA is written down first, or can be found again by asking the
CA (`docs/architecture.md`, write order). A commit that meets another revision means that somebody
else has the order now: the attempt ends without a word. The parts of an attempt: `ordering` (steps 2 to 4), this
module (5 and 6), `harvest` (7), and `failing` for what follows when it does not come to that.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec

from scaivaultd.acme import issuance, wire
from scaivaultd.acme.issuance import AnswerAgain, Download, Finalize, GiveUp, PollOrder, Prove, Read, View
from scaivaultd.acme.signing import key_authorization_for
from scaivaultd.model import metrics
from scaivaultd.model.errors import (
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    ScaivaultError,
    Timeout,
)
from scaivaultd.model.names import name_set_key
from scaivaultd.model.resources import Account, Challenge, Evidence, Order, Trouble
from scaivaultd.plugin import ChallengeResponse
from scaivaultd.services.breakers import Breakers
from scaivaultd.services.documents import Versioned, digest
from scaivaultd.services.failing import Failing, patience_end, require_registered
from scaivaultd.services.harvest import Harvest
from scaivaultd.services.jobs import side_by_side
from scaivaultd.services.order_record import OrderRecord
from scaivaultd.services.ordering import Ordering

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.acme.wire import Authorization
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.ids import CertificateId, IdMaker, NodeId, OrderId
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.budgets import Budgets, Held
    from scaivaultd.services.evidence import Witness
    from scaivaultd.services.places import Place
    from scaivaultd.services.ports import CaClient, Fetched, Sealer, Store
    from scaivaultd.services.preflight import Preflight
    from scaivaultd.services.presence import Presence
    from scaivaultd.services.solvers import Solvers
    from scaivaultd.services.txt_records import TxtRecords
    from scaivaultd.services.waiting import Signal

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 10.0
LOOK_CLOSER_SECONDS = 8.0
"""After so long without news of the order its authorizations are read again; then after twice as long, and so on."""
LOOK_AGAIN_SECONDS = 2.0
"""The same at a CA that has left a failed challenge pending already."""
PARK_SECONDS = 60.0
"""A CA that wants a longer pause gets it without the order holding a place in the CA's queue."""
LENT_SECONDS = FIRST_PAUSE_SECONDS
"""For a pause this long another order gets the place: an order that waits is no work for the CA."""
NOTED_SECONDS = 0.3
REMEMBERED_SECONDS = 2.0
"""A pause this long is written down, so that a restart within it does not ask the CA too early."""
POLL_AFTER_AT_MOST = timedelta(days=1)
"""A pause noted in an order that is longer was noted by a clock that was wrong: attempts have less patience."""
BEGIN_AGAIN_SECONDS = 1.0
DOUBTS_MAX = 3


class Parked(Exception):
    """The CA wants a long pause; nothing is wrong."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"parked for {seconds:.0f} s")
        self.seconds = seconds


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What every attempt works with.

    `seen` is what the CAs show of the challenges of orders under way, by URL: newer than what is written down.
    """

    store: Store
    sealer: Sealer
    accounts: Accounts
    solvers: Solvers
    records: TxtRecords
    ids: IdMaker
    clock: Clock
    randomness: Randomness
    log: FilteringBoundLogger
    node_id: NodeId
    budgets: Budgets
    preflight: Preflight
    renewals: Signal[CertificateId]
    breakers: Breakers
    witness: Witness
    seen: dict[OrderId, dict[str, str]] = {}
    asking: Asking = msgspec.field(default_factory=lambda: Asking())


class Asking:
    """One newOrder at a time for the same names and account: what one request is just getting is no orphan."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, order: Order) -> asyncio.Lock:
        """The lock of these names; it lives as long as somebody holds it."""
        return self._locks.setdefault(digest(order.account_id, name_set_key(order.identifiers)), asyncio.Lock())


class Pace:
    """When each resource of the CA may be asked about again: its Retry-After, by URL."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._not_before: dict[str, float] = {}

    def heard(self, fetched: Fetched, *urls: str) -> None:
        """An answer about these URLs came, with or without a Retry-After. Zero says nothing."""
        for url in urls:
            if fetched.retry_after:
                self._not_before[url] = self._clock.monotonic() + fetched.retry_after
            else:
                self._not_before.pop(url, None)

    def wait(self, url: str, seconds: float) -> None:
        """Do not ask about `url` for so long, whatever else is known."""
        self._not_before[url] = max(self._not_before.get(url, 0.0), self._clock.monotonic() + seconds)

    def left(self, *urls: str) -> float:
        """Seconds until all of these may be asked about; 0 when they may be now."""
        now = self._clock.monotonic()
        return max([0.0, *(self._not_before.get(url, now) - now for url in urls)])

    def left_of_all(self) -> float:
        """Seconds until everything may be asked about."""
        return self.left(*self._not_before)


class Pursuit:
    """An attempt, from claiming the order to its end or the next setback.

    `order` is always the order as last committed. `run` raises `ScaivaultError` for a setback, `Parked` for a pause,
    `Held` when it is not the order's turn, `Superseded` when the order has another owner.
    """

    def __init__(
        self, tools: Tools, order: Versioned[Order], account: Account, presence: Presence, place: Place
    ) -> None:
        self._tools = tools
        self._clock = tools.clock
        self._log = tools.log.bind(order_id=order.value.id, attempt=order.value.attempt + 1)
        self._record = OrderRecord(tools.store, order)
        self._account = account
        self._presence = presence
        self._place = place
        self._failing = Failing(tools, self._record, account, self._log)
        self._acme: CaClient | None = None
        self._view: View | None = None
        self._pace = Pace(tools.clock)
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._look_closer_seconds = LOOK_CLOSER_SECONDS
        self._look_closer_at = self._clock.monotonic() + LOOK_CLOSER_SECONDS
        self._doubts = 0

    @property
    def order(self) -> Order:
        """The order as last committed."""
        return self._record.order

    @property
    def left_behind(self) -> Order | None:
        """The order as it was when another account took over: its CA still has it."""
        return self._failing.left_behind

    async def run(self) -> None:
        """Pursue the order to `valid` or `invalid`."""
        require_registered(self._account)
        self._acme = await self._tools.accounts.client(self._account)
        ordering = Ordering(self._tools, self._record, self._account, self._acme, self._log)
        await ordering.claim()
        self._view = View(order=await self._ca_order(ordering), challenge_type=self.order.challenge_type)
        try:
            while await self._take(issuance.next_step(self._view)):
                pass
        finally:
            self._tools.seen.pop(self.order.id, None)

    async def park(self, seconds: float) -> None:
        """Note the pause the CA wants, as far as our patience goes; raises Superseded."""
        next_try_at = min(self._clock.now() + timedelta(seconds=seconds), patience_end(self.order))
        await self._record.commit(next_try_at=next_try_at, poll_after=next_try_at)
        self._log.info("order.parked", next_try_at=next_try_at.isoformat())

    async def set_back(self, error: ScaivaultError) -> None:
        """Note what went wrong, and when it goes on or that it does not; raises Superseded."""
        await self._failing.set_back(error, **self._manners())

    async def hold(self, held: Held) -> None:
        """Note that the order waits for its turn; raises Superseded."""
        await self._failing.hold(held)

    async def wait_until(self, moment: datetime) -> None:
        """Note that the account is not to be used before; raises Superseded."""
        await self._failing.wait_until(moment)

    async def _take(self, step: issuance.Step) -> bool:
        """Do one step; False when the order has reached its end."""
        match step:
            case Read(urls):
                await self._read(urls)
            case Prove(pairs):
                await self._prove([challenge for _, challenge in pairs], [each.identifier for each, _ in pairs])
            case AnswerAgain(challenges):
                await self._answer_again(challenges)
            case PollOrder():
                await self._poll()
            case Finalize():
                await self._finalize()
            case Download(url):
                await self._download(url)
                return False
            case GiveUp(trouble):
                await self._give_up(trouble)
                return False
        return True

    async def _ca_order(self, ordering: Ordering) -> wire.Order:
        """The order at the CA: a known one is looked at, never made again."""
        url = self.order.url
        if url is None:
            ca_order, retry_after = await ordering.new_order()
            if self._account.action is not None:
                await self._tools.accounts.served(self._account)
            assert self.order.url is not None
            self._pace.wait(self.order.url, retry_after or 0.0)
            return ca_order
        left = (self.order.poll_after - self._clock.now()) if self.order.poll_after else timedelta(0)
        if left <= POLL_AFTER_AT_MOST:
            self._pace.wait(url, left.total_seconds())
        await self._when_allowed(url)
        try:
            fetched = await self._client.order(url)
        except CaRefused as refusal:
            if refusal.problem is None or refusal.problem.status not in (404, 410):
                raise
            self._log.warning("order.gone_at_ca", url=url)
            await self._record.forget_ca_order(self._tools.budgets.gave_nothing(self.order, self._account))
            raise CaMisbehaved("the CA does not know its own order any more; a new one will be made") from refusal
        return self._seen(fetched)

    def _seen(self, fetched: Fetched) -> wire.Order:
        assert self.order.url is not None
        self._pace.heard(fetched, self.order.url)
        return wire.order_from(fetched.body)

    async def _refresh(self) -> None:
        assert self.order.url is not None
        await self._when_allowed(self.order.url)
        seen = self._seen(await self._client.order(self.order.url))
        if seen.status != self._state.order.status:
            self._pause_seconds = FIRST_PAUSE_SECONDS
        self._look(order=seen)

    async def _when_allowed(self, *urls: str) -> None:
        """Wait for the CA's Retry-After of these; what takes long is waited for without a place."""
        if (left := self._pace.left(*urls)) > 0:
            await self._sleep(left)

    async def _sleep(self, seconds: float) -> None:
        if seconds > PARK_SECONDS:
            raise Parked(seconds)
        if seconds >= REMEMBERED_SECONDS:
            await self._record.commit(poll_after=self._clock.now() + timedelta(seconds=seconds))
        if seconds < LENT_SECONDS:
            await self._clock.sleep(seconds)
            return
        async with self._place.lent():
            await self._clock.sleep(seconds)

    async def _read(self, urls: Sequence[str]) -> None:
        settled = self._state.order.status == "invalid"
        read = await side_by_side([self._authorization(url) for url in urls])
        kept = () if settled else self._state.authorizations
        self._look(authorizations=(*kept, *read), settled=settled)

    async def _authorization(self, url: str) -> Authorization:
        await self._when_allowed(url)
        fetched = await self._client.authorization(url)
        self._pace.heard(fetched, url)
        return wire.authorization_from(fetched.body, url)

    # Step 5: what will be answered is written down before it is presented, presented before it is answered.
    async def _prove(self, challenges: Sequence[wire.Challenge], identifiers: Sequence[str]) -> None:
        responses = {
            challenge.url: ChallengeResponse(
                identifier=identifier,
                type=challenge.type,
                token=challenge.token or "",
                key_authorization=key_authorization_for(challenge.token or "", self._client.key),
                order_id=self.order.id,
                dns_provider=self.order.dns_provider,
            )
            for challenge, identifier in zip(challenges, identifiers, strict=True)
        }
        await self._journal(challenges, responses)
        await self._present(responses)
        self._look(responses={**self._state.responses, **dict.fromkeys(responses, 0)})
        # One that the CA is working on already (after a restart) must only be there again.
        await self._respond([challenge for challenge in challenges if challenge.status == "pending"])

    async def _present(self, responses: Mapping[str, ChallengeResponse]) -> None:
        if not self._presence.may_wait:
            await self._presence.present(responses)
            await self._look_at_ourselves(responses)
            return
        async with self._place.given_up():
            await self._presence.present(responses)
        # What the name servers said stays in the order, whatever becomes of this process.
        if (reports := self._tools.records.reports(self.order.id)) != self.order.dns_records:
            await self._record.commit(dns_records=reports)
        await self._look_at_ourselves(responses)

    async def _look_at_ourselves(self, responses: Mapping[str, ChallengeResponse]) -> None:
        if verdicts := await self._tools.preflight.before_answer(self.order, responses):
            before = (each for each in self.order.preflight if each.check != "reachability")
            await self._record.commit(preflight=(*before, *verdicts))

    async def _journal(self, challenges: Sequence[wire.Challenge], responses: Mapping[str, ChallengeResponse]) -> None:
        known = {each.url: each for each in self.order.challenges}
        new = tuple(
            Challenge(
                identifier=responses[each.url].identifier,
                type=each.type,
                url=each.url,
                status=each.status,
                token=each.token or "",
                key_authorization=responses[each.url].key_authorization,
            )
            for each in challenges
            if each.url not in known or known[each.url].key_authorization != responses[each.url].key_authorization
        )
        if new:
            # Another account key makes other key authorizations of the same tokens (RFC 8555 section 8.1).
            replaced = {each.url for each in new}
            kept = (each for each in self.order.challenges if each.url not in replaced)
            await self._record.commit(challenges=(*kept, *new))

    async def _respond(self, challenges: Sequence[wire.Challenge]) -> None:
        answered = await side_by_side([self._respond_to(challenge) for challenge in challenges])
        counted = dict(self._state.responses)
        for challenge in challenges:
            counted[challenge.url] = counted.get(challenge.url, 0) + 1
        self._look(responses=counted, authorizations=_with_challenges(self._state.authorizations, answered))
        self._pause_seconds = FIRST_PAUSE_SECONDS

    async def _answer_again(self, challenges: Sequence[wire.Challenge]) -> None:
        # Whatever the CA did not see may need a moment to be there: one second, then two, then four.
        answered = max(self._state.responses[each.url] for each in challenges)
        self._pause_seconds = 0.5 * 2**answered
        await self._pause()
        await self._respond(challenges)
        self._look_closer_seconds = LOOK_AGAIN_SECONDS
        self._look_closer_at = self._clock.monotonic() + LOOK_AGAIN_SECONDS

    async def _respond_to(self, challenge: wire.Challenge) -> wire.Challenge:
        try:
            fetched = await self._client.respond(challenge.url)
        except BackendRateLimited:
            raise
        except CaRefused as refusal:
            # It may be decided already, and a decided challenge takes no answer: what does the CA show now?
            now = await self._challenge_now(challenge)
            if now == challenge:
                raise
            self._log.debug("challenge.decided_meanwhile", detail=refusal.detail)
            return now
        # It speaks of the challenge, which is seen in its authorization and decides the order.
        if fetched.retry_after:
            for url in (self._authorization_of(challenge), self.order.url):
                if url is not None:
                    self._pace.wait(url, fetched.retry_after)
        return wire.challenge_from(fetched.body) or challenge

    async def _challenge_now(self, challenge: wire.Challenge) -> wire.Challenge:
        url = self._authorization_of(challenge)
        if url is None:
            return challenge
        seen = await self._authorization(url)
        return next((each for each in seen.challenges if each.url == challenge.url), challenge)

    def _authorization_of(self, challenge: wire.Challenge) -> str | None:
        return next(
            (
                each.url
                for each in self._state.authorizations
                if any(offered.url == challenge.url for offered in each.challenges)
            ),
            None,
        )

    async def _poll(self) -> None:
        if self._clock.now() >= patience_end(self.order):
            await self._note_processing()
        if self._clock.now() >= patience_end(self.order):
            raise Timeout(await self._what_it_waits_for())
        await self._pause()
        await self._refresh()
        await self._note_processing()
        if self._state.order.status == "pending" and self._clock.monotonic() >= self._look_closer_at:
            await self._look_closer()

    async def _note_processing(self) -> None:
        """Write down that the CA is at work: its order has more patience then. `ready` is not worth a commit."""
        if self._state.order.status == "processing" and self.order.status != "processing":
            await self._record.commit(status="processing")

    async def _look_closer(self) -> None:
        """Read the undecided authorizations: some CAs leave a failed challenge pending, and the order with it."""
        self._look_closer_seconds *= 2
        self._look_closer_at = self._clock.monotonic() + self._look_closer_seconds
        # Those that the CA does not want to be asked about yet are read the next time.
        undecided = [
            each.url
            for each in self._state.authorizations
            if each.status == "pending" and not self._pace.left(each.url)
        ]
        read = {each.url: each for each in await side_by_side([self._authorization(url) for url in undecided])}
        self._look(authorizations=tuple(read.get(each.url, each) for each in self._state.authorizations))

    async def _what_it_waits_for(self) -> str:
        await self._look_closer()
        seen = [
            f"{authorization.identifier}: {challenge.error.detail}"
            for authorization in self._state.authorizations
            for challenge in authorization.challenges
            if challenge.error is not None
        ]
        status = self._state.order.status
        return "; ".join([f"the CA still shows the order as {status}, and no patience is left", *seen[:3]])

    async def _pause(self) -> None:
        # The CA's Retry-After beats our own pace; never ask earlier.
        assert self.order.url is not None
        wanted = self._pace.left(self.order.url) or self._pause_seconds
        self._pause_seconds = min(self._pause_seconds * 1.8, LONGEST_PAUSE_SECONDS)
        if wanted >= NOTED_SECONDS:
            await self._note_processing()
        await self._sleep(wanted)

    # Step 6: the CSR of the stored key; after any doubt the order is read, and decides.
    async def _finalize(self) -> None:
        url = self._state.order.finalize or self.order.finalize_url
        if url is None:
            raise CaMisbehaved("the CA's order has no finalize URL")
        await self._when_allowed(url)
        csr = await self._harvest.csr()
        try:
            self._look(order=self._seen(await self._client.finalize(url, csr)))
            if self._state.order.status == "ready":
                raise CaMisbehaved("the CA took the CSR and shows the order as ready all the same")
        except (CaUnavailable, CaMisbehaved) as doubt:
            if isinstance(doubt, CaUnavailable) and doubt.retry_after is not None:
                self._pace.wait(url, doubt.retry_after)
            await self._doubt(doubt)
        except CaRefused as refusal:
            if refusal.problem is None or refusal.problem.name != "orderNotReady":
                raise
            await self._doubt(refusal)
        self._pause_seconds = FIRST_PAUSE_SECONDS

    async def _doubt(self, error: CaRefused | CaUnavailable) -> None:
        self._doubts += 1
        if self._doubts > DOUBTS_MAX:
            raise error
        self._log.info("order.finalize_doubtful", detail=error.detail)
        await self._clock.sleep(self._pause_seconds * (1 + self._tools.randomness.fraction()))
        await self._refresh()

    async def _download(self, url: str) -> None:
        certificate = await self._harvest.download(url, self._final_challenges("valid"))
        self._count_challenges()
        self._tools.budgets.left(self.order.id)
        self._tools.breakers.worked(self._account.id)
        self._tools.renewals.tell(certificate.id)
        self._log.info(
            "certificate.issued" if certificate.version == 1 else "certificate.renewed",
            certificate_id=certificate.id,
            version=certificate.version,
            names=[str(each) for each in certificate.identifiers],
            serial_number=certificate.serial_number,
            not_after=certificate.not_after.isoformat(),
        )

    @property
    def _harvest(self) -> Harvest:
        return Harvest(self._tools, self._record, self._account, self._client, self._log)

    async def _give_up(self, trouble: Trouble) -> None:
        if trouble.identifiers and self._presence.was_away and not any(self._state.responses.values()):
            await self._begin_again(trouble)
        fields = {"challenges": self._final_challenges("invalid"), "evidence": await self._evidence(trouble)}
        await self._failing.give_up(trouble, **fields, **self._manners())
        self._count_challenges()

    def _count_challenges(self) -> None:
        provider = self._tools.records.provider_type(self.order.id) or self._presence.solver_name
        for each in self.order.challenges:
            if each.status in ("valid", "invalid"):
                metrics.CHALLENGES.labels(type=each.type, provider=provider, result=each.status).inc()

    async def _evidence(self, trouble: Trouble) -> tuple[Evidence, ...]:
        """What we see of the refused names, as long as our answers are still there to be seen."""
        if trouble.code != "challenge_failed" or not self.order.challenges:
            return ()
        async with self._place.lent():
            return await self._tools.witness.look(self.order, self._account, trouble)

    def _manners(self) -> dict[str, Any]:
        """What the CA's Retry-After forbids whoever asks next: another attempt, or the clean-up at the CA."""
        left = self._pace.left_of_all()
        return {"poll_after": self._clock.now() + timedelta(seconds=left)} if left > 0 else {}

    async def _begin_again(self, trouble: Trouble) -> None:
        """The CA looked while we were down: that says nothing about the names, so they get a new order."""
        self._presence.was_away = False
        await self._record.forget_ca_order(self._tools.budgets.gave_nothing(self.order, self._account))
        self._log.warning("order.begun_again", detail=f"the CA validated during a restart: {trouble.detail}")
        raise Parked(BEGIN_AGAIN_SECONDS)

    def _final_challenges(self, fallback: str) -> tuple[Challenge, ...]:
        """The journalled challenges with the state the CA showed last; decided ones never look pending."""
        shown = {each.url: each.status for found in self._state.authorizations for each in found.challenges}
        states = {
            each.url: fallback if shown.get(each.url, "pending") in ("pending", "processing") else shown[each.url]
            for each in self.order.challenges
        }
        return tuple(msgspec.structs.replace(each, status=states[each.url]) for each in self.order.challenges)

    @property
    def _client(self) -> CaClient:
        assert self._acme is not None
        return self._acme

    @property
    def _state(self) -> View:
        assert self._view is not None
        return self._view

    def _look(self, **changes: Any) -> None:
        self._view = msgspec.structs.replace(self._state, **changes)
        self._tools.seen[self.order.id] = _statuses(self._view)


def _statuses(view: View) -> dict[str, str]:
    is_proven = view.order.status in ("ready", "processing", "valid")
    return {
        challenge.url: "valid" if is_proven else challenge.status
        for authorization in view.authorizations
        for challenge in authorization.challenges
        if challenge.type == view.challenge_type
    }


def _with_challenges(
    authorizations: Sequence[Authorization], changed: Sequence[wire.Challenge]
) -> tuple[Authorization, ...]:
    by_url = {each.url: each for each in changed}
    return tuple(
        msgspec.structs.replace(found, challenges=tuple(by_url.get(each.url, each) for each in found.challenges))
        for found in authorizations
    )

"""One attempt at one order: does what `acme/issuance.next_step` says, in the write order that survives kill -9.

Every step that asks something of the CA is written down first, or can be found again by asking the
CA (`docs/architecture.md`, write order). A commit that meets another revision means that somebody
else has the order now: the attempt ends without a word.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakValueDictionary

import msgspec

from scaivaultd.acme import issuance, wire, x509
from scaivaultd.acme.issuance import AnswerAgain, Download, Finalize, GiveUp, PollOrder, Prove, Read, View
from scaivaultd.acme.signing import key_authorization_for
from scaivaultd.api import events
from scaivaultd.model.errors import (
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    CertificatePending,
    Internal,
    RevisionConflict,
    ScaivaultError,
    Timeout,
)
from scaivaultd.model.names import name_set_key
from scaivaultd.model.resources import Account, Certificate, Challenge, NamePointer, Order, SealedKey, Trouble
from scaivaultd.model.storage import ABSENT
from scaivaultd.plugin import ChallengeResponse
from scaivaultd.services import setbacks
from scaivaultd.services.documents import (
    CERTIFICATES,
    KEYS,
    NAME_POINTERS,
    ORDERS,
    Versioned,
    digest,
    name_pointer_id,
)
from scaivaultd.services.jobs import side_by_side, unbroken
from scaivaultd.services.setbacks import Memory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.acme.wire import Authorization
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.ids import CertificateId, IdMaker, NodeId
    from scaivaultd.model.storage import Change, OutboxEvent
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.budgets import Budgets
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
GRACE_SECONDS = 3.0
DOUBTS_MAX = 3
ORPHANS_MAX = 50
"""How many orders of the account are looked at for one whose newOrder answer was lost."""
PROCESSING_PATIENCE = timedelta(hours=24)
"""Some CAs process for hours; an order in that state is kept, never replaced by a new one (RFC 8555 section 7.4)."""


class Parked(Exception):
    """The CA wants a long pause; nothing is wrong."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"parked for {seconds:.0f} s")
        self.seconds = seconds


class Superseded(Exception):
    """Somebody else changed the order: it is theirs now."""


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What every attempt works with."""

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
    asking: Asking = msgspec.field(default_factory=lambda: Asking())


class Asking:
    """One newOrder at a time for the same names and account: what one request is just getting is no orphan."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, order: Order) -> asyncio.Lock:
        """The lock of these names; it lives as long as somebody holds it."""
        return self._locks.setdefault(digest(order.account_id, name_set_key(order.identifiers)), asyncio.Lock())


class Place:
    """A place in the queue of a CA; given up while an order waits for something else than the CA."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._held = False

    async def __aenter__(self) -> Self:
        await self._take()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._give()

    @asynccontextmanager
    async def given_up(self) -> AsyncIterator[None]:
        """Let another order have it, and queue up again afterwards."""
        self._give()
        yield
        await self._take()

    async def _take(self) -> None:
        await self._places.acquire()
        self._held = True

    def _give(self) -> None:
        if self._held:
            self._held = False
            self._places.release()


class Pursuit:
    """An attempt, from claiming the order to its end or the next setback.

    `order` is always the order as last committed. `run` raises `ScaivaultError` for a setback,
    `Parked` for a pause, `Superseded` when the order has another owner.
    """

    def __init__(
        self, tools: Tools, order: Versioned[Order], account: Account, presence: Presence, place: Place
    ) -> None:
        self._tools = tools
        self._clock = tools.clock
        self._log = tools.log.bind(order_id=order.value.id, attempt=order.value.attempt + 1)
        self._current = order
        self._account = account
        self._presence = presence
        self._place = place
        self._acme: CaClient | None = None
        self._view: View | None = None
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._retry_after: float | None = None
        self._look_closer_seconds = LOOK_CLOSER_SECONDS
        self._look_closer_at = self._clock.monotonic() + LOOK_CLOSER_SECONDS
        self._doubts = 0
        self._may_have_asked = False

    @property
    def order(self) -> Order:
        """The order as last committed."""
        return self._current.value

    async def run(self) -> None:
        """Pursue the order to `valid` or `invalid`."""
        _require_registered(self._account)
        self._acme = await self._tools.accounts.client(self._account)
        await self._claim()
        self._view = View(order=await self._ca_order(), challenge_type=self.order.challenge_type)
        while await self._take(issuance.next_step(self._view)):
            pass

    async def park(self, seconds: float) -> None:
        """Note the pause the CA wants, as far as our patience goes; raises Superseded."""
        next_try_at = min(self._clock.now() + timedelta(seconds=seconds), _patience_end(self.order))
        await self._commit(next_try_at=next_try_at)
        self._log.info("order.parked", next_try_at=next_try_at.isoformat())

    async def set_back(self, error: ScaivaultError) -> None:
        """Note what went wrong, and when it goes on or that it does not; raises Superseded."""
        order, now = self.order, self._clock.now()
        memory = Memory(attempt=order.attempt, misbehaved=order.misbehaved, give_up_at=_patience_end(order))
        verdict = setbacks.judge(error, memory, now=now, fraction=self._tools.randomness.fraction())
        needs_person = isinstance(error, CaRefused) and setbacks.needs_person(error)
        first_time = needs_person and (order.error is None or order.error.acme != verdict.trouble.acme)
        queued = [events.account_action_required(self._account, order, verdict.trouble, now)] if first_time else []
        noted: dict[str, Any] = {
            "error": verdict.trouble,
            "attempt": verdict.attempt,
            "misbehaved": verdict.misbehaved,
            "next_try_at": verdict.next_try_at,
        }
        if verdict.next_try_at is None:
            await self._end(status="invalid", **noted)
            self._log.error("order.failed", error_code=error.code, detail=error.detail)
            return
        if needs_person:
            # The time somebody takes to act is not the CA's.
            noted["give_up_at"] = order.give_up_at + (verdict.next_try_at - now)
        await self._commit((), queued, **noted)
        self._log.warning(
            "order.set_back",
            error_code=error.code,
            detail=error.detail,
            next_try_at=verdict.next_try_at.isoformat(),
        )

    async def _end(self, **fields: Any) -> None:
        """The last commit of an order without a certificate, with its event."""
        fields["dns_records"] = self._tools.records.reports(self.order.id) or self.order.dns_records
        failed = msgspec.structs.replace(self.order, owner=None, **fields)
        await self._commit((), [events.order_failed(failed, self._clock.now())], owner=None, **fields)

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

    # Write order, steps 2 and 3: the order is ours, and its key exists before anything is asked of the CA.
    async def _claim(self) -> None:
        changes: list[Change] = []
        key_id = self.order.key_id
        if key_id is None:
            key_id = self._tools.ids.key()
            private_key = await asyncio.to_thread(x509.make_key, self.order.key_type)
            changes.append(
                KEYS.put(
                    SealedKey(
                        id=key_id,
                        key_type=self.order.key_type,
                        sealed=self._tools.sealer.seal(private_key, KEYS.key(key_id), "private_key"),
                        created_at=self._clock.now(),
                    )
                )
            )
        self._may_have_asked = self.order.asked
        await self._commit(
            changes, owner=self._tools.node_id, epoch=self.order.epoch + 1, key_id=key_id, next_try_at=None, asked=True
        )

    # Step 4: one issuance, one newOrder; a known order is looked at, never made again.
    async def _ca_order(self) -> wire.Order:
        if self.order.url is None:
            async with self._tools.asking.lock(self.order):
                orphan = await self._orphan() if self._may_have_asked else None
                return await unbroken(self._new_order(), GRACE_SECONDS) if orphan is None else orphan
        try:
            fetched = await self._client.order(self.order.url)
        except CaRefused as refusal:
            if refusal.problem is None or refusal.problem.status not in (404, 410):
                raise
            self._log.warning("order.gone_at_ca", url=self.order.url)
            await self._forget_ca_order()
            raise CaMisbehaved("the CA does not know its own order any more; a new one will be made") from refusal
        return self._seen(fetched)

    async def _forget_ca_order(self) -> None:
        await self._commit(
            url=None, finalize_url=None, certificate_url=None, challenges=(), status="pending", asked=False
        )

    async def _new_order(self) -> wire.Order:
        try:
            fetched = await self._client.new_order(self.order.identifiers)
        except CaMisbehaved:
            raise
        except CaRefused:
            # A clear no: there is no order to look for.
            await self._commit(asked=False)
            raise
        if await self._is_held(fetched.url):
            # Boulder answers with a pending order that is there for the same names: it has one key and one CSR.
            await self._commit(asked=False)
            raise CaUnavailable(
                "the CA wants to finish an order of another request for the same names first; waiting for it"
            )
        ca_order = wire.order_from(fetched.body)
        await self._take_over(fetched.url, ca_order)
        self._log.info("order.created", url=fetched.url)
        return ca_order

    async def _is_held(self, url: str) -> bool:
        """Whether another order of ours has that URL."""
        found = await ORDERS.page(self._tools.store, where={"url": digest(url)}, cursor=None, limit=2)
        return any(each.value.id != self.order.id for each in found.items)

    async def _take_over(self, url: str, ca_order: wire.Order) -> None:
        await self._commit(url=url, finalize_url=ca_order.finalize, expires_at=ca_order.expires)

    async def _orphan(self) -> wire.Order | None:
        """The order an earlier newOrder left behind, its answer lost; None where the CA lists none for us."""
        wanted = frozenset((each.type, each.value) for each in self.order.identifiers)
        for url in (await self._order_urls())[-ORPHANS_MAX:]:
            # An order that another request of ours has is no orphan.
            if await self._is_held(url):
                continue
            ca_order = wire.order_from((await self._client.order(url)).body)
            if ca_order.identifiers == wanted and ca_order.status in ("pending", "ready"):
                await self._take_over(url, ca_order)
                self._log.info("order.adopted", url=url)
                return ca_order
        return None

    async def _order_urls(self) -> Sequence[str]:
        try:
            return await self._client.order_urls()
        except CaRefused as refusal:
            # The list is optional, and absent in many ways: asking anew leaves one order behind at the most.
            self._log.debug("order.list_refused", detail=refusal.detail)
            return ()

    def _seen(self, fetched: Fetched) -> wire.Order:
        self._retry_after = fetched.retry_after
        return wire.order_from(fetched.body)

    async def _refresh(self) -> None:
        assert self.order.url is not None
        seen = self._seen(await self._client.order(self.order.url))
        if seen.status != self._state.order.status:
            self._pause_seconds = FIRST_PAUSE_SECONDS
        self._look(order=seen)

    async def _read(self, urls: Sequence[str]) -> None:
        settled = self._state.order.status == "invalid"
        read = await side_by_side([self._authorization(url) for url in urls])
        kept = () if settled else self._state.authorizations
        self._look(authorizations=(*kept, *read), settled=settled)

    async def _authorization(self, url: str) -> Authorization:
        return wire.authorization_from((await self._client.authorization(url)).body, url)

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
            return
        async with self._place.given_up():
            await self._presence.present(responses)
        # What the name servers said stays in the order, whatever becomes of this process.
        if (reports := self._tools.records.reports(self.order.id)) != self.order.dns_records:
            await self._commit(dns_records=reports)

    async def _journal(self, challenges: Sequence[wire.Challenge], responses: Mapping[str, ChallengeResponse]) -> None:
        known = {each.url for each in self.order.challenges}
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
            if each.url not in known
        )
        if new:
            await self._commit(challenges=(*self.order.challenges, *new))

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
        self._retry_after = max(filter(None, (self._retry_after, fetched.retry_after)), default=None)
        return wire.challenge_from(fetched.body) or challenge

    async def _challenge_now(self, challenge: wire.Challenge) -> wire.Challenge:
        for authorization in self._state.authorizations:
            if any(each.url == challenge.url for each in authorization.challenges):
                seen = await self._authorization(authorization.url)
                return next((each for each in seen.challenges if each.url == challenge.url), challenge)
        return challenge

    async def _poll(self) -> None:
        if self._clock.now() >= _patience_end(self.order):
            raise Timeout(await self._what_it_waits_for())
        await self._pause()
        await self._refresh()
        if self._state.order.status in ("ready", "processing") and self.order.status != self._state.order.status:
            await self._commit(status=self._state.order.status)
        if self._state.order.status == "pending" and self._clock.monotonic() >= self._look_closer_at:
            await self._look_closer()

    async def _look_closer(self) -> None:
        """Read the undecided authorizations: some CAs leave a failed challenge pending, and the order with it."""
        self._look_closer_seconds *= 2
        self._look_closer_at = self._clock.monotonic() + self._look_closer_seconds
        undecided = [each.url for each in self._state.authorizations if each.status == "pending"]
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
        # The CA's Retry-After beats our own pace; never ask earlier. Zero says nothing.
        wanted = self._retry_after or self._pause_seconds
        self._retry_after = None
        if wanted > PARK_SECONDS:
            raise Parked(wanted)
        self._pause_seconds = min(self._pause_seconds * 1.8, LONGEST_PAUSE_SECONDS)
        await self._clock.sleep(wanted)

    # Step 6: the CSR of the stored key; after any doubt the order is read, and decides.
    async def _finalize(self) -> None:
        url = self._state.order.finalize or self.order.finalize_url
        if url is None:
            raise CaMisbehaved("the CA's order has no finalize URL")
        csr = x509.csr_der(await self._private_key(), self.order.identifiers)
        try:
            self._look(order=self._seen(await self._client.finalize(url, csr)))
            if self._state.order.status == "ready":
                raise CaMisbehaved("the CA took the CSR and shows the order as ready all the same")
        except (CaUnavailable, CaMisbehaved) as doubt:
            await self._doubt(doubt)
        except CaRefused as refusal:
            if refusal.problem is None or refusal.problem.name != "orderNotReady":
                raise
            await self._doubt(refusal)
        self._pause_seconds = FIRST_PAUSE_SECONDS
        if self._state.order.status == "processing" and self.order.status != "processing":
            await self._commit(status="processing")

    async def _doubt(self, error: CaRefused | CaUnavailable) -> None:
        self._doubts += 1
        if self._doubts > DOUBTS_MAX:
            raise error
        self._log.info("order.finalize_doubtful", detail=error.detail)
        await self._clock.sleep(self._pause_seconds * (1 + self._tools.randomness.fraction()))
        await self._refresh()

    async def _private_key(self) -> bytes:
        key_id = self.order.key_id
        stored = await KEYS.get(self._tools.store, key_id) if key_id else None
        if key_id is None or stored is None:
            raise Internal(f"the private key of order {self.order.id} is missing from the store")
        return self._tools.sealer.open(stored.value.sealed, KEYS.key(key_id), "private_key")

    # Step 7: judged, then certificate, name pointer, order and event in one commit.
    async def _download(self, url: str) -> None:
        if self.order.certificate_url is None:
            await self._commit(certificate_url=url, status="processing")
        body = await self._certificate_body(url)
        now = self._clock.now()
        chain = x509.check_chain(body, await self._private_key(), self.order.identifiers, now)
        if not chain.has_authority_key_identifier:
            self._log.warning("certificate.no_authority_key_identifier", serial_number=chain.serial_number)
        certificate = self._certificate(chain)
        await self._store_certificate(certificate)
        self._log.info(
            "certificate.issued",
            certificate_id=certificate.id,
            names=[str(each) for each in certificate.identifiers],
            serial_number=certificate.serial_number,
            not_after=certificate.not_after.isoformat(),
        )

    async def _certificate_body(self, url: str) -> bytes:
        for pause in (0.2, 0.5, 1.0, 2.0):
            try:
                return await self._client.certificate(url)
            except CertificatePending:
                # The URL may lag behind the order's state.
                self._log.debug("certificate.not_there_yet")
                await self._clock.sleep(pause)
        return await self._client.certificate(url)

    def _certificate(self, chain: x509.Chain) -> Certificate:
        assert self.order.key_id is not None
        return Certificate(
            id=self._tools.ids.certificate(),
            order_id=self.order.id,
            account_id=self.order.account_id,
            identifiers=self.order.identifiers,
            challenge_type=self.order.challenge_type,
            key_type=self.order.key_type,
            key_id=self.order.key_id,
            version=1,
            status="valid",
            auto_renew=self.order.auto_renew,
            serial_number=chain.serial_number,
            fingerprint_sha256=chain.fingerprint_sha256,
            issuer=chain.issuer,
            not_before=chain.not_before,
            not_after=chain.not_after,
            chain_pem=chain.pem,
            created_at=self._clock.now(),
        )

    async def _store_certificate(self, certificate: Certificate) -> None:
        pointer_id = name_pointer_id(certificate.identifiers, certificate.key_type)
        pointer = NamePointer(certificate_id=certificate.id, version=certificate.version)
        while True:
            held = await NAME_POINTERS.get(self._tools.store, pointer_id)
            revision = ABSENT if held is None else held.revision
            try:
                await self._commit(
                    [CERTIFICATES.put(certificate), NAME_POINTERS.put_at(pointer_id, pointer, revision)],
                    [events.certificate_issued(certificate, self.order, self._clock.now())],
                    status="valid",
                    owner=None,
                    certificate_id=certificate.id,
                    not_after=certificate.not_after,
                    error=None,
                    challenges=self._final_challenges("valid"),
                )
                return
            except RevisionConflict as conflict:
                if conflict.key != NAME_POINTERS.key(pointer_id):
                    raise
                # Another order for the same names was faster by a moment: the pointer moves on to ours.

    async def _give_up(self, trouble: Trouble) -> None:
        if trouble.identifiers and self._presence.was_away and not any(self._state.responses.values()):
            await self._begin_again(trouble)
        await self._end(status="invalid", error=trouble, next_try_at=None, challenges=self._final_challenges("invalid"))
        self._log.error("order.failed", error_code=trouble.code, detail=trouble.detail)

    async def _begin_again(self, trouble: Trouble) -> None:
        """The CA looked while we were down: that says nothing about the names, so they get a new order."""
        self._presence.was_away = False
        await self._forget_ca_order()
        raise CaUnavailable(f"the CA validated while the daemon was restarting ({trouble.detail}); trying anew")

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

    async def _commit(self, changes: Sequence[Change] = (), queued: Sequence[OutboxEvent] = (), **fields: Any) -> None:
        order = msgspec.structs.replace(self.order, **fields)
        key = ORDERS.key(order.id)
        try:
            revisions = await self._tools.store.commit([*changes, ORDERS.put(order, self._current.revision)], queued)
        except RevisionConflict as conflict:
            if conflict.key == key:
                raise Superseded from conflict
            raise
        self._current = Versioned(order, revisions[key])


def _patience_end(order: Order) -> datetime:
    # Only while the CA itself is at work: one that has finished and does not hand out the certificate is not.
    at_work = order.status == "processing" and order.certificate_url is None
    return order.created_at + PROCESSING_PATIENCE if at_work else order.give_up_at


def _require_registered(account: Account) -> None:
    if account.status == "pending":
        raise CaUnavailable(f"account {account.id} is not registered at its CA yet")
    if account.status != "valid":
        why = f": {account.error.detail}" if account.error else ""
        problem = account.error.acme if account.error else None
        raise CaRefused(f"account {account.id} is {account.status}{why}", problem)


def _with_challenges(
    authorizations: Sequence[Authorization], changed: Sequence[wire.Challenge]
) -> tuple[Authorization, ...]:
    by_url = {each.url: each for each in changed}
    return tuple(
        msgspec.structs.replace(found, challenges=tuple(by_url.get(each.url, each) for each in found.challenges))
        for found in authorizations
    )

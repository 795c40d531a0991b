"""From an order of ours to an order at the CA: claimed, paid for, asked for once, found again (write order, 2 to 4)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.acme import exchange, wire, x509
from scaivaultd.model.errors import CaMisbehaved, CaRefused, CaUnavailable, Problem, RevisionConflict
from scaivaultd.model.resources import UNFINISHED, SealedKey
from scaivaultd.services.documents import CERTIFICATES, KEYS, ORDERS, RENEWALS, digest
from scaivaultd.services.jobs import unbroken
from scaivaultd.services.order_record import Superseded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.resources import Account, Order, PreflightVerdict, RenewalWindow
    from scaivaultd.model.storage import Change
    from scaivaultd.services.order_record import OrderRecord
    from scaivaultd.services.ports import CaClient
    from scaivaultd.services.pursuit import Tools

GRACE_SECONDS = 3.0
ORPHANS_MAX = 50
"""How many orders of the account are looked at for one whose newOrder answer was lost."""


class Ordering:
    """The first part of an attempt. `claim` comes first, then `new_order` for an order that has no URL yet."""

    def __init__(
        self, tools: Tools, record: OrderRecord, account: Account, client: CaClient, log: FilteringBoundLogger
    ) -> None:
        self._tools = tools
        self._record = record
        self._account = account
        self._client = client
        self._log = log
        self._may_have_asked = record.order.asked

    @property
    def _order(self) -> Order:
        return self._record.order

    async def claim(self) -> None:
        """Make the order ours, with its key and with all that newOrder will say, in one commit before the CA is asked.

        Raises:
            Held: it is not its turn; nothing is claimed.
            PreflightFailed: a check forbids it.
            CaRefused: it requires a profile that the CA does not have.
        """
        fields: dict[str, Any] = {}
        changes: list[Change] = []
        if self._order.key_id is None and self._order.csr_der is None:
            key, fields["key_id"] = await self._fresh_key()
            changes.append(key)
        if self._order.url is None and not self._order.asked:
            # The spending comes last: what it writes is the ledger as of now.
            asking, spent = await self._asking()
            fields.update(asking)
            changes += spent
        await self._record.commit(
            changes,
            owner=self._tools.node_id,
            epoch=self._order.epoch + 1,
            next_try_at=None,
            queued=None,
            **fields,
        )
        self._tools.budgets.left(self._order.id)

    async def _asking(self) -> tuple[dict[str, Any], list[Change]]:
        """What will stand in the order once newOrder may have been sent."""
        verdicts: Sequence[PreflightVerdict] = await self._tools.preflight.before_order(self._order, self._account)
        profile, warnings = await self._profile()
        replaces, window = await self._predecessor()
        spent = self._tools.budgets.spend(self._order, self._account, replaces=replaces, window=window)
        fields = {
            "asked": True,
            "spent_at": self._tools.clock.now(),
            "preflight": tuple(verdicts),
            "replaces": replaces,
            "profile_sent": profile,
            "warnings": tuple(dict.fromkeys((*self._order.warnings, *warnings))),
        }
        return fields, list(spent)

    async def _profile(self) -> tuple[str | None, tuple[str, ...]]:
        """The profile to ask for: only one that the CA advertises (draft-ietf-acme-profiles, section 4)."""
        wanted = self._order.profile
        if wanted is None:
            return None, ()
        offered = (await self._client.directory()).profiles
        if wanted in offered:
            return wanted, ()
        there = ", ".join(sorted(offered)) or "none at all"
        detail = f"the CA does not offer the profile {wanted!r}; it offers {there}"
        if self._order.profile_is_required:
            raise CaRefused(detail, Problem(type="urn:ietf:params:acme:error:invalidProfile", detail=detail))
        return None, (f"{detail}; ordered without a profile",)

    async def _predecessor(self) -> tuple[str | None, RenewalWindow | None]:
        """What newOrder says in `replaces` (RFC 9773 section 5), and the CA's window for it."""
        order = self._order
        if order.renews is None or order.replaces_refused:
            return None, None
        certificate = await CERTIFICATES.get(self._tools.store, order.renews)
        if certificate is None:
            return None, None
        predecessor = certificate.value
        is_ours = predecessor.account_id == self._account.id and predecessor.version == order.renews_version
        shares_a_name = not set(order.identifiers).isdisjoint(predecessor.identifiers)
        if predecessor.ari_id is None or not is_ours or not shares_a_name:
            return None, None
        if (await self._client.directory()).renewal_info is None:
            return None, None
        renewal = await RENEWALS.get(self._tools.store, order.renews)
        point = renewal.value.point if renewal is not None else None
        return predecessor.ari_id, point.window if point is not None else None

    async def _fresh_key(self) -> tuple[Change, str]:
        order = self._order
        key_id = self._tools.ids.key()
        private_key = await _made_key(order)
        sealed = self._tools.sealer.seal(private_key, KEYS.key(key_id), "private_key")
        now = self._tools.clock.now()
        return KEYS.put(SealedKey(id=key_id, key_type=order.key_type, sealed=sealed, created_at=now)), key_id

    async def new_order(self) -> tuple[wire.Order, float | None]:
        """One issuance, one newOrder: the order at the CA and its Retry-After. One whose answer was lost is found."""
        async with self._tools.asking.lock(self._order):
            orphan = await self._orphan() if self._may_have_asked else None
            if orphan is not None:
                return orphan
            return await unbroken(self._ask(), GRACE_SECONDS)

    async def _ask(self) -> tuple[wire.Order, float | None]:
        try:
            fetched = await self._send()
        except CaMisbehaved:
            raise
        except (CaRefused, CaUnavailable) as error:
            if isinstance(error, CaRefused) or error.turned_away:
                # A clear no: there is no order to look for.
                await self._record.commit(asked=False)
            raise
        if await self._is_held(fetched.url):
            # Boulder answers with a pending order that is there for the same names: it has one key and one CSR.
            await self._record.commit(asked=False)
            raise CaUnavailable(
                "the CA wants to finish an order of another request for the same names first; waiting for it"
            )
        ca_order = wire.order_from(fetched.body)
        try:
            await self._take_over(fetched.url, ca_order, fetched.retry_after)
        except Superseded:
            await self._leave_word(fetched.url)
            raise
        sent = {"replaces": self._order.replaces, "profile": self._order.profile_sent}
        self._log.info("order.created", url=fetched.url, **{name: said for name, said in sent.items() if said})
        return ca_order, fetched.retry_after

    async def _leave_word(self, url: str) -> None:
        """The order was ended while newOrder was under way: note what is to be given up at the CA."""
        held = await ORDERS.get(self._tools.store, self._order.id)
        if held is None or held.value.url is not None or held.value.status in UNFINISHED:
            return
        left = msgspec.structs.replace(held.value, url=url, has_open_authorizations=True)
        with suppress(RevisionConflict):
            await self._tools.store.commit([ORDERS.put(left, held.revision)])

    async def _send(self) -> Any:
        order = self._order
        not_after = None
        if order.lifetime_seconds is not None:
            not_after = (order.spent_at or order.created_at) + timedelta(seconds=order.lifetime_seconds)
        try:
            return await self._client.new_order(
                order.identifiers, replaces=order.replaces, profile=order.profile_sent, not_after=not_after
            )
        except CaRefused as refusal:
            fields = self._without(refusal)
            if fields is None:
                raise
            self._log.warning("order.asked_with_less", detail=refusal.detail, without=sorted(fields))
            await self._record.commit(**fields)
        return await self._send()

    def _without(self, refusal: CaRefused) -> dict[str, Any] | None:
        """What to leave out of the next newOrder of this attempt; None when the refusal is about something else."""
        order = self._order
        if order.replaces is not None and exchange.is_about_replaces(refusal):
            return {"replaces": None, "replaces_refused": True}
        is_about_profile = refusal.problem is not None and refusal.problem.name == "invalidProfile"
        if order.profile_sent is not None and is_about_profile and not order.profile_is_required:
            warning = f"the CA refused the profile {order.profile_sent!r}; ordered without one ({refusal.detail})"
            return {"profile_sent": None, "warnings": (*order.warnings, warning)}
        return None

    async def _take_over(self, url: str, ca_order: wire.Order, retry_after: float | None) -> None:
        poll_after = None if not retry_after else self._tools.clock.now() + timedelta(seconds=retry_after)
        fields: dict[str, Any] = {}
        if ca_order.profile is not None and self._order.profile_sent not in (None, ca_order.profile):
            warning = f"the CA made an order for the profile {ca_order.profile!r}, not {self._order.profile_sent!r}"
            fields["warnings"] = (*self._order.warnings, warning)
        await self._record.commit(
            url=url, finalize_url=ca_order.finalize, expires_at=ca_order.expires, poll_after=poll_after, **fields
        )

    async def _is_held(self, url: str) -> bool:
        """Whether another order of ours has that URL."""
        found = await ORDERS.page(self._tools.store, where={"url": digest(url)}, cursor=None, limit=2)
        return any(each.value.id != self._order.id for each in found.items)

    async def _orphan(self) -> tuple[wire.Order, float | None] | None:
        """The order an earlier newOrder left behind, its answer lost; None where the CA lists none for us."""
        wanted = frozenset((each.type, each.value) for each in self._order.identifiers)
        for url in (await self._order_urls())[-ORPHANS_MAX:]:
            # An order that another request of ours has is no orphan.
            if await self._is_held(url):
                continue
            fetched = await self._client.order(url)
            ca_order = wire.order_from(fetched.body)
            if ca_order.identifiers == wanted and ca_order.status in ("pending", "ready") and self._fits(ca_order):
                await self._take_over(url, ca_order, fetched.retry_after)
                self._log.info("order.adopted", url=url)
                return ca_order, fetched.retry_after
        return None

    def _fits(self, ca_order: wire.Order) -> bool:
        """Whether it may be what we asked for; CAs that know neither member echo neither."""
        profile_fits = ca_order.profile is None or self._order.profile_sent in (None, ca_order.profile)
        return profile_fits and ca_order.replaces in (None, self._order.replaces)

    async def _order_urls(self) -> Sequence[str]:
        try:
            return await self._client.order_urls()
        except CaRefused as refusal:
            # The list is optional, and absent in many ways: asking anew leaves one order behind at the most.
            self._log.debug("order.list_refused", detail=refusal.detail)
            return ()


async def _made_key(order: Order) -> bytes:
    if order.key_type.startswith("ec"):
        return x509.make_key(order.key_type)  # some microseconds: a thread would cost more
    return await asyncio.to_thread(x509.make_key, order.key_type)

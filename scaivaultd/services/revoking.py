"""Revocation (RFC 8555 section 7.6): written down first, then done, after a replacement if one is wanted."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import msgspec

from scaivaultd.api import messages as m
from scaivaultd.api.commands import REVOKE
from scaivaultd.model.errors import (
    AccountUnusable,
    BackendRateLimited,
    CaRefused,
    CaUnavailable,
    Conflict,
    Internal,
    NotFound,
    RateLimited,
    RevisionConflict,
    ScaivaultError,
    Timeout,
    UnsupportedChallenge,
)
from scaivaultd.model.resources import RevocationRequest, terms_of
from scaivaultd.services.compromised_keys import marks_for
from scaivaultd.services.documents import REVOCATIONS, Versioned
from scaivaultd.services.idempotency import Repeatable
from scaivaultd.services.issuing import BACKLOG_MAX
from scaivaultd.services.revocation_jobs import RevocationJobs
from scaivaultd.services.revocation_targets import invalid, load, place_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.ids import CertificateId
    from scaivaultd.model.resources import Trouble
    from scaivaultd.model.storage import Put
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.pursuit import Tools
    from scaivaultd.services.revocation_targets import Place, Target
    from scaivaultd.services.waiting import Waiting

REPLACEMENT_PATIENCE = timedelta(days=7)
"""A replacement that fails is tried again by the certificate's renewal, at last once a day."""

_STORE_ONLY_SECONDS = 5.0


class Revoking:
    """Handlers of `pki.revoke` and `pki.revocations.get`, and the job behind every pending revocation."""

    def __init__(
        self,
        tools: Tools,
        jobs: Jobs,
        waiting: Waiting,
        *,
        issuing: Issuing,
        patience_seconds: float,
    ) -> None:
        self._tools = tools
        self._store = tools.store
        self._jobs = jobs
        self._waiting = waiting
        self._revocations = RevocationJobs(tools, jobs, waiting, issuing)
        self._patience = timedelta(seconds=patience_seconds)
        self._locks: WeakValueDictionary[CertificateId, asyncio.Lock] = WeakValueDictionary()

    async def revoke(self, request: m.RevokeCertificate, context: RequestContext) -> m.RevocationReply:
        """Handle `pki.revoke`."""
        place = await place_of(self._store, self._tools.log, request)
        # One at a time for each certificate: the same request sent twice at once is one revocation.
        async with self._locks.setdefault(place.certificate_id, asyncio.Lock()):
            shown = await self._accept(request, place, context)
        if shown.status == "pending":
            self._revocations.start(shown.id)
            seconds = request.wait_seconds
            if not (request.use_acme or request.replace):
                # Nobody outside is asked: it is done as soon as it is written down.
                seconds = max(seconds, _STORE_ONLY_SECONDS)
            shown = await self._waiting.until(REVOCATIONS, shown.id, seconds, lambda each: each.status != "pending")
        if shown.status == "failed" and shown.error is not None:
            raise _as_error(shown.error)
        return _reply(shown)

    async def get(self, request: m.RevocationById, context: RequestContext) -> m.RevocationReply:
        """Handle `pki.revocations.get`."""
        return _reply(await self._found(request.id))

    async def _found(self, revocation_id: str) -> RevocationRequest:
        found = await REVOCATIONS.get(self._store, revocation_id)
        if found is None:
            raise NotFound(f"there is no revocation {revocation_id[:100]!r}")
        return found.value

    async def resume(self) -> None:
        """Go on with revocations that a stop interrupted."""
        await self._revocations.resume()

    async def _accept(self, request: m.RevokeCertificate, place: Place, context: RequestContext) -> RevocationRequest:
        """The revocation that a request asks for: the one there is already, or a new one, written down."""
        repeatable = Repeatable(REVOKE, request, context)
        while True:
            if made := await repeatable.made_before(self._store):
                return await self._found(made)
            target = await load(self._store, place)
            all_of_it = await REVOCATIONS.all(self._store, self._tools.log, certificate=place.certificate_id)
            known = [each for each in all_of_it if each.value.version == place.version]
            try:
                if (same := await self._known(request, target, known, repeatable)) is not None:
                    return same
                revocation = await self._write(request, target, repeatable)
            except RevisionConflict:
                continue  # another process was faster: look at what it has made
            self._tools.log.info(
                "revocation.accepted",
                revocation_id=revocation.id,
                certificate_id=revocation.certificate_id,
                version=revocation.version,
                reason=revocation.reason,
                use_acme=revocation.use_acme,
                replace=revocation.replace,
                request_id=context.request_id,
            )
            return revocation

    async def _known(
        self,
        request: m.RevokeCertificate,
        target: Target,
        known: Sequence[Versioned[RevocationRequest]],
        repeatable: Repeatable,
    ) -> RevocationRequest | None:
        for each in known:
            if each.value.status == "pending":
                return await self._join(request, each, repeatable)
        if target.version.status != "revoked":
            return None
        for each in known:
            if each.value.status == "done" and _says_all(each.value, request):
                return msgspec.structs.replace(each.value, was_revoked_already=True)
        return None

    async def _join(
        self, request: m.RevokeCertificate, pending: Versioned[RevocationRequest], repeatable: Repeatable
    ) -> RevocationRequest:
        """The pending revocation as what this request asks for; without waiting for a replacement if it says so now."""
        value = pending.value
        if (request.reason, request.use_acme) != (value.reason, value.use_acme) or request.replace > value.replace:
            raise Conflict(
                f"{value.id} is under way for this version with reason {value.reason}, use_acme {value.use_acme} and "
                f"replace {value.replace}; wait for its end (pki.revocations.get)"
            )
        changes = repeatable.changes(value.id)
        if value.replace and not request.replace:
            value = msgspec.structs.replace(value, replace=False, error=None, next_try_at=None)
            changes = (REVOCATIONS.put(value, pending.revision), *changes)
        if changes:
            await self._store.commit(changes)
        return value

    async def _write(self, request: m.RevokeCertificate, target: Target, repeatable: Repeatable) -> RevocationRequest:
        """Intent and mark, before the CA hears of it."""
        if request.replace:
            _require_replaceable(target)
        if len(self._jobs) >= BACKLOG_MAX:
            raise RateLimited(f"{len(self._jobs)} orders and revocations are under way; ask again later", 60)
        now = self._tools.clock.now()
        patience = max(self._patience, REPLACEMENT_PATIENCE) if request.replace else self._patience
        revocation = RevocationRequest(
            id=self._tools.ids.revocation(),
            status="pending",
            certificate_id=target.certificate.value.id,
            version=target.version.version,
            serial_number=target.version.serial_number,
            reason=request.reason,
            use_acme=request.use_acme,
            replace=request.replace,
            created_at=now,
            give_up_at=now + patience,
        )
        marks = await self._marks(request, target)
        await self._store.commit([REVOCATIONS.put(revocation), *marks, *repeatable.changes(revocation.id)])
        return revocation

    async def _marks(self, request: m.RevokeCertificate, target: Target) -> Sequence[Put]:
        if request.reason != "key_compromise":
            return ()
        chain_pem, certificate_id = target.version.chain_pem, target.certificate.value.id
        return await marks_for(self._store, chain_pem, certificate_id, self._tools.clock.now())


def _says_all(done: RevocationRequest, request: m.RevokeCertificate) -> bool:
    """Whether a revocation leaves nothing to do for this request.

    What only our store knows, and what a CA's window made us believe, is still to be said to the CA; and so is that
    the key is compromised, the one reason that may follow another.
    """
    is_told = done.use_acme or not request.use_acme
    return is_told and (request.reason != "key_compromise" or done.reason == "key_compromise")


def _require_replaceable(target: Target) -> None:
    certificate = target.certificate.value
    if not target.is_current:
        raise invalid(
            "/replace",
            "not_current",
            f"version {certificate.version} has replaced it already: revoke it without `replace`",
        )
    if terms_of(certificate).csr_der is not None:
        raise Conflict(
            f"{certificate.id} is made from a caller's CSR, and a new version would have the same key: give it a CSR "
            "with another key first (pki.certificates.update), then revoke the old version"
        )


def _reply(revocation: RevocationRequest) -> m.RevocationReply:
    return m.RevocationReply(
        id=revocation.id,
        status=revocation.status,
        certificate_id=revocation.certificate_id,
        version=revocation.version,
        serial_number=revocation.serial_number,
        reason=revocation.reason,
        use_acme=revocation.use_acme,
        replace=revocation.replace,
        created_at=revocation.created_at,
        was_revoked_already=revocation.was_revoked_already,
        order_id=revocation.order_id,
        next_try_at=revocation.next_try_at,
        error=revocation.error,
    )


def _as_error(trouble: Trouble) -> ScaivaultError:
    """The error of a revocation that failed for good, as its caller would have seen it directly."""
    match trouble.code:
        case BackendRateLimited.code:
            return BackendRateLimited(
                trouble.detail, trouble.acme, retry_after=trouble.retry_after, retry_at=trouble.retry_at
            )
        case CaUnavailable.code:
            return CaUnavailable(trouble.detail, trouble.retry_after)
        case CaRefused.code:
            return CaRefused(trouble.detail, trouble.acme)
    plain: dict[str, type[ScaivaultError]] = {
        each.code: each for each in (AccountUnusable, Conflict, NotFound, Timeout, UnsupportedChallenge)
    }
    return plain.get(trouble.code, Internal)(trouble.detail)

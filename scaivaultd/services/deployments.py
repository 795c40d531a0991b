"""Which host uses which version of a certificate, as the hosts tell, and which of them do not follow.

A host follows once it has confirmed the current version without an error. Hosts of a certificate that is revoked or
has expired are not expected to: there is nothing good to follow, and other events tell of it.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import events
from scaivaultd.api import operation_messages as om
from scaivaultd.model.errors import Conflict, Internal, NotFound, RevisionConflict, StorageUnavailable
from scaivaultd.model.ids import CertificateId
from scaivaultd.model.resources import Deployment
from scaivaultd.model.storage import ABSENT, Delete
from scaivaultd.services.documents import CERTIFICATES, DEPLOYMENTS, deployment_id
from scaivaultd.services.due_heap import AT_ONCE, DueHeap
from scaivaultd.services.waiting import sleep_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.resources import Certificate
    from scaivaultd.model.storage import Changed
    from scaivaultd.services.documents import Versioned
    from scaivaultd.services.ports import Store

HOSTS_MAX = 10_000
"""Hosts of one certificate: a caller that makes names up must not fill the store."""
TOLD_AT_ONCE = 100
REMEMBERED = 20
"""Versions of which a host's events are remembered."""

_TRIES = 20
_AGAIN_SECONDS = 60.0
_STORAGE_PAUSE_SECONDS = 5.0


class Deployments:
    """Handlers of the deployments, and the watch over those that are overdue."""

    def __init__(self, *, store: Store, overdue_seconds: float, clock: Clock, log: FilteringBoundLogger) -> None:
        self._store = store
        self._overdue = timedelta(seconds=overdue_seconds)
        self._clock = clock
        self._log = log
        self._due = DueHeap()
        self._woken = asyncio.Event()
        self._hosts: dict[CertificateId, int] = {}
        self._is_other_time = False

    def use(self, overdue_seconds: float) -> None:
        """Go by another time from now on; what is due by it is looked at anew."""
        self._overdue = timedelta(seconds=overdue_seconds)
        self._is_other_time = True
        self._woken.set()

    async def run(self) -> None:
        """Tell of hosts that do not follow, until cancelled."""
        async with self._store.watch("certificate/") as changes, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear(changes), name="deployments watch")
            await self._resume()
            while True:
                await self._rest()
                if self._is_other_time:
                    self._is_other_time = False
                    await self._resume()
                await self._look()

    async def confirm(self, request: om.ConfirmDeployment, context: RequestContext) -> om.DeploymentReply:
        """Handle `pki.certificates.confirm`."""
        for _ in range(_TRIES):
            certificate = await self._certificate(request.id)
            if request.version > certificate.version:
                raise Conflict(
                    f"{certificate.id} has no version {request.version}; its current one is {certificate.version}"
                )
            stored = await DEPLOYMENTS.get(self._store, deployment_id(certificate.id, request.host))
            if stored is None:
                await self._require_room(certificate)
            try:
                deployment = await self._commit(request, certificate, stored, str(context.principal))
            except RevisionConflict:
                continue
            self._look_at(certificate.id)
            return _reply(deployment, certificate)
        raise Internal(f"the deployment of {request.id} on {request.host} is changed by others all the time")

    async def list(self, request: m.CertificateById, context: RequestContext) -> om.DeploymentList:
        """Handle `pki.certificates.deployments`."""
        certificate = await self._certificate(request.id)
        found = [_reply(each.value, certificate) for each in await self._of(certificate.id)]
        return om.DeploymentList(items=sorted(found, key=lambda each: each.host))

    async def forget(self, request: om.DeploymentByHost, context: RequestContext) -> om.DeploymentForgotten:
        """Handle `pki.certificates.forget_deployment`."""
        certificate = await self._certificate(request.id)
        place = deployment_id(certificate.id, request.host)
        if await DEPLOYMENTS.get(self._store, place) is None:
            raise NotFound(f"{certificate.id} is not known to be used on {request.host}")
        await self._store.commit([Delete(key=DEPLOYMENTS.key(place))])
        self._hosts.pop(certificate.id, None)
        return om.DeploymentForgotten(id=certificate.id, host=request.host)

    async def _commit(
        self,
        request: om.ConfirmDeployment,
        certificate: Certificate,
        stored: Versioned[Deployment] | None,
        principal: str,
    ) -> Deployment:
        """Write down what a host says, and tell of it unless that was told before."""
        now = self._clock.now()
        before = None if stored is None else stored.value
        used, failed = ((), ()) if before is None else (before.used, before.failed)
        is_news = request.version not in (used if request.error is None else failed)
        if is_news and request.error is None:
            used = (*used, request.version)[-REMEMBERED:]
        elif is_news:
            failed = (*failed, request.version)[-REMEMBERED:]
        deployment = Deployment(
            certificate_id=certificate.id,
            host=request.host,
            version=request.version,
            first_seen_at=now if before is None else before.first_seen_at,
            confirmed_at=now,
            confirmed_by=principal,
            where=request.where,
            error=request.error,
            told_version=0 if before is None else before.told_version,
            used=used,
            failed=failed,
        )
        put = DEPLOYMENTS.put(deployment, ABSENT if stored is None else stored.revision)
        told = [events.certificate_deployed(certificate, deployment, now)] if is_news else []
        await self._store.commit([put], told)
        if stored is None and certificate.id in self._hosts:
            self._hosts[certificate.id] += 1
        return deployment

    async def _certificate(self, certificate_id: str) -> Certificate:
        certificate = await CERTIFICATES.get(self._store, certificate_id)
        if certificate is None:
            raise NotFound(f"there is no certificate {certificate_id[:100]!r}")
        return certificate.value

    async def _of(self, certificate_id: str) -> Sequence[Versioned[Deployment]]:
        return await DEPLOYMENTS.all(self._store, self._log, certificate=certificate_id)

    async def _require_room(self, certificate: Certificate) -> None:
        if certificate.id not in self._hosts:
            self._hosts[certificate.id] = len(await self._of(certificate.id))
        if self._hosts[certificate.id] >= HOSTS_MAX:
            raise Conflict(
                f"{certificate.id} is used on {HOSTS_MAX} hosts already, as they say; forget those that are no more"
            )

    def _look_at(self, certificate_id: CertificateId, at: float = AT_ONCE) -> None:
        self._due.bring_forward(certificate_id, at)
        self._woken.set()

    async def _hear(self, changes: AsyncIterator[Changed]) -> None:
        async for changed in changes:
            self._look_at(CertificateId(changed.key.partition("/")[2]))

    async def _resume(self) -> None:
        while True:
            try:
                for each in await DEPLOYMENTS.all(self._store, self._log):
                    self._look_at(each.value.certificate_id)
                return
            except StorageUnavailable as error:
                await self._pause(error)

    async def _rest(self) -> None:
        """Wait for whatever is due first, or for news."""
        at = self._due.next_at()
        if at is None:
            await self._woken.wait()
        else:
            await sleep_until(self._clock, datetime.fromtimestamp(at, UTC), self._woken)
        self._woken.clear()

    async def _look(self) -> None:
        """Look at every certificate that is due; one that cannot be looked at costs itself a minute."""
        while (certificate_id := self._due.take_due(self._clock.now().timestamp())) is not None:
            try:
                at = await self._judge(certificate_id)
            except RevisionConflict:
                at = AT_ONCE
            except StorageUnavailable as error:
                await self._pause(error)
                at = AT_ONCE
            except Exception:  # noqa: BLE001 - a job boundary: one broken certificate must not take the others down
                self._log.exception("job.failed", job=f"deployments of {certificate_id}")
                at = self._clock.now().timestamp() + _AGAIN_SECONDS
            if at is not None:
                self._due.bring_forward(certificate_id, at)

    async def _pause(self, error: StorageUnavailable) -> None:
        self._log.warning("deployments.store_unavailable", detail=error.detail, pause_seconds=_STORAGE_PAUSE_SECONDS)
        await self._clock.sleep(_STORAGE_PAUSE_SECONDS)

    async def _judge(self, certificate_id: CertificateId) -> float | None:
        """Tell of the hosts that are behind for too long; returns when there will be any."""
        stored = await CERTIFICATES.get(self._store, certificate_id)
        now = self._clock.now()
        if stored is None or stored.value.status != "valid" or stored.value.not_after <= now:
            return None
        certificate = stored.value
        behind = [
            each
            for each in await self._of(certificate_id)
            if not _follows(each.value, certificate) and each.value.told_version < certificate.version
        ]
        due = (certificate.issued_at or certificate.created_at) + self._overdue
        if behind and now < due:
            return due.timestamp()
        for start in range(0, len(behind), TOLD_AT_ONCE):
            await self._tell(certificate, behind[start : start + TOLD_AT_ONCE], now)
        return None

    async def _tell(self, certificate: Certificate, behind: Sequence[Versioned[Deployment]], now: datetime) -> None:
        told = [msgspec.structs.replace(each.value, told_version=certificate.version) for each in behind]
        await self._store.commit(
            [DEPLOYMENTS.put(new, old.revision) for new, old in zip(told, behind, strict=True)],
            [events.certificate_deploy_overdue(certificate, each, now) for each in told],
        )
        for each in told:
            self._log.warning(
                "certificate.deploy_overdue",
                certificate_id=certificate.id,
                host=each.host,
                version=each.version,
                current_version=certificate.version,
                error=each.error,
            )


def _follows(deployment: Deployment, certificate: Certificate) -> bool:
    return deployment.version == certificate.version and deployment.error is None


def _reply(deployment: Deployment, certificate: Certificate) -> om.DeploymentReply:
    return om.DeploymentReply(
        id=certificate.id,
        host=deployment.host,
        version=deployment.version,
        current_version=certificate.version,
        is_current=deployment.version == certificate.version,
        is_overdue=not _follows(deployment, certificate) and deployment.told_version == certificate.version,
        where=deployment.where,
        error=deployment.error,
        first_seen_at=deployment.first_seen_at,
        confirmed_at=deployment.confirmed_at,
        confirmed_by=deployment.confirmed_by,
    )

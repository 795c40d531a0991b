"""Taking over certificates that other ACME clients have obtained.

What was obtained elsewhere has an order here all the same, `valid` from the start and of the cause `import`: whatever
reads the order of a certificate finds one. The certificate keeps its name at the CA (RFC 9773 section 4.1), so that its
first renewal says which one it replaces.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme import x509
from scaivaultd.acme.imported import Imported, read_imported, read_private_key
from scaivaultd.acme.signing import AccountKey
from scaivaultd.api import events
from scaivaultd.model.errors import Conflict, InvalidRequest, NotFound, RevisionConflict
from scaivaultd.model.ids import AccountId
from scaivaultd.model.resources import Certificate, NamePointer, Order, SealedKey, Terms
from scaivaultd.model.storage import ABSENT
from scaivaultd.services import renewals, visible
from scaivaultd.services.accounts import require_usable
from scaivaultd.services.compromised_keys import is_compromised
from scaivaultd.services.documents import (
    CERTIFICATES,
    KEYS,
    NAME_POINTERS,
    ORDERS,
    RENEWALS,
    VERSIONS,
    name_pointer_id,
)
from scaivaultd.services.owners import owner_in
from scaivaultd.services.requests import invalid, not_found, override_of, require_dns, require_names

if TYPE_CHECKING:
    from scaivaultd.api import messages as m
    from scaivaultd.api import operation_messages as om
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.ids import KeyId
    from scaivaultd.model.resources import Account
    from scaivaultd.model.storage import Change
    from scaivaultd.services.certificates import Certificates
    from scaivaultd.services.dns_providers import DnsProviders
    from scaivaultd.services.pursuit import Tools
    from scaivaultd.services.quotas import Quotas

_TRIES = 5


class Importing:
    """Handler of `pki.certificates.import`."""

    def __init__(self, tools: Tools, *, providers: DnsProviders, quotas: Quotas, certificates: Certificates) -> None:
        self._tools = tools
        self._store = tools.store
        self._providers = providers
        self._quotas = quotas
        self._certificates = certificates
        self._importing = asyncio.Lock()

    async def import_certificate(self, request: om.ImportCertificate, context: RequestContext) -> m.CertificateReply:
        """Handle `pki.certificates.import`."""
        imported = read_imported(request.chain_pem)
        # One after the other: the same certificate, sent twice at once, must not be taken twice.
        async with self._importing:
            certificate = await self._found(imported)
            if certificate is None:
                certificate = await self._taken(request, imported, context)
            elif (sees := visible.certificates(self._store, context.permits)) and not await sees(certificate):
                raise Conflict("this certificate is managed here already, and is not yours to see")
        return await self._certificates.reply(certificate)

    async def _found(self, imported: Imported) -> Certificate | None:
        """The certificate of which it is a version, if it was taken before, or comes from here."""
        serial, fingerprint = imported.chain.serial_number, imported.chain.fingerprint_sha256
        for current in await CERTIFICATES.all(self._store, self._tools.log, serial=serial):
            if current.value.fingerprint_sha256 == fingerprint:
                return current.value
        for earlier in await VERSIONS.all(self._store, self._tools.log, serial=serial):
            if earlier.value.fingerprint_sha256 == fingerprint:
                held = await CERTIFICATES.get(self._store, earlier.value.certificate_id)
                return None if held is None else held.value
        return None

    async def _taken(self, request: om.ImportCertificate, imported: Imported, context: RequestContext) -> Certificate:
        terms = await self._terms(request, imported)
        private_key = None
        if request.private_key_pem is not None:
            private_key = read_private_key(request.private_key_pem, imported)
            await self._require_own_key(private_key)
        elif request.reuse_key:
            raise invalid("/reuse_key", "no_key", "without private_key_pem there is no key to use again")
        if await is_compromised(self._store, x509.spki_sha256(imported.spki)):
            raise Conflict("its key was revoked as compromised; issue a certificate with a fresh key instead")
        key_id = None if private_key is None else self._tools.ids.key()
        order, certificate = self._documents(request, imported, terms, key_id, context)
        async with self._quotas.taking(order, context.permits.quota()):
            await self._commit(certificate, order, private_key, request)
        self._tools.renewals.tell(certificate.id)
        self._tools.log.info(
            "certificate.imported",
            certificate_id=certificate.id,
            account_id=certificate.account_id,
            names=[str(each) for each in certificate.identifiers],
            not_after=certificate.not_after.isoformat(),
            has_private_key=key_id is not None,
            request_id=context.request_id,
        )
        return certificate

    async def _terms(self, request: om.ImportCertificate, imported: Imported) -> Terms:
        account = await self._account(request.account_id)
        try:
            require_names([str(each) for each in imported.identifiers], None, [account], request.challenge_type)
        except InvalidRequest as error:
            # Its names have no pointers of their own.
            fields = [msgspec.structs.replace(each, pointer="/chain_pem") for each in error.fields]
            raise type(error)(f"in the certificate: {error.detail}", fields) from None
        self._tools.solvers.get(request.challenge_type, None)
        terms = Terms(
            account_id=account.id,
            identifiers=imported.identifiers,
            challenge_type=request.challenge_type,
            key_type=imported.key_type,
            dns_provider=request.dns_provider,
            propagation=override_of(request.propagation),
            reuse_key=request.reuse_key,
        )
        await require_dns(terms, self._providers)
        return terms

    async def _account(self, account_id: str) -> Account:
        try:
            account = (await self._tools.accounts.load(AccountId(account_id))).value
        except NotFound as error:
            raise not_found("/account_id", error.detail) from None
        require_usable(account)
        return account

    async def _require_own_key(self, private_key: bytes) -> None:
        account_id = await self._tools.accounts.with_key(AccountKey(private_key).thumbprint)
        if account_id is not None:
            raise invalid(
                "/private_key_pem",
                "account_key",
                f"this is the key of account {account_id}; a certificate needs its own",
            )

    def _documents(
        self,
        request: om.ImportCertificate,
        imported: Imported,
        terms: Terms,
        key_id: KeyId | None,
        context: RequestContext,
    ) -> tuple[Order, Certificate]:
        now, chain = self._tools.clock.now(), imported.chain
        order = Order(
            **{name: getattr(terms, name) for name in Terms.__struct_fields__},
            id=self._tools.ids.order(),
            auto_renew=request.auto_renew,
            status="valid",
            created_at=now,
            give_up_at=now,
            cause="import",
            requested_by=owner_in(context),
            key_id=key_id,
            certificate_id=self._tools.ids.certificate(),
            version=1,
            not_after=chain.not_after,
        )
        assert order.certificate_id is not None
        certificate = Certificate(
            id=order.certificate_id,
            order_id=order.id,
            account_id=terms.account_id,
            identifiers=terms.identifiers,
            challenge_type=terms.challenge_type,
            key_type=terms.key_type,
            key_id=key_id,
            version=1,
            status="valid",
            auto_renew=request.auto_renew,
            serial_number=chain.serial_number,
            fingerprint_sha256=chain.fingerprint_sha256,
            issuer=chain.issuer,
            not_before=chain.not_before,
            not_after=chain.not_after,
            chain_pem=chain.pem,
            created_at=now,
            ari_id=chain.ari_id,
            terms=terms,
            requested_by=order.requested_by,
        )
        return order, certificate

    async def _commit(
        self, certificate: Certificate, order: Order, private_key: bytes | None, request: om.ImportCertificate
    ) -> None:
        now = self._tools.clock.now()
        renewal = renewals.begun(certificate, None, now=now, fraction=self._tools.randomness.fraction())
        changes: list[Change] = [CERTIFICATES.put(certificate), ORDERS.put(order), RENEWALS.put(renewal)]
        if private_key is not None and (key_id := certificate.key_id) is not None:
            sealed = self._tools.sealer.seal(private_key, KEYS.key(key_id), "private_key")
            key = SealedKey(id=key_id, key_type=certificate.key_type, sealed=sealed, created_at=now)
            changes.append(KEYS.put(key))
        pointer_id = name_pointer_id(certificate.identifiers, certificate.key_type)
        pointer = NamePointer(certificate_id=certificate.id, version=certificate.version)
        for _ in range(_TRIES):
            held = await NAME_POINTERS.get(self._store, pointer_id)
            if held is not None and not request.allow_duplicate:
                await self._refuse_duplicate(held.value)
            at = NAME_POINTERS.put_at(pointer_id, pointer, held.revision if held else ABSENT)
            try:
                await self._store.commit(
                    [*changes, at], [events.certificate_imported(certificate, request.source, now)]
                )
            except RevisionConflict:
                continue  # an order for the same names has just brought its certificate
            return
        raise Conflict("certificates for these names come all the time; ask again")

    async def _refuse_duplicate(self, pointer: NamePointer) -> None:
        other = await CERTIFICATES.get(self._store, pointer.certificate_id)
        if other is not None and other.value.status == "valid":
            raise Conflict(
                "another certificate for the same names is managed here already; allow_duplicate takes this one as well"
            )

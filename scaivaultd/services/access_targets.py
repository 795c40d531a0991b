"""What a request touches, as policies judge it: looked up before any handler sees the request.

Every command of the table is here. One that is about a single thing is judged with that thing; one about many is
judged by its action only, and its handler passes over each item that its caller may not see. A request that cannot be
meant, or names what is not there, fails here with the error that its handler would answer.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from scaivaultd.acme.csr import read_csr
from scaivaultd.acme.imported import read_imported
from scaivaultd.api import commands as c
from scaivaultd.api import messages as m
from scaivaultd.api import operation_messages as om
from scaivaultd.model.access import AccountRef, CertificateTerms
from scaivaultd.model.errors import Internal, InvalidRequest, NotFound, ScaivaultError
from scaivaultd.model.names import Identifier, parse_identifiers
from scaivaultd.model.resources import terms_of
from scaivaultd.services import revocation_targets
from scaivaultd.services.access_terms import (
    ANY_CERTIFICATE,
    ANY_NAME,
    account_ref,
    account_refs,
    terms_as_ordered,
    terms_of_certificate,
    terms_of_order,
    terms_of_version,
)
from scaivaultd.services.documents import (
    ACCOUNTS,
    BULK_RENEWALS,
    CERTIFICATES,
    ORDERS,
    REVOCATIONS,
    VERSIONS,
    version_id,
)
from scaivaultd.services.requests import accounts_of, identifiers_from, not_found

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import Command
    from scaivaultd.model.principals import Principal
    from scaivaultd.model.resources import Account, Certificate, Issued, Terms
    from scaivaultd.services.ports import Store

OBJECT_MAX = 1_000
"""Characters of what a record says a request was about."""

_WHAT_FOR = ("id", "order_id", "certificate_id", "serial_number", "path", "domains", "name", "domain", "account_id")
_PATH = re.compile(r"[a-z0-9._/-]{1,255}")


class Touched(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a request touches, in one way.

    `pointers` lead from what a reason is about to the members of the request that name it. `missing` is what is said of
    it to somebody who may not know of it; None: it is asked for, and not there yet. `seen_by` is the action whose
    holders know of it.
    """

    action: str
    certificate: CertificateTerms | None = None
    account: AccountRef | None = None
    secret: str | None = None
    pointers: Mapping[str, Sequence[str]] = {}
    missing: NotFound | None = None
    seen_by: str | None = None


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """All that a request touches: nothing, where it is about many things. `object` is what a record calls it.

    `error` is what is wrong with the rest of the request, for those who may touch what is told: an answer about the
    rest would tell others that this is there.
    """

    touched: tuple[Touched, ...] = ()
    object: str | None = None
    error: ScaivaultError | None = None


def object_of(request: m.Request) -> str:
    """What a request is about, in its own words; never the value of a secret."""
    for member in _WHAT_FOR:
        value = getattr(request, member, None)
        if value in (None, UNSET, "", []):
            continue
        if member == "path" and not _PATH.fullmatch(value):
            return f"a text of {len(value)} letters that is no path"
        return (value if isinstance(value, str) else " ".join(map(str, value)))[:OBJECT_MAX]
    return ""


class AccessTargets:
    """Finds out what requests touch."""

    def __init__(self, store: Store, log: FilteringBoundLogger) -> None:
        self._store = store
        self._log = log
        self._finders: Mapping[str, Callable[[Any, Principal], Awaitable[Target]]] = {
            c.CREATE_ACCOUNT.name: self._new_account,
            c.GET_ACCOUNT.name: self._account_as("account.read"),
            c.UPDATE_ACCOUNT.name: self._changed_account,
            c.ROTATE_ACCOUNT_KEY.name: self._account_as("account.rotate_key"),
            c.DEACTIVATE_ACCOUNT.name: self._account_as("account.deactivate"),
            c.LIMITS.name: self._limits,
            c.ISSUE.name: self._issue,
            c.GET_ORDER.name: self._order_as("order.read"),
            c.CANCEL_ORDER.name: self._order_as("order.cancel"),
            c.GET_CERTIFICATE.name: self._certificate,
            c.LIST_VERSIONS.name: self._certificate,
            c.GET_PEM.name: self._version_as("cert.read"),
            c.GET_KEY.name: self._version_as("key.read"),
            c.RENEW_CERTIFICATE.name: self._renewal,
            c.UPDATE_CERTIFICATE.name: self._update,
            c.IMPORT_CERTIFICATE.name: self._import,
            c.CONFIRM_DEPLOYMENT.name: self._certificate_as("cert.confirm"),
            c.LIST_DEPLOYMENTS.name: self._certificate,
            c.FORGET_DEPLOYMENT.name: self._certificate_as("cert.confirm"),
            c.REVOKE.name: self._revoke,
            c.GET_REVOCATION.name: self._revocation,
            c.GET_BULK_RENEWAL.name: self._bulk_renewal_as("cert.read"),
            c.CANCEL_BULK_RENEWAL.name: self._bulk_renewal_as("cert.renew"),
            c.CREATE_DNS_PROVIDER.name: self._dns_provider,
            c.UPDATE_DNS_PROVIDER.name: self._dns_provider,
            c.PUT_SECRET.name: self._new_secret,
            c.DELETE_SECRET.name: self._secret,
        }

    @property
    def found_here(self) -> frozenset[str]:
        """The commands that are about one thing."""
        return frozenset(self._finders)

    async def of(self, command: Command[Any, Any], request: Any, principal: Principal) -> Target:
        """What a request touches.

        Raises:
            InvalidRequest, NotFound: it cannot be told, since the request is wrong or what it names is not there.
            Conflict: it can be told in several ways.
        """
        if (find := self._finders.get(command.name)) is not None:
            return await find(request, principal)
        if command.name not in BY_ACTION:
            raise Internal(f"nobody has said what {command.name} touches")
        return Target()

    async def _new_account(self, request: m.CreateAccount, _: Principal) -> Target:
        # An account that has the name already is found by it.
        named = Touched(
            action="account.create",
            account=AccountRef(None, request.name),
            pointers={"account": ["/name"]},
        )
        references = {
            "/eab/hmac_key_path": None if request.eab is None else request.eab.hmac_key_path,
            "/zerossl_access_key_path": request.zerossl_access_key_path,
            "/account_key_path": request.account_key_path,
        }
        used = [_used(reference, pointer) for pointer, reference in references.items() if reference is not None]
        return Target(touched=(named, *used))

    def _account_as(self, action: str) -> Callable[[m.AccountById, Principal], Awaitable[Target]]:
        async def find(request: m.AccountById, _: Principal) -> Target:
            account = await self._account(request.id)
            return Target(touched=(_account(account, action),))

        return find

    async def _changed_account(self, request: m.UpdateAccount, _: Principal) -> Target:
        account = await self._account(request.id)
        touched = [_account(account, "account.update")]
        if request.name is not UNSET and request.name != account.name:
            # Policies know accounts by name: another name is another account.
            renamed = AccountRef(account.id, request.name)
            touched.append(Touched(action="account.update", account=renamed, pointers={"account": ["/name"]}))
        return Target(touched=tuple(touched))

    async def _limits(self, request: m.ListLimits, _: Principal) -> Target:
        if request.account_id is None:
            return Target()
        return Target(touched=(_account(await self._account(request.account_id), "account.read"),))

    async def _issue(self, request: m.Issue, _: Principal) -> Target:
        if not request.domains and request.csr is None:
            identifiers_from((), None)
        csr = None if request.csr is None else read_csr(request.csr)
        names = identifiers_from(request.domains, csr)
        account_ids = accounts_of(request.account_id, request.account_ids)
        terms = CertificateTerms(
            names=names,
            accounts=await account_refs(self._store, account_ids),
            challenge_type=request.challenge_type,
            key_type=request.key_type if csr is None else csr.key_type,
        )
        touched = Touched(action="cert.issue", certificate=terms, pointers=_pointers(request, names))
        error = await self._missing_account(request, account_ids)
        return Target(touched=(touched,), object=_names(names), error=error)

    def _order_as(self, action: str) -> Callable[[m.OrderById, Principal], Awaitable[Target]]:
        async def find(request: m.OrderById, _: Principal) -> Target:
            missing = NotFound(f"there is no order {request.order_id[:100]!r}")
            order = await ORDERS.get(self._store, request.order_id)
            if order is None:
                raise missing
            terms = await terms_of_order(self._store, order.value)
            touched = Touched(action=action, certificate=terms, missing=missing, seen_by="order.read")
            return Target(touched=(touched,))

        return find

    async def _certificate(self, request: m.CertificateById, _: Principal) -> Target:
        certificate = await self._certificate_of(request.id)
        return Target(touched=(_known(certificate, await terms_of_certificate(self._store, certificate), "cert.read"),))

    def _certificate_as(self, action: str) -> Callable[[m.CertificateById, Principal], Awaitable[Target]]:
        async def find(request: m.CertificateById, _: Principal) -> Target:
            certificate = await self._certificate_of(request.id)
            return Target(touched=(_known(certificate, await terms_of_certificate(self._store, certificate), action),))

        return find

    async def _import(self, request: om.ImportCertificate, _: Principal) -> Target:
        imported = read_imported(request.chain_pem)
        terms = CertificateTerms(
            names=imported.identifiers,
            accounts=await account_refs(self._store, (request.account_id,)),
            challenge_type=request.challenge_type,
            key_type=imported.key_type,
        )
        touched = Touched(
            action="cert.import",
            certificate=terms,
            pointers={"account": ["/account_id"], "names": ["/chain_pem"], "challenge_type": ["/challenge_type"]},
        )
        there = await ACCOUNTS.get(self._store, request.account_id) is not None
        missing = None if there else not_found("/account_id", _no_account(request.account_id).detail)
        return Target(touched=(touched,), object=_names(imported.identifiers), error=missing)

    def _version_as(self, action: str) -> Callable[[m.CertificatePem | m.CertificateKey, Principal], Awaitable[Target]]:
        async def find(request: m.CertificatePem | m.CertificateKey, _: Principal) -> Target:
            certificate = await self._certificate_of(request.id)
            version = await self._version(certificate, request.version)
            terms = await terms_of_version(self._store, certificate, version)
            return Target(touched=(_known(certificate, terms, action),))

        return find

    async def _version(self, certificate: Certificate, version: int | None) -> Issued:
        """A version; where there is no such one, the current one: who may touch that is told so by the handler."""
        if version in (None, certificate.version):
            return certificate
        earlier = await VERSIONS.get(self._store, version_id(certificate.id, version))
        return certificate if earlier is None else earlier.value

    async def _renewal(self, request: m.RenewCertificate, _: Principal) -> Target:
        certificate = await self._certificate_of(request.id)
        terms = await terms_as_ordered(self._store, terms_of(certificate))
        return Target(touched=(_known(certificate, terms, "cert.renew"),))

    async def _update(self, request: m.UpdateCertificate, _: Principal) -> Target:
        certificate = await self._certificate_of(request.id)
        now = _known(certificate, await terms_of_certificate(self._store, certificate), "cert.update")
        before = terms_of(certificate)
        first, *further = before.accounts
        accounts = accounts_of(
            first if request.account_id is UNSET else request.account_id,
            further if request.account_ids is UNSET else request.account_ids,
        )
        try:
            then = await self._as_updated(request, before, accounts)
        except InvalidRequest as error:
            return Target(touched=(now,), error=error)
        # What is not changed may be gone, and must not stand in the way of what is.
        missing = None if accounts == before.accounts else await self._missing_account(request, accounts)
        asked = Touched(action="cert.update", certificate=then, pointers=_pointers(request, then.names))
        return Target(touched=(now, asked), error=missing)

    async def _as_updated(
        self, request: m.UpdateCertificate, before: Terms, accounts: Iterable[str]
    ) -> CertificateTerms:
        csr = None if request.csr is UNSET else read_csr(request.csr)
        names = () if csr is None else csr.identifiers
        if request.domains is not UNSET:
            names = (*parse_identifiers(request.domains, public_ca=False), *names)
        key_type = before.key_type if request.key_type is UNSET else request.key_type
        return CertificateTerms(
            names=tuple(dict.fromkeys(names)) or before.identifiers,
            accounts=await account_refs(self._store, accounts),
            challenge_type=before.challenge_type if request.challenge_type is UNSET else request.challenge_type,
            key_type=key_type if csr is None else csr.key_type,
        )

    async def _revoke(self, request: m.RevokeCertificate, _: Principal) -> Target:
        if request.certificate_id is None and request.serial_number is not None and request.version is None:
            return await self._by_serial(revocation_targets.serial_of(request.serial_number))
        place = await revocation_targets.place_of(self._store, self._log, request)
        certificate = await self._certificate_of(place.certificate_id)
        terms = await terms_of_version(self._store, certificate, await self._version(certificate, place.version))
        return Target(touched=(_known(certificate, terms, "cert.revoke"),), object=certificate.id)

    async def _by_serial(self, serial: str) -> Target:
        """Every version that has it: the handler does not choose one of several, and names them all."""
        missing = NotFound(f"no version of any certificate here has the serial number {serial}")
        found: dict[tuple[str, int], Issued] = {}
        for current in await CERTIFICATES.all(self._store, self._log, serial=serial):
            found[current.value.id, current.value.version] = current.value
        for earlier in await VERSIONS.all(self._store, self._log, serial=serial):
            found[earlier.value.certificate_id, earlier.value.version] = earlier.value
        if not found:
            raise missing
        touched = []
        for (certificate_id, _), version in found.items():
            certificate = await self._certificate_of(certificate_id)
            terms = await terms_of_version(self._store, certificate, version)
            touched.append(_known(certificate, terms, "cert.revoke", missing))
        return Target(touched=tuple(touched), object=" ".join(sorted({place[0] for place in found}))[:OBJECT_MAX])

    async def _revocation(self, request: m.RevocationById, _: Principal) -> Target:
        missing = NotFound(f"there is no revocation {request.id[:100]!r}")
        revocation = await REVOCATIONS.get(self._store, request.id)
        if revocation is None:
            raise missing
        place = revocation_targets.Place(revocation.value.certificate_id, revocation.value.version)
        target = await revocation_targets.load(self._store, place)
        certificate = target.certificate.value
        terms = await terms_of_version(self._store, certificate, target.version)
        return Target(touched=(_known(certificate, terms, "cert.read", missing),))

    def _bulk_renewal_as(self, action: str) -> Callable[[m.BulkRenewalById, Principal], Awaitable[Target]]:
        async def find(request: m.BulkRenewalById, principal: Principal) -> Target:
            missing = NotFound(f"there is no bulk renewal {request.id[:100]!r}")
            bulk = await BULK_RENEWALS.get(self._store, request.id)
            if bulk is None:
                raise missing
            if str(bulk.value.requested_by) == str(principal):
                return Target()
            # It may be about any certificate.
            touched = Touched(
                action=action,
                certificate=ANY_CERTIFICATE,
                pointers={str(ANY_NAME): ["/id"]},
                missing=missing,
                seen_by="cert.read",
            )
            return Target(touched=(touched,))

        return find

    async def _dns_provider(self, request: m.CreateDnsProvider | m.UpdateDnsProvider, _: Principal) -> Target:
        config = request.config or {}
        return Target(touched=tuple(_used(reference, pointer) for pointer, reference in references_in(config)))

    async def _new_secret(self, request: m.PutSecret, _: Principal) -> Target:
        touched = Touched(action="secret.write", secret=request.path, pointers={"secret": ["/path"]})
        return Target(touched=(touched,))

    async def _secret(self, request: m.SecretByPath, _: Principal) -> Target:
        touched = Touched(
            action="secret.delete",
            secret=request.path,
            missing=NotFound(f"there is no secret {request.path}"),
            seen_by="secret.list",
        )
        return Target(touched=(touched,))

    async def _account(self, account_id: str) -> Account:
        account = await ACCOUNTS.get(self._store, account_id)
        if account is None:
            raise _no_account(account_id)
        return account.value

    async def _missing_account(
        self, request: m.Issue | m.UpdateCertificate, account_ids: Iterable[str]
    ) -> NotFound | None:
        for each in account_ids:
            if await ACCOUNTS.get(self._store, each) is None:
                further = request.account_ids or []
                pointer = f"/account_ids/{further.index(each)}" if each in further else "/account_id"
                return not_found(pointer, _no_account(each).detail)
        return None

    async def _certificate_of(self, certificate_id: str) -> Certificate:
        certificate = await CERTIFICATES.get(self._store, certificate_id)
        if certificate is None:
            raise _no_certificate(certificate_id)
        return certificate.value


BY_ACTION = frozenset(
    command.name
    for command in (
        c.LIST_ACCOUNTS,
        c.LIST_ORDERS,
        c.LIST_CERTIFICATES,
        c.CREATE_BULK_RENEWAL,
        c.LIST_BULK_RENEWALS,
        c.LIST_DNS_PROVIDERS,
        c.GET_DNS_PROVIDER,
        c.DELETE_DNS_PROVIDER,
        c.TEST_DNS_PROVIDER,
        c.TRACE_DNS,
        c.LIST_SECRETS,
        c.LIST_EVENTS,
        c.CREATE_BACKUP,
        c.RESUME,
        c.RELOAD,
        c.CREATE_TOKEN,
        c.LIST_TOKENS,
        c.GET_TOKEN,
        c.ROTATE_TOKEN,
        c.REVOKE_TOKEN,
        c.PUT_POLICY,
        c.LIST_POLICIES,
        c.GET_POLICY,
        c.DELETE_POLICY,
        c.CAN_I,
        c.WHO_AM_I,
        c.LIST_AUDIT,
        c.VERIFY_AUDIT,
        c.MASTER_KEY,
        c.ROTATE_MASTER_KEY,
        c.UNSEAL,
        c.HEALTH,
        c.INFO,
    )
)
"""The commands that are judged by their action: about many things, or about what no policy tells apart."""


def references_in(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The place and the text of each reference to a secret in the settings of a DNS provider.

    These are all texts in members that end in `path` or `paths`, however deep and whatever their case: a reference that
    is not taken for one would be used without a right to it.
    """
    left: deque[tuple[str, Any, bool]] = deque([("/config", config, False)])
    while left:
        pointer, value, is_reference = left.popleft()
        if isinstance(value, dict):
            for name, each in value.items():
                names_one = is_reference or name.lower().endswith(("path", "paths"))
                left.append((f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}", each, names_one))
        elif isinstance(value, list):
            left.extend((f"{pointer}/{place}", each, is_reference) for place, each in enumerate(value))
        elif isinstance(value, str) and is_reference:
            yield pointer, value


def _used(reference: str, pointer: str) -> Touched:
    return Touched(action="secret.use", secret=reference, pointers={"secret": [pointer], "action": [pointer]})


def _account(account: Account, action: str) -> Touched:
    return Touched(action=action, account=account_ref(account), missing=_no_account(account.id), seen_by="account.read")


def _known(certificate: Certificate, terms: CertificateTerms, action: str, missing: NotFound | None = None) -> Touched:
    return Touched(
        action=action,
        certificate=terms,
        missing=missing or _no_certificate(certificate.id),
        seen_by="cert.read",
    )


def _no_account(account_id: str) -> NotFound:
    return NotFound(f"there is no account {account_id[:100]!r}")


def _no_certificate(certificate_id: str) -> NotFound:
    return NotFound(f"there is no certificate {certificate_id[:100]!r}")


def _pointers(request: m.Issue | m.UpdateCertificate, names: Iterable[Identifier]) -> Mapping[str, Sequence[str]]:
    """Which members of a request stand for what reasons are about."""
    domains = [] if request.domains is UNSET else request.domains
    has_csr = request.csr not in (None, UNSET)
    pointers: dict[str, list[str]] = {
        "account": ["/account_id"],
        "challenge_type": ["/challenge_type"],
        "key_type": ["/csr" if has_csr else "/key_type"],
        "names": ["/domains" if domains else "/csr"],
    }
    of_names: dict[str, list[str]] = {}
    for place, text in enumerate(domains):
        of_names.setdefault(str(_identifier(text)), []).append(f"/domains/{place}")
    if has_csr:
        of_names = {**{str(each): ["/csr"] for each in names}, **of_names}
    return {**pointers, **of_names}


def _identifier(text: str) -> Identifier | None:
    try:
        return parse_identifiers([text], public_ca=False)[0]
    except InvalidRequest:
        return None


def _names(names: Iterable[Identifier]) -> str:
    return " ".join(map(str, names))[:OBJECT_MAX]

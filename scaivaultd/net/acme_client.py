"""One account's view of its CA: the requests of RFC 8555 section 7 and RFC 9773 by name.

Every request says here whether it may be repeated: where doing it twice does no harm, `CaConnection` sits short
weather out; where it might, a doubtful outcome comes up at once and the caller looks before it asks again.
"""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.acme import named_urls, signing, wire
from scaivaultd.acme.exchange import CaConflict, NotOffered, NotThereYet
from scaivaultd.acme.x509 import DownloadedChain
from scaivaultd.model.errors import (
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    CertificatePending,
    Internal,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from scaivaultd.acme.exchange import Answer
    from scaivaultd.acme.signing import AccountKey
    from scaivaultd.model.names import Identifier
    from scaivaultd.net.acme_http import CaConnection

CERTIFICATE_MAX = 256 << 10
ORDER_PAGES_MAX = 5
ALTERNATES_MAX = 8


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """A resource as read: where it lives (its Location, else the URL asked) and when the CA wants to be asked again."""

    url: str
    body: bytes
    retry_after: float | None


class AcmeClient:
    """One account's view of its CA; `kid` is the account URL, None as long as there is no account.

    Beside what is named, every request raises CaRefused, CaMisbehaved, CaUnavailable or BackendRateLimited.
    """

    def __init__(self, connection: CaConnection, key: AccountKey, kid: str | None = None) -> None:
        self._connection = connection
        self._kid = kid
        self.key = key

    async def directory(self) -> wire.Directory:
        """What the CA says of itself (7.1.1)."""
        return await self._connection.directory()

    async def register(
        self,
        *,
        contacts: Sequence[str],
        terms_of_service_agreed: bool,
        eab_key_id: str | None = None,
        eab_hmac_key: bytes | None = None,
    ) -> Fetched:
        """newAccount (7.3): makes the account, or finds the one this key already has; may be repeated.

        `url` of the answer is the account URL, to be kept byte for byte.

        Raises:
            CaMisbehaved: an answer without Location.
        """
        directory = await self._connection.directory()
        payload: dict[str, Any] = {}
        if terms_of_service_agreed:
            payload["termsOfServiceAgreed"] = True
        if contacts:
            payload["contact"] = list(contacts)
        if eab_key_id is not None and eab_hmac_key is not None:
            payload["externalAccountBinding"] = signing.external_account_binding(
                self.key, key_id=eab_key_id, hmac_key=eab_hmac_key, url=directory.new_account
            )
        # A binding may be good for one use only: with one, a doubtful outcome is looked at before it is sent again.
        answer = await self._post(
            directory.new_account, payload, "newAccount", by_key=True, repeatable=eab_key_id is None
        )
        return self._located(answer, "newAccount")

    async def find_account(self) -> str | None:
        """The URL of the account this key has already (7.3.1), None when the CA knows none."""
        directory = await self._connection.directory()
        try:
            answer = await self._post(
                directory.new_account, {"onlyReturnExisting": True}, "the account look-up", by_key=True
            )
        except CaRefused as refusal:
            if _name_of(refusal) == "accountDoesNotExist":
                return None
            raise
        return self._located(answer, "the account look-up").url

    async def update_contacts(self, contacts: Sequence[str]) -> Fetched:
        """Replace the account's contacts by these `mailto:` URLs (7.3.2); none at all clears them."""
        payload = {"contact": list(contacts)}
        return self._fetched(await self._post(self._account_url, payload, "the contact update"))

    async def agree_to_terms(self) -> Fetched:
        """Agree to the terms of service that the CA has now (7.3.3)."""
        return self._fetched(await self._post(self._account_url, {"termsOfServiceAgreed": True}, "the agreement"))

    async def deactivate_account(self) -> Fetched:
        """End the account for good (7.3.6).

        Never repeated here: once it has worked the CA refuses everything, this too, as `unauthorized`. So after a
        doubtful outcome ask again and take that refusal for the answer.
        """
        payload = {"status": "deactivated"}
        return self._fetched(await self._post(self._account_url, payload, "the deactivation", repeatable=False))

    async def key_change(self, new_key: AccountKey) -> None:
        """Give the account another key (7.3.5); this client keeps signing with the old one.

        Never repeated here: the old key signs, and it may be the account's no more. Store the new key before, and keep
        both until the CA has shown which one it knows. After a doubtful outcome `find_account` by the new key tells:
        this account's URL, it worked; another's, that one has the key (Debian's Pebble says 500 then); None, it did
        not work.

        Raises:
            CaConflict: the new key has an account already, at `location`. Nothing was changed.
            NotOffered: this CA does not change keys. Nothing was changed.
            CaRefused: a clear no. Nothing was changed.
            CaUnavailable, CaMisbehaved: doubtful.
        """
        url = _offered((await self._connection.directory()).key_change, "key changes")
        payload = signing.key_change(self.key, new_key, account_url=self._account_url, url=url)
        try:
            await self._send(url, payload, "the key change", repeatable=False)
        except CaConflict as conflict:
            if conflict.location != self._account_url:
                raise
            # The account that has the new key is this one: an earlier key change worked, only its answer was lost.
        except CaRefused as refusal:
            if _status_of(refusal) in (404, 405) and _name_of(refusal) != "accountDoesNotExist":
                raise NotOffered("the CA does not offer key changes", refusal.problem) from refusal
            raise

    async def new_order(
        self,
        identifiers: Sequence[Identifier],
        *,
        replaces: str | None = None,
        profile: str | None = None,
        not_after: datetime | None = None,
    ) -> Fetched:
        """newOrder (7.4). Never repeated here: a lost answer may have left an order behind.

        Args:
            identifiers: What the certificate is for.
            replaces: The ARI certificate id of the direct predecessor (RFC 9773 section 5), where the CA offers ARI;
                `exchange.is_about_replaces` tells a refusal that is about nothing else.
            profile: One that the directory advertises (draft-ietf-acme-profiles).
            not_after: The end of the certificate's life, if the CA lets its callers choose; whole seconds.
        """
        directory = await self._connection.directory()
        payload: dict[str, Any] = {"identifiers": [{"type": each.type, "value": each.value} for each in identifiers]}
        if replaces is not None:
            payload["replaces"] = replaces
        if profile is not None:
            payload["profile"] = profile
        if not_after is not None:
            payload["notAfter"] = f"{not_after.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        answer = await self._post(directory.new_order, payload, "newOrder", repeatable=False)
        return self._located(answer, "newOrder")

    async def order_urls(self) -> Sequence[str]:
        """The account's orders as far as the CA lists them (7.1.2.1); empty where it does not, as at Let's Encrypt."""
        if self._kid is None:
            return ()
        account = wire.account_from((await self._post(self._kid, None, "the account")).body)
        found: list[str] = []
        page: str | None = account.orders
        for _ in range(ORDER_PAGES_MAX):
            if page is None:
                break
            answer = await self._post(page, None, "the orders list")
            found.extend(wire.order_urls_from(answer.body))
            page = next(iter(answer.links("next")), None)
        return found

    async def order(self, url: str) -> Fetched:
        """Read an order by POST-as-GET."""
        return self._named(await self._post(url, None, "the order"))

    async def authorization(self, url: str) -> Fetched:
        """Read an authorization by POST-as-GET."""
        return self._named(await self._post(url, None, "an authorization"))

    async def deactivate_authorization(self, url: str) -> Fetched:
        """Give a proof, or the attempt at one, up (7.5.2): pending ones count against limits. May be repeated.

        The CA may refuse this because the authorization has ended already.
        """
        return self._fetched(await self._post(url, {"status": "deactivated"}, "an authorization's deactivation"))

    async def respond(self, challenge_url: str) -> Fetched:
        """Tell the CA to validate (7.5.1). Repeating it is harmless."""
        return self._fetched(await self._post(challenge_url, {}, "a challenge response"))

    async def finalize(self, url: str, csr_der: bytes) -> Fetched:
        """Send the CSR (7.4). Never repeated here: after a doubtful outcome read the order first."""
        payload = {"csr": signing.base64url(csr_der)}
        return self._named(await self._post(url, payload, "finalize", repeatable=False))

    async def certificate(self, url: str) -> bytes:
        """Download one chain (7.4.2), unjudged; may be repeated.

        Raises:
            CertificatePending: 404, as it happens shortly after the order became valid.
        """
        return (await self.chain(url)).body

    async def chain(self, url: str) -> DownloadedChain:
        """Download one chain and the URLs of its alternates: all that the CA links, up to `ALTERNATES_MAX`.

        Raises:
            CertificatePending: 404, as it happens shortly after the order became valid.
        """
        try:
            answer = await self._post(url, None, "the certificate")
        except CaRefused as refusal:
            if _status_of(refusal) == 404:
                retry_after = refusal.retry_after if isinstance(refusal, NotThereYet) else None
                raise CertificatePending("the CA does not have the certificate at hand yet", retry_after) from refusal
            raise
        if len(answer.body) > CERTIFICATE_MAX:
            raise CaMisbehaved(f"the CA's certificate chain is larger than {CERTIFICATE_MAX >> 10} KiB")
        others = (each for each in dict.fromkeys(answer.links("alternate")) if each != url)
        return DownloadedChain(body=answer.body, alternates=tuple(others)[:ALTERNATES_MAX])

    async def chains(self, url: str) -> Sequence[bytes]:
        """Download the default chain and, behind it, every alternate; one that cannot be had is left out.

        Raises:
            CertificatePending: 404 for the default chain.
        """
        default = await self.chain(url)
        bodies = [default.body]
        for alternate in default.alternates:
            try:
                bodies.append(await self.certificate(alternate))
            except (CertificatePending, CaMisbehaved):
                continue
            except (CaUnavailable, BackendRateLimited):
                # The certificate is there: a chain more is a wish, and no reason to fail or to press a busy CA.
                break
            except CaRefused:
                continue
        return bodies

    async def revoke(
        self, certificate_der: bytes, reason: int | None = None, *, certificate_key: AccountKey | None = None
    ) -> bool:
        """Revoke a certificate (7.6); False if it was revoked already. May be repeated.

        Args:
            certificate_der: The leaf.
            reason: A CRLReason (RFC 5280 section 5.3.1); None leaves it out.
            certificate_key: The certificate's own key. It signs instead of the account key, and no account is needed.

        Raises:
            NotOffered: this CA revokes nothing by ACME.
            CaRefused: `problem.name` is `badRevocationReason` if the CA takes no such reason, `unauthorized` if the
                signer has no right to revoke this one.
        """
        url = _offered((await self._connection.directory()).revoke_cert, "revocation")
        members: dict[str, Any] = {"certificate": signing.base64url(certificate_der)}
        if reason is not None:
            members["reason"] = reason
        key, kid = (self.key, self._account_url) if certificate_key is None else (certificate_key, None)
        try:
            await self._connection.post(url, msgspec.json.encode(members), "the revocation", key, kid)
        except CaRefused as refusal:
            if _name_of(refusal) == "alreadyRevoked":
                return False
            raise
        return True

    async def renewal_info(self, certificate_id: str) -> Fetched:
        """Ask when a certificate should be renewed (RFC 9773 section 4.1): unsigned, may be repeated.

        `retry_after` of the answer is None where the CA forgot to say when to ask again.

        Raises:
            NotOffered: this CA has no ARI.
        """
        base = _offered((await self._connection.directory()).renewal_info, "renewal information")
        url = f"{base.removesuffix('/')}/{certificate_id}"
        return self._fetched(await self._connection.get(url, "renewal information"))

    @property
    def _account_url(self) -> str:
        if self._kid is None:
            raise Internal("a request that only an account can make, and no account URL is known")
        return self._kid

    async def _post(
        self, url: str, payload: dict[str, Any] | None, what: str, *, by_key: bool = False, repeatable: bool = True
    ) -> Answer:
        body = b"" if payload is None else msgspec.json.encode(payload)
        return await self._send(url, body, what, by_key=by_key, repeatable=repeatable)

    async def _send(self, url: str, body: bytes, what: str, *, by_key: bool = False, repeatable: bool = True) -> Answer:
        kid = None if by_key else self._kid
        return await self._connection.post(url, body, what, self.key, kid, repeatable=repeatable)

    def _fetched(self, answer: Answer) -> Fetched:
        return Fetched(url=answer.url, body=answer.body, retry_after=self._connection.pace(answer))

    def _named(self, answer: Answer) -> Fetched:
        """What was read; nothing of it is used when it names a URL that is not the CA's."""
        for url in named_urls.of_resource(answer.body):
            self._connection.check_url(url)
        return self._fetched(answer)

    def _located(self, answer: Answer, what: str) -> Fetched:
        if answer.location is None:
            raise CaMisbehaved(f"the CA's answer to {what} has no usable Location")
        self._connection.check_url(answer.location)
        return msgspec.structs.replace(self._fetched(answer), url=answer.location)


def _offered(url: str | None, what: str) -> str:
    if url is None:
        raise NotOffered(f"the CA does not offer {what}: its directory has no URL for it")
    return url


def _name_of(refusal: CaRefused) -> str | None:
    return None if refusal.problem is None else refusal.problem.name


def _status_of(refusal: CaRefused) -> int | None:
    return None if refusal.problem is None else refusal.problem.status

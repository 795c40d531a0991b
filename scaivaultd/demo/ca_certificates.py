"""Issued certificates of the development CA: issuing, download and revocation (RFC 8555 sections 7.4.2 and 7.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from cryptography import x509

from scaivaultd.demo.ca_accounts import require_own
from scaivaultd.demo.ca_exchange import Answer, Headers, Signed
from scaivaultd.demo.ca_jws import unb64url
from scaivaultd.demo.ca_problems import Refused, malformed
from scaivaultd.demo.ca_state import Issued, Ledger, Order
from scaivaultd.demo.ca_wrong import wrong_download
from scaivaultd.demo.ca_x509 import Hierarchy, leaf_plan

if TYPE_CHECKING:
    from scaivaultd.demo.ca_authorizations import Authorizations
    from scaivaultd.demo.ca_misbehaviour import WrongCertificate

_REASONS = {0, 1, 3, 4, 5}
"""What public CAs take (RFC 5280 section 5.3.1)."""
_CHAIN_TYPE = "application/pem-certificate-chain"


class Certificates:
    """Issues, hands out and revokes."""

    def __init__(self, ledger: Ledger, hierarchy: Hierarchy, authorizations: Authorizations) -> None:
        self._ledger = ledger
        self._hierarchy = hierarchy
        self._authorizations = authorizations

    def issue(self, order: Order) -> Issued:
        """Sign what the order asks for; its key has been judged before."""
        assert order.public_key is not None
        settings = self._ledger.settings
        plan = leaf_plan(order.public_key, order.identifiers, self._ledger.clock.now(), settings.lifetime)
        certificate = self._hierarchy.issue(plan)
        issued = Issued(
            serial=certificate.serial_number,
            url=self._ledger.url("certificate", self._ledger.new_id()),
            account_url=order.account_url,
            identifiers=order.identifiers,
            certificate=certificate,
            chain_pem=self._hierarchy.chain_pem(certificate),
        )
        self._ledger.issued[issued.serial] = issued
        return issued

    def certificate(self, request: Signed) -> Answer:
        """A chain: the default one, or with `/N` behind its URL the Nth alternate."""
        request.require_read()
        id_, _, alternate = request.id.partition("/")
        issued = self._find(self._ledger.url("certificate", id_))
        require_own(request, issued.account_url)
        misbehaviour = self._ledger.misbehaviour
        if misbehaviour.certificate_404_times > 0:
            misbehaviour.certificate_404_times -= 1
            raise malformed("the certificate is not here yet", status=404)
        if misbehaviour.wrong_certificate is not None:
            return self._wrong(misbehaviour.wrong_certificate, issued)
        return self._chain(issued, alternate)

    def revoke(self, request: Signed) -> Answer:
        """Revoke for the owner, for who has proven all names, or for the certificate's key."""
        members = request.members()
        issued = self._named_by(members.get("certificate"))
        self._require_right(request, issued)
        reason = members.get("reason", 0)
        if isinstance(reason, bool) or reason not in _REASONS:
            raise Refused("badRevocationReason", f"reason {reason!r} is none of {sorted(_REASONS)}")
        if issued.revocation_reason is not None:
            raise Refused("alreadyRevoked", "the certificate is revoked already")
        self._ledger.issued[issued.serial] = msgspec.structs.replace(issued, revocation_reason=reason)
        return Answer()

    def _find(self, url: str) -> Issued:
        found = next((each for each in self._ledger.issued.values() if each.url == url), None)
        if found is None:
            raise malformed("there is no such certificate", status=404)
        return found

    def _chain(self, issued: Issued, alternate: str) -> Answer:
        count = self._ledger.settings.alternates
        if alternate and (not alternate.isdecimal() or not 1 <= int(alternate) <= count):
            raise malformed("there is no such alternate", status=404)
        chosen = int(alternate or 0)
        body = self._hierarchy.chain_pem(issued.certificate, chosen).encode()
        urls = [f"{issued.url}/{n}" if n else issued.url for n in range(count + 1) if n != chosen]
        links: Headers = tuple(("Link", f'<{url}>;rel="alternate"') for url in urls)
        return Answer(body=body, content_type=_CHAIN_TYPE, headers=links)

    def _wrong(self, kind: WrongCertificate, issued: Issued) -> Answer:
        now = self._ledger.clock.now()
        key = issued.certificate.public_key()
        plan = leaf_plan(key, issued.identifiers, now, self._ledger.settings.lifetime)  # type: ignore[arg-type]  # judge_csr let only our kinds of key in
        body = wrong_download(kind, issued.certificate, plan, self._hierarchy, now)
        return Answer(body=body, content_type=_CHAIN_TYPE, is_endless=kind == "endless")

    def _named_by(self, value: object) -> Issued:
        if not isinstance(value, str):
            raise malformed("certificate is not a string")
        der = unb64url(value, "certificate")
        try:
            certificate = x509.load_der_x509_certificate(der)
        except ValueError as error:
            raise malformed("certificate is not DER") from error
        issued = self._ledger.issued.get(certificate.serial_number)
        if issued is None or issued.certificate != certificate:
            raise malformed("this CA has not issued that certificate", status=404)
        return issued

    def _require_right(self, request: Signed, issued: Issued) -> None:
        if request.account is None:
            if request.jwk.key != issued.certificate.public_key():
                raise Refused("unauthorized", "the signing key is not the certificate's")
            return
        if request.account.url != issued.account_url and not self._has_proven_all(request.account.url, issued):
            raise Refused("unauthorized", "the account neither owns the certificate nor has proven all its names")

    def _has_proven_all(self, account_url: str, issued: Issued) -> bool:
        current = [self._authorizations.current(url) for url in self._ledger.authorizations]
        proven = {each.identifier for each in current if (each.account_url, each.status) == (account_url, "valid")}
        return proven.issuperset(issued.identifiers)

"""Revocation at the development CA (RFC 8555 section 7.6), asked for by clients or decided by the CA itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import msgspec
from cryptography import x509

from scaivaultd.demo.ca_exchange import Answer, Signed
from scaivaultd.demo.ca_jws import PublicKey, unb64url
from scaivaultd.demo.ca_keys import encoded
from scaivaultd.demo.ca_problems import Refused, malformed

if TYPE_CHECKING:
    from scaivaultd.demo.ca_authorizations import Authorizations
    from scaivaultd.demo.ca_state import Issued, Ledger

_KEY_COMPROMISE = 1


class Revocations:
    """Judges who may, and remembers compromised keys."""

    def __init__(self, ledger: Ledger, authorizations: Authorizations) -> None:
        self._ledger = ledger
        self._authorizations = authorizations

    def revoke(self, request: Signed) -> Answer:
        """Revoke for the owner, for who has proven all names, or for the certificate's key."""
        members = request.members()
        issued = self._named_by(members.get("certificate"))
        self._require_right(request, issued)
        reason = members.get("reason", 0)
        reasons = self._ledger.settings.revocation_reasons
        if isinstance(reason, bool) or reason not in reasons:
            raise Refused("badRevocationReason", f"reason {reason!r} is none of {sorted(reasons)}")
        if issued.revocation_reason is not None:
            raise Refused("alreadyRevoked", "the certificate is revoked already")
        self.record(issued, reason, by_client=True)
        return Answer()

    def record(self, issued: Issued, reason: int, *, by_client: bool) -> None:
        """The certificate is revoked from now on; a compromised key is never certified again."""
        self._ledger.issued[issued.serial] = msgspec.structs.replace(
            issued, revocation_reason=reason, revoked_at=self._ledger.clock.now(), is_client_revoked=by_client
        )
        if reason == _KEY_COMPROMISE:
            # judge_csr let only our kinds of key in.
            self._ledger.compromised_keys.add(encoded(cast("PublicKey", issued.certificate.public_key())))

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

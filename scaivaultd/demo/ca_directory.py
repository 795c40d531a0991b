"""The development CA's directory and nonces (RFC 8555 sections 7.1.1 and 7.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.demo.ca_exchange import Answer

if TYPE_CHECKING:
    from scaivaultd.demo.ca_renewal import RenewalPolicy
    from scaivaultd.demo.ca_state import Ledger


class Directory:
    """Says where everything is now."""

    def __init__(self, ledger: Ledger, renewal: RenewalPolicy, *, require_eab: bool) -> None:
        self._ledger = ledger
        self._renewal = renewal
        self._require_eab = require_eab

    def document(self, _method: str, _id: str) -> Answer:
        """Addresses, `meta`, and a member nobody knows, as large CAs insert one to keep clients tolerant."""
        self._ledger.conduct.directory_served(self._ledger.generation)
        odd = {self._ledger.new_id(): "clients ignore what they do not know"}
        return Answer(document={**self._addresses(), "meta": self._meta(), **odd})

    def _addresses(self) -> dict[str, str]:
        names = ["newNonce", "newAccount", "newOrder", "revokeCert"]
        if self._ledger.settings.offers_key_change:
            names.append("keyChange")
        addresses = {name: self._ledger.url(name) for name in names}
        if self._renewal.is_offered:
            base = self._ledger.url("renewalInfo")
            addresses["renewalInfo"] = base if self._renewal.trailing_slash else base.removesuffix("/")
        return addresses

    def _meta(self) -> dict[str, object]:
        settings = self._ledger.settings
        meta: dict[str, object] = {"externalAccountRequired": self._require_eab, "caaIdentities": ["ca.example"]}
        if settings.terms_of_service:
            meta["termsOfService"] = self._ledger.terms_url
        if settings.profiles:
            meta["profiles"] = {name: each.description for name, each in settings.profiles.items()}
        return meta


def new_nonce(method: str, _id: str) -> Answer:
    """HEAD gets 200, GET 204; the front adds the nonce (RFC 8555 section 7.2)."""
    return Answer(status=200 if method == "HEAD" else 204)

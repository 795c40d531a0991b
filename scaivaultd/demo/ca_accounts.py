"""Accounts of the development CA (RFC 8555 section 7.3)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.demo.ca_exchange import Answer, Signed
from scaivaultd.demo.ca_jws import Jwk, parse_flattened, parse_jwk, parse_object, verify, verify_binding
from scaivaultd.demo.ca_keys import judge_account_key
from scaivaultd.demo.ca_problems import Refused, malformed
from scaivaultd.demo.ca_state import Account, Ledger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaivaultd.demo.ca_limits import Limits

_MAILTO = re.compile(r"mailto:[^@\s,?]+@[^@\s,?]+\.[^@\s,?.]+")


class Accounts:
    """Registers keys, and lets their owners change and leave."""

    def __init__(self, ledger: Ledger, limits: Limits, eab_keys: Mapping[str, bytes], *, require_eab: bool) -> None:
        self._ledger = ledger
        self._limits = limits
        self._eab_keys = eab_keys
        self._require_eab = require_eab

    def new_account(self, request: Signed) -> Answer:
        """Register a key, or find the account it has already."""
        members = request.members()
        known = self._ledger.account_by_thumbprint(request.jwk.thumbprint)
        if known is not None:
            require_valid(known)
            return self._answer(known, location=True)
        if members.get("onlyReturnExisting") is True:
            raise Refused("accountDoesNotExist", "no account has this key")
        self._require_agreement(members)
        judge_account_key(self._ledger, request.jwk.key)
        account = self._register(request, members)
        return self._answer(account, status=201, location=True)

    def account(self, request: Signed) -> Answer:
        """Read, update the contacts, agree to changed terms, or deactivate."""
        account = require_own(request, request.url)
        if request.is_read:
            return self._answer(account)
        members = request.members()
        if members.get("status") == "deactivated":
            return self._answer(self.deactivate(account))
        if "status" in members:
            raise malformed("the only status an account may ask for is deactivated")
        if "contact" in members:
            account = self._put(msgspec.structs.replace(account, contact=_contacts(members["contact"])))
        if members.get("termsOfServiceAgreed") is True:
            account = self.agree(account)
        return self._answer(account)

    def key_change(self, request: Signed) -> Answer:
        """Replace the account key (RFC 8555 section 7.3.5)."""
        inner = parse_flattened(request.members())
        if inner.header.jwk is None or inner.header.nonce is not None or inner.header.url != request.url:
            raise malformed("the inner header has jwk, no nonce, and the url of the outer one")
        new = parse_jwk(inner.header.jwk)
        verify(inner, new)
        account = request.signer
        _check_roll(parse_object(inner.payload, "the inner payload"), account)
        owner = self._ledger.account_by_thumbprint(new.thumbprint)
        if owner is not None:
            raise _taken(owner)
        judge_account_key(self._ledger, new.key)
        return self._answer(self._put(msgspec.structs.replace(account, jwk=new)))

    def orders(self, request: Signed) -> Answer:
        """A page of the account's order URLs; invalid ones are left out (RFC 8555 section 7.1.2.1)."""
        request.require_read()
        account = require_own(request, self._ledger.url("account", request.id))
        urls = [
            order.url
            for order in self._ledger.orders.values()
            if order.account_url == account.url and order.status != "invalid"
        ]
        end = request.cursor + self._ledger.settings.orders_per_page
        next_page = f'<{self._ledger.url("orders", account.id)}?cursor={end}>;rel="next"'
        headers = (("Link", next_page),) if end < len(urls) else ()
        return Answer(document={"orders": urls[request.cursor : end]}, headers=headers)

    def deactivate(self, account: Account, status: str = "deactivated") -> Account:
        """End an account for good; `revoked` is how the CA does it."""
        return self._put(msgspec.structs.replace(account, status=status))

    def agree(self, account: Account) -> Account:
        """The account has agreed to the terms as they are now."""
        self._ledger.conduct.settled(("terms", account.url))
        return self._put(msgspec.structs.replace(account, terms_version=self._ledger.terms_version))

    def _require_agreement(self, members: dict[str, Any]) -> None:
        if not self._ledger.settings.terms_of_service or members.get("termsOfServiceAgreed") is True:
            return
        terms = f'<{self._ledger.terms_url}>;rel="terms-of-service"'
        raise Refused("userActionRequired", "the terms of service must be agreed to", headers={"Link": terms})

    def _register(self, request: Signed, members: dict[str, Any]) -> Account:
        contact = _contacts(members.get("contact", []))
        eab_key_id = self._bind(members.get("externalAccountBinding"), request.jwk)
        self._limits.new_account()
        id_ = self._ledger.new_id()
        return self._put(
            Account(
                id=id_,
                url=self._ledger.url("account", id_),
                jwk=request.jwk,
                contact=contact,
                eab_key_id=eab_key_id,
                created_at=self._ledger.clock.now(),
                terms_version=self._ledger.terms_version,
            )
        )

    def _bind(self, binding: object, jwk: Jwk) -> str | None:
        if binding is not None:
            url = self._ledger.url("newAccount")
            key_id = verify_binding(binding, eab_keys=self._eab_keys, jwk=jwk, url=url)
            self._require_unused(key_id)
            return key_id
        if self._require_eab:
            raise Refused("externalAccountRequired", "this CA wants an external account binding")
        return None

    def _require_unused(self, key_id: str) -> None:
        used = any(account.eab_key_id == key_id for account in self._ledger.accounts.values())
        if used and self._ledger.settings.single_use_bindings:
            self._ledger.conduct.violate("eab-reuse", "a single-use binding came a second time")
            raise Refused("unauthorized", "the binding's key has made its account already", status=401)

    def _put(self, account: Account) -> Account:
        self._ledger.accounts[account.url] = account
        return account

    def _answer(self, account: Account, *, status: int = 200, location: bool = False) -> Answer:
        document = {
            "status": account.status,
            "contact": list(account.contact),
            "orders": self._ledger.url("orders", account.id),
        }
        return Answer(status=status, document=document, headers=(("Location", account.url),) if location else ())


def require_valid(account: Account) -> None:
    """Refuse an account that has been deactivated."""
    if account.status != "valid":
        raise Refused("unauthorized", f"the account is {account.status}", status=401)


def require_agreed(ledger: Ledger, account: Account) -> None:
    """Refuse an account that has not agreed to the terms as they are now (RFC 8555 section 7.3.3)."""
    if account.terms_version == ledger.terms_version:
        return
    ledger.conduct.told(("terms", account.url), f"{account.url} asks on without agreeing to the new terms")
    raise Refused(
        "userActionRequired",
        "the terms of service have changed and must be agreed to",
        members={"instance": f"{ledger.base_url}/agree/{account.id}"},
        headers={"Link": f'<{ledger.terms_url}>;rel="terms-of-service"'},
    )


def require_own(request: Signed, account_url: str) -> Account:
    """The signer, if the thing asked for belongs to `account_url` and that is the signer."""
    if request.signer.url != account_url:
        raise Refused("unauthorized", "that belongs to another account")
    return request.signer


def _taken(owner: Account) -> Refused:
    """The answer to a key change to a key that is taken: 409 with the Location of its account."""
    return Refused("malformed", "another account has the new key", status=409, headers={"Location": owner.url})


def _check_roll(members: dict[str, Any], account: Account) -> None:
    if members.get("account") != account.url:
        raise malformed("the inner payload names another account")
    old = members.get("oldKey")
    if not isinstance(old, dict) or parse_jwk(old).members != account.jwk.members:
        raise malformed("oldKey is not the account's key")


def _contacts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise malformed("contact is not a list of strings")
    for each in value:
        if not each.startswith("mailto:"):
            raise Refused("unsupportedContact", f"{each!r} is no mailto URL")
        if not _MAILTO.fullmatch(each):
            raise Refused("invalidContact", f"{each!r} is not one plain address")
    return tuple(value)

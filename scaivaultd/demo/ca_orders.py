"""Orders of the development CA (RFC 8555 sections 7.1.3 and 7.4).

An order's status is judged when somebody looks: from its authorizations, and from the clock.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from scaivaultd.demo.ca_accounts import require_agreed, require_own
from scaivaultd.demo.ca_csr import judge_csr
from scaivaultd.demo.ca_exchange import Answer, Headers, Signed, retry_after, timestamp
from scaivaultd.demo.ca_identifiers import Identifier, parse_identifiers
from scaivaultd.demo.ca_jws import unb64url
from scaivaultd.demo.ca_keys import judge_certificate_key
from scaivaultd.demo.ca_lineage import Lineage
from scaivaultd.demo.ca_offers import Offer, choose
from scaivaultd.demo.ca_problems import Refused, malformed, problem
from scaivaultd.demo.ca_state import Authorization, Ledger, Order

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaivaultd.demo.ca_authorizations import Authorizations
    from scaivaultd.demo.ca_certificates import Certificates
    from scaivaultd.demo.ca_limits import Limits
    from scaivaultd.demo.ca_renewal import RenewalPolicy
    from scaivaultd.demo.ca_state import Account, Issued

_UNFINISHED = {"pending", "ready", "processing"}


class Orders:
    """Takes orders, judges them, and finalises them."""

    def __init__(
        self,
        ledger: Ledger,
        authorizations: Authorizations,
        certificates: Certificates,
        limits: Limits,
        renewal: RenewalPolicy,
    ) -> None:
        self.lineage = Lineage(ledger, self.current)
        self._ledger = ledger
        self._limits = limits
        self._renewal = renewal
        self._authorizations = authorizations
        self._certificates = certificates
        self._puzzled: set[str] = set()

    def new_order(self, request: Signed) -> Answer:
        """Place an order; every call makes a new one."""
        require_agreed(self._ledger, request.signer)
        members = request.members()
        identifiers = parse_identifiers(members.get("identifiers"))
        offer = choose(self._ledger, members, identifiers)
        predecessor = self._predecessor(members, request.signer, identifiers)
        url = request.signer.url
        known = self.lineage.is_known(identifiers)
        self._limits.new_order(url, identifiers, replaces=predecessor is not None, known=known)
        order = self._place(request.signer, identifiers, offer)
        if predecessor is not None:
            order = self._put(msgspec.structs.replace(order, replaces=members["replaces"]))
            self.lineage.mark(predecessor, order)
        if self._ledger.misbehaviour.order_valid_at_once:
            drawn = ec.generate_private_key(ec.SECP256R1()).public_key()
            order = self._issue(msgspec.structs.replace(order, public_key=drawn))
        return self._answer(self.current(order.url), status=201)

    def order(self, request: Signed) -> Answer:
        """Read an order."""
        request.require_read()
        answer = self._answer(self._find(request, request.url))
        assert answer.document is not None
        misbehaviour = self._ledger.misbehaviour
        if misbehaviour.omit_finalize_when_polled:
            del answer.document["finalize"]
        if misbehaviour.unknown_states and request.url not in self._puzzled:
            self._puzzled.add(request.url)
            answer.document["status"] = "contemplating"
        return answer

    def finalize(self, request: Signed) -> Answer:
        """Take the CSR of a ready order."""
        order = self._find(request, self._ledger.url("order", request.id))
        csr = request.members().get("csr")
        if not isinstance(csr, str):
            raise malformed("csr is not a string")
        if order.status != "ready":
            if order.status != "invalid":
                self._ledger.conduct.violate("not-ready", f"finalize of {order.url}, which is {order.status}")
            raise Refused("orderNotReady", f"the order is {order.status}")
        account_keys = [account.jwk.key for account in self._ledger.accounts.values()]
        public_key = judge_csr(unb64url(csr, "csr"), order.identifiers, account_keys)
        judge_certificate_key(self._ledger, public_key)
        if self._renewal.is_offered:
            self.lineage.note_key(order, public_key)
        return self._answer(self._finish(msgspec.structs.replace(order, public_key=public_key)))

    def current(self, url: str) -> Order:
        """As it stands now."""
        order = self._ledger.orders[url]
        now = self._ledger.clock.now()
        if order.status == "processing":
            return self._process(order)
        if order.status in _UNFINISHED and order.expires_at <= now:
            return self._fail(order, problem("malformed", "the order has expired"))
        if order.status in _UNFINISHED:
            return self._judge(order)
        return order

    def _predecessor(self, members: dict[str, Any], account: Account, names: tuple[Identifier, ...]) -> Issued | None:
        if "replaces" not in members:
            return None
        if not self._renewal.is_offered:
            # A CA without renewal information does not know the member, so it ignores it.
            self._ledger.conduct.violate("replaces-wrong", "replaces, though no renewalInfo is offered")
            return None
        return self.lineage.admit(members["replaces"], account.url, names)

    def _place(self, account: Account, identifiers: tuple[Identifier, ...], offer: Offer) -> Order:
        id_ = self._ledger.new_id()
        urls = [self._authorizations.obtain(account, each).url for each in identifiers]
        # Proof that is used again was visited for an earlier order, which says nothing about this one.
        self._ledger.conduct.unvisited(*urls)
        now = self._ledger.clock.now()
        return self._put(
            Order(
                id=id_,
                url=self._ledger.url("order", id_),
                account_url=account.url,
                identifiers=identifiers,
                authorizations=self._ledger.shuffled(urls),
                number=len(self._ledger.orders),
                placed_at=now,
                expires_at=now + self._ledger.settings.order_ttl,
                lifetime=offer.lifetime,
                profile=offer.profile,
                not_before=offer.not_before,
                not_after=offer.not_after,
            )
        )

    def _find(self, request: Signed, url: str) -> Order:
        if url not in self._ledger.orders:
            raise malformed("there is no such order", status=404)
        order = self.current(url)
        require_own(request, order.account_url)
        return order

    def _judge(self, order: Order) -> Order:
        authorizations = [self._authorizations.current(url) for url in order.authorizations]
        failed = [each for each in authorizations if each.status not in {"pending", "valid"}]
        if failed:
            return self._fail(order, _joined([_failure(each) for each in failed]))
        if order.status == "pending" and all(each.status == "valid" for each in authorizations):
            return self._put(msgspec.structs.replace(order, status="ready"))
        return order

    def _finish(self, order: Order) -> Order:
        misbehaviour = self._ledger.misbehaviour
        if misbehaviour.invalid_order:
            return self._fail(order, _compound(_rejection(each) for each in order.identifiers))
        if misbehaviour.processing_seconds <= 0 and not misbehaviour.processing_hangs:
            return self._issue(order)
        finishes_at = self._ledger.clock.now() + timedelta(seconds=misbehaviour.processing_seconds)
        return self._put(msgspec.structs.replace(order, status="processing", finishes_at=finishes_at))

    def _process(self, order: Order) -> Order:
        """Go on with a finalised order, unless it hangs or is not due."""
        assert order.finishes_at is not None
        misbehaviour = self._ledger.misbehaviour
        if misbehaviour.processing_hangs or order.finishes_at > self._ledger.clock.now():
            return order
        if misbehaviour.invalid_order:
            return self._fail(order, _compound(_rejection(each) for each in order.identifiers))
        return self._issue(order)

    def _issue(self, order: Order) -> Order:
        issued = self._certificates.issue(order)
        self.lineage.add(issued)
        self._limits.issued(order.identifiers)
        return self._put(msgspec.structs.replace(order, status="valid", certificate_url=issued.url))

    def _fail(self, order: Order, error: dict[str, object]) -> Order:
        return self._put(msgspec.structs.replace(order, status="invalid", error=error))

    def _put(self, order: Order) -> Order:
        self._ledger.orders[order.url] = order
        return order

    def _answer(self, order: Order, *, status: int = 200) -> Answer:
        document: dict[str, Any] = {
            "status": order.status,
            "expires": timestamp(order.expires_at),
            "identifiers": [each.as_json() for each in self._ledger.shuffled(order.identifiers)],
            "authorizations": list(self._ledger.shuffled(order.authorizations)),
            "finalize": self._ledger.url("finalize", order.id),
        }
        document |= _chosen(order)
        if order.certificate_url is not None:
            document["certificate"] = order.certificate_url
        if order.error is not None:
            document["error"] = order.error
        return Answer(status=status, document=document, headers=(("Location", order.url), *self._pace(order)))

    def _pace(self, order: Order) -> Headers:
        if order.status not in {"pending", "processing"}:
            return ()
        authorizations = [self._ledger.authorizations[url] for url in order.authorizations]
        # With `pending_with_error` nothing tells the client how long to wait.
        if any(challenge.error for each in authorizations for challenge in each.challenges):
            return ()
        return retry_after(self._ledger.misbehaviour, self._ledger.clock.now())


def _chosen(order: Order) -> dict[str, str]:
    """What the client asked for beyond names, or got as the default."""
    chosen = {
        "profile": order.profile,
        "replaces": order.replaces,
        "notBefore": timestamp(order.not_before) if order.not_before else None,
        "notAfter": timestamp(order.not_after) if order.not_after else None,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _failure(authorization: Authorization) -> dict[str, object]:
    """What went wrong with one name, as a subproblem."""
    error = next((each.error for each in authorization.challenges if each.error is not None), None)
    reason = error or problem("unauthorized", f"the authorization is {authorization.status}")
    return {**reason, "identifier": authorization.identifier.as_json()}


def _rejection(identifier: Identifier) -> dict[str, object]:
    return {**problem("rejectedIdentifier", "refused while processing"), "identifier": identifier.as_json()}


def _joined(failures: list[dict[str, object]]) -> dict[str, object]:
    if len(failures) > 1:
        return _compound(failures)
    # `identifier` has its place in subproblems only (RFC 8555 section 6.7.1).
    return {name: value for name, value in failures[0].items() if name != "identifier"}


def _compound(failures: Iterable[dict[str, object]]) -> dict[str, object]:
    return {**problem("compound", "several names failed"), "subproblems": list(failures)}

"""Orders of the development CA (RFC 8555 sections 7.1.3 and 7.4).

An order's status is judged when somebody looks: from its authorizations, and from the clock.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from scaivaultd.demo.ca_accounts import require_own
from scaivaultd.demo.ca_csr import judge_csr
from scaivaultd.demo.ca_exchange import Answer, Headers, Signed, retry_after, timestamp
from scaivaultd.demo.ca_identifiers import Identifier, parse_identifiers
from scaivaultd.demo.ca_jws import unb64url
from scaivaultd.demo.ca_problems import Refused, malformed, problem
from scaivaultd.demo.ca_state import Authorization, Ledger, Order

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaivaultd.demo.ca_authorizations import Authorizations
    from scaivaultd.demo.ca_certificates import Certificates

_UNFINISHED = {"pending", "ready", "processing"}


class Orders:
    """Takes orders, judges them, and finalises them."""

    def __init__(self, ledger: Ledger, authorizations: Authorizations, certificates: Certificates) -> None:
        self._ledger = ledger
        self._authorizations = authorizations
        self._certificates = certificates
        self._puzzled: set[str] = set()

    def new_order(self, request: Signed) -> Answer:
        """Place an order; every call makes a new one."""
        members = request.members()
        for name in ("notBefore", "notAfter"):
            if name in members:
                raise malformed(f"this CA chooses {name} itself")
        order = self._place(request, parse_identifiers(members.get("identifiers")))
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
            raise Refused("orderNotReady", f"the order is {order.status}")
        account_keys = [account.jwk.key for account in self._ledger.accounts.values()]
        public_key = judge_csr(unb64url(csr, "csr"), order.identifiers, account_keys)
        return self._answer(self._finish(msgspec.structs.replace(order, public_key=public_key)))

    def current(self, url: str) -> Order:
        """As it stands now."""
        order = self._ledger.orders[url]
        now = self._ledger.clock.now()
        if order.status == "processing":
            assert order.finishes_at is not None
            return self._issue(order) if order.finishes_at <= now else order
        if order.status in _UNFINISHED and order.expires_at <= now:
            return self._fail(order, problem("malformed", "the order has expired"))
        if order.status in _UNFINISHED:
            return self._judge(order)
        return order

    def _place(self, request: Signed, identifiers: tuple[Identifier, ...]) -> Order:
        id_ = self._ledger.new_id()
        urls = [self._authorizations.obtain(request.signer, each).url for each in identifiers]
        return self._put(
            Order(
                id=id_,
                url=self._ledger.url("order", id_),
                account_url=request.signer.url,
                identifiers=identifiers,
                authorizations=self._ledger.shuffled(urls),
                expires_at=self._ledger.clock.now() + self._ledger.settings.order_ttl,
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
        if misbehaviour.processing_seconds <= 0:
            return self._issue(order)
        finishes_at = self._ledger.clock.now() + timedelta(seconds=misbehaviour.processing_seconds)
        return self._put(msgspec.structs.replace(order, status="processing", finishes_at=finishes_at))

    def _issue(self, order: Order) -> Order:
        issued = self._certificates.issue(order)
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

"""THE table: every command the daemon knows. Subjects, routes, schemas and the reference derive from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec

from scaivaultd.api import messages as m
from scaivaultd.model import errors as e

RequestType = TypeVar("RequestType", bound=m.Request)
ReplyType = TypeVar("ReplyType", bound=msgspec.Struct)


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler knows of a request beside its body."""

    request_id: str
    idempotency_key: str | None = None


class Command(msgspec.Struct, Generic[RequestType, ReplyType], frozen=True, kw_only=True):
    """One row. `name` ends the NATS subject; `path` may hold members of the request in braces."""

    name: str
    method: str
    path: str
    request: type[RequestType]
    reply: type[ReplyType]
    status: int = 200
    permission: str
    errors: tuple[type[e.ScaivaultError], ...] = ()
    summary: str
    example: dict[str, Any] = {}

    def subject(self, root: str) -> str:
        """The NATS subject below `root`."""
        return f"{root}.{self.name}"

    def bind(self, handler: Callable[[RequestType, RequestContext], Awaitable[ReplyType]]) -> Binding:
        """Tie the row to what does the work; the type checker compares the two."""
        return Binding(command=self, handler=handler)


class Binding(msgspec.Struct, frozen=True):
    """A row and its handler."""

    command: Command[Any, Any]
    handler: Callable[[Any, RequestContext], Awaitable[msgspec.Struct]]


_CA_ERRORS = (e.CaRefused, e.CaUnavailable, e.BackendRateLimited)
_CERTIFICATE = {"id": "cert_01k2v7m0e8zq3c9x5w1r4t6y8b"}

CREATE_ACCOUNT = Command(
    name="pki.acme.accounts.create",
    method="POST",
    path="/v1/pki/acme/accounts",
    request=m.CreateAccount,
    reply=m.AccountReply,
    status=201,
    permission="account.create",
    errors=(e.Conflict, e.SecretNotFound, *_CA_ERRORS),
    summary="Register an ACME account at a CA.",
    example={"name": "le", "provider": "letsencrypt", "environment": "staging", "email": "ops@example.org"},
)
LIST_ACCOUNTS = Command(
    name="pki.acme.accounts.list",
    method="GET",
    path="/v1/pki/acme/accounts",
    request=m.ListAccounts,
    reply=m.AccountList,
    permission="account.read",
    summary="List ACME accounts.",
    example={"status": "valid"},
)
GET_ACCOUNT = Command(
    name="pki.acme.accounts.get",
    method="GET",
    path="/v1/pki/acme/accounts/{id}",
    request=m.AccountById,
    reply=m.AccountReply,
    permission="account.read",
    errors=(e.NotFound,),
    summary="Show one ACME account.",
    example={"id": "acme_01k2v7m0e8zq3c9x5w1r4t6y8b"},
)
ISSUE = Command(
    name="pki.acme.issue",
    method="POST",
    path="/v1/pki/acme/issue",
    request=m.Issue,
    reply=m.OrderReply,
    status=202,
    permission="cert.issue",
    errors=(e.UnsupportedChallenge, e.NotFound, e.Conflict, e.RateLimited),
    summary="Ask for a certificate; the reply is the order.",
    example={
        "account_id": "acme_01k2v7m0e8zq3c9x5w1r4t6y8b",
        "domains": ["www.example.org", "example.org"],
        "challenge_type": "http-01",
        "auto_renew": True,
    },
)
LIST_ORDERS = Command(
    name="pki.acme.orders.list",
    method="GET",
    path="/v1/pki/acme/orders",
    request=m.ListOrders,
    reply=m.OrderList,
    permission="order.read",
    summary="List orders.",
    example={"status": "invalid", "limit": 20},
)
GET_ORDER = Command(
    name="pki.acme.orders.get",
    method="GET",
    path="/v1/pki/acme/orders/{order_id}",
    request=m.OrderById,
    reply=m.OrderReply,
    permission="order.read",
    errors=(e.NotFound,),
    summary="Show one order.",
    example={"order_id": "acme_order_01k2v7m0e8zq3c9x5w1r4t6y8b"},
)
LIST_CERTIFICATES = Command(
    name="pki.certificates.list",
    method="GET",
    path="/v1/pki/certificates",
    request=m.ListCertificates,
    reply=m.CertificateList,
    permission="cert.read",
    summary="List certificates.",
    example={"domain": "www.example.org"},
)
GET_CERTIFICATE = Command(
    name="pki.certificates.get",
    method="GET",
    path="/v1/pki/certificates/{id}",
    request=m.CertificateById,
    reply=m.CertificateReply,
    permission="cert.read",
    errors=(e.NotFound,),
    summary="Show one certificate's record.",
    example=_CERTIFICATE,
)
GET_PEM = Command(
    name="pki.certificates.pem",
    method="GET",
    path="/v1/pki/certificates/{id}/pem",
    request=m.CertificatePem,
    reply=m.PemReply,
    permission="cert.read",
    errors=(e.NotFound,),
    summary="Fetch a certificate in PEM: leaf, chain, or both.",
    example={**_CERTIFICATE, "part": "fullchain"},
)
GET_KEY = Command(
    name="pki.certificates.key",
    method="GET",
    path="/v1/pki/certificates/{id}/key",
    request=m.CertificateById,
    reply=m.KeyReply,
    permission="key.read",
    errors=(e.NotFound,),
    summary="Fetch a certificate's private key.",
    example=_CERTIFICATE,
)
HEALTH = Command(
    name="sys.health",
    method="GET",
    path="/v1/sys/health",
    request=m.Nothing,
    reply=m.HealthReply,
    permission="sys.health",
    summary="How the daemon is.",
)
INFO = Command(
    name="sys.info",
    method="GET",
    path="/v1/sys/info",
    request=m.Nothing,
    reply=m.InfoReply,
    permission="sys.info",
    summary="What is running: version, plugins, work under way.",
)

COMMANDS: tuple[Command[Any, Any], ...] = (
    CREATE_ACCOUNT,
    LIST_ACCOUNTS,
    GET_ACCOUNT,
    ISSUE,
    LIST_ORDERS,
    GET_ORDER,
    LIST_CERTIFICATES,
    GET_CERTIFICATE,
    GET_PEM,
    GET_KEY,
    HEALTH,
    INFO,
)
"""Every row, in the order of the reference. Any command may also answer `EVERYWHERE`."""

EVERYWHERE: tuple[type[e.ScaivaultError], ...] = (e.InvalidRequest, e.Standby, e.StorageUnavailable, e.Internal)

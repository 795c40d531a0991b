"""THE table: every command the daemon knows. Subjects, routes, schemas and the reference derive from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec

from scaivaultd.api import access_messages as am
from scaivaultd.api import messages as m
from scaivaultd.api import operation_messages as om
from scaivaultd.api.gate import UNLIMITED, Permits
from scaivaultd.model import errors as e
from scaivaultd.model.principals import SYSTEM, Principal

RequestType = TypeVar("RequestType", bound=m.Request)
ReplyType = TypeVar("ReplyType", bound=msgspec.Struct)


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler knows of a request beside its body.

    `permits` judges what only the handler knows of: each item of a list, a reference within a request. `source` is
    where it came from. `takes_keys`: private keys may go back the way it came, in plain.
    """

    request_id: str
    idempotency_key: str | None = None
    principal: Principal = SYSTEM
    permits: Permits = UNLIMITED
    source: str | None = None
    takes_keys: bool = True


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


EVERYBODY = "auth.self"
"""The permission of what every known principal may do."""

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
UPDATE_ACCOUNT = Command(
    name="pki.acme.accounts.update",
    method="PATCH",
    path="/v1/pki/acme/accounts/{id}",
    request=m.UpdateAccount,
    reply=m.AccountReply,
    permission="account.update",
    errors=(e.NotFound, e.Conflict, e.AccountUnusable, *_CA_ERRORS),
    summary="Change an account's name or contact, or agree to the CA's new terms.",
    example={"id": "acme_01k2v7m0e8zq3c9x5w1r4t6y8b", "email": "pki@example.org"},
)
ROTATE_ACCOUNT_KEY = Command(
    name="pki.acme.accounts.rotate_key",
    method="POST",
    path="/v1/pki/acme/accounts/{id}/rotate-key",
    request=m.RotateAccountKey,
    reply=m.AccountReply,
    permission="account.rotate_key",
    errors=(e.NotFound, e.Conflict, e.AccountUnusable, *_CA_ERRORS),
    summary="Give an account a new key at its CA; survives any crash.",
    example={"id": "acme_01k2v7m0e8zq3c9x5w1r4t6y8b"},
)
DEACTIVATE_ACCOUNT = Command(
    name="pki.acme.accounts.deactivate",
    method="DELETE",
    path="/v1/pki/acme/accounts/{id}",
    request=m.DeactivateAccount,
    reply=m.AccountReply,
    permission="account.deactivate",
    errors=(e.NotFound, e.Conflict, *_CA_ERRORS),
    summary="End an account for good, at the CA too.",
    example={"id": "acme_01k2v7m0e8zq3c9x5w1r4t6y8b", "confirm": "le"},
)
LIMITS = Command(
    name="pki.acme.limits",
    method="GET",
    path="/v1/pki/acme/limits",
    request=m.ListLimits,
    reply=m.LimitsReply,
    permission="account.read",
    errors=(e.NotFound,),
    summary="Show what the CAs limit, what is spent of it, and when the next order may go.",
    example={"account_id": "acme_01k2v7m0e8zq3c9x5w1r4t6y8b"},
)
ISSUE = Command(
    name="pki.acme.issue",
    method="POST",
    path="/v1/pki/acme/issue",
    request=m.Issue,
    reply=m.OrderReply,
    status=202,
    permission="cert.issue",
    errors=(e.UnsupportedChallenge, e.NotFound, e.Conflict, e.AccountUnusable, e.RateLimited),
    summary="Ask for a certificate; the reply is the order. The same request while one is under way finds that order.",
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
CANCEL_ORDER = Command(
    name="pki.acme.orders.cancel",
    method="POST",
    path="/v1/pki/acme/orders/{order_id}/cancel",
    request=m.CancelOrder,
    reply=m.OrderReply,
    permission="order.cancel",
    errors=(e.NotFound, e.Conflict),
    summary="Give an order up that has not ended.",
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
    request=m.CertificateKey,
    reply=m.KeyReply,
    permission="key.read",
    errors=(e.NotFound,),
    summary="Fetch a certificate's private key.",
    example=_CERTIFICATE,
)
LIST_VERSIONS = Command(
    name="pki.certificates.versions",
    method="GET",
    path="/v1/pki/certificates/{id}/versions",
    request=m.ListVersions,
    reply=m.VersionList,
    permission="cert.read",
    errors=(e.NotFound,),
    summary="List the versions of a certificate.",
    example=_CERTIFICATE,
)
RENEW_CERTIFICATE = Command(
    name="pki.certificates.renew",
    method="POST",
    path="/v1/pki/certificates/{id}/renew",
    request=m.RenewCertificate,
    reply=m.OrderReply,
    status=202,
    permission="cert.renew",
    errors=(e.NotFound, e.Conflict, e.AccountUnusable, e.RateLimited),
    summary="Renew a certificate now; the reply is the order.",
    example=_CERTIFICATE,
)
UPDATE_CERTIFICATE = Command(
    name="pki.certificates.update",
    method="PATCH",
    path="/v1/pki/certificates/{id}",
    request=m.UpdateCertificate,
    reply=m.CertificateReply,
    permission="cert.update",
    errors=(e.UnsupportedChallenge, e.NotFound, e.Conflict, e.AccountUnusable, e.RateLimited),
    summary="Change what a certificate's next orders ask for; other names are ordered at once.",
    example={**_CERTIFICATE, "auto_renew": True, "renew_before": "30d"},
)
REVOKE = Command(
    name="pki.revoke",
    method="POST",
    path="/v1/pki/revoke",
    request=m.RevokeCertificate,
    reply=m.RevocationReply,
    status=202,
    permission="cert.revoke",
    errors=(
        e.NotFound,
        e.Conflict,
        e.AccountUnusable,
        e.UnsupportedChallenge,
        e.RateLimited,
        e.Timeout,
        *_CA_ERRORS,
    ),
    summary="Revoke a version of a certificate.",
    example={"serial_number": "1A:2B:3C:4D", "reason": "key_compromise", "use_acme": True},
)
GET_REVOCATION = Command(
    name="pki.revocations.get",
    method="GET",
    path="/v1/pki/revocations/{id}",
    request=m.RevocationById,
    reply=m.RevocationReply,
    permission="cert.read",
    errors=(e.NotFound,),
    summary="Show one revocation.",
    example={"id": "revocation_01k2v7m0e8zq3c9x5w1r4t6y8b"},
)
CONFIRM_DEPLOYMENT = Command(
    name="pki.certificates.confirm",
    method="POST",
    path="/v1/pki/certificates/{id}/confirm",
    request=om.ConfirmDeployment,
    reply=om.DeploymentReply,
    permission="cert.confirm",
    errors=(e.NotFound, e.Conflict),
    summary="Tell which version of a certificate a host uses; it is expected to follow from then on.",
    example={**_CERTIFICATE, "host": "web-1", "version": 3},
)
LIST_DEPLOYMENTS = Command(
    name="pki.certificates.deployments",
    method="GET",
    path="/v1/pki/certificates/{id}/deployments",
    request=m.CertificateById,
    reply=om.DeploymentList,
    permission="cert.read",
    errors=(e.NotFound,),
    summary="List the hosts that use a certificate, and which version each has.",
    example=_CERTIFICATE,
)
FORGET_DEPLOYMENT = Command(
    name="pki.certificates.forget_deployment",
    method="DELETE",
    path="/v1/pki/certificates/{id}/deployments/{host}",
    request=om.DeploymentByHost,
    reply=om.DeploymentForgotten,
    permission="cert.confirm",
    errors=(e.NotFound,),
    summary="Expect a host no longer to follow a certificate.",
    example={**_CERTIFICATE, "host": "web-1"},
)
# For www.example.org; nobody has the keys.
_EXAMPLE_PEM = (
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBXzCCAQagAwIBAgIEGis8TTAKBggqhkjOPQQDAjAVMRMwEQYDVQQDDApFeGFt\n"
    "cGxlIENBMCAXDTI2MDEwMTAwMDAwMFoYDzIwOTkwMTAxMDAwMDAwWjAAMFkwEwYH\n"
    "KoZIzj0CAQYIKoZIzj0DAQcDQgAEOQHCIvES8mz79vfzLvllYRkadwKcaIG0v/Nu\n"
    "16UrGKgn1ij/2ArOdO0FdqYjWqgu/s2nfuhJpqe2TU2C6bGWKKNXMFUwHQYDVR0R\n"
    "AQH/BBMwEYIPd3d3LmV4YW1wbGUub3JnMBMGA1UdJQQMMAoGCCsGAQUFBwMBMB8G\n"
    "A1UdIwQYMBaAFNm4+Vw6G6IlAg6/23pj7kTH6gQIMAoGCCqGSM49BAMCA0cAMEQC\n"
    "IDszyQ8i8067KgwKh9/p5HLA5kLc6EvfoR5gbvJPYFFBAiBpiW0aE4rdmW8zdoU/\n"
    "FQXVJJ6a24mbNzPv4GdKoERZEg==\n"
    "-----END CERTIFICATE-----\n"
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBUTCB+KADAgECAgECMAoGCCqGSM49BAMCMBcxFTATBgNVBAMMDEV4YW1wbGUg\n"
    "Um9vdDAgFw0yNjAxMDEwMDAwMDBaGA8yMDk5MDEwMTAwMDAwMFowFTETMBEGA1UE\n"
    "AwwKRXhhbXBsZSBDQTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABAykUMGS5AqW\n"
    "xaC0bZFBwHXMefHqckn0Ubpb7udgvRBrGS7/58EH9kHHb4l2lCJsanTbVE4mV02p\n"
    "qyBdC5UnUmqjNTAzMBIGA1UdEwEB/wQIMAYBAf8CAQAwHQYDVR0OBBYEFNm4+Vw6\n"
    "G6IlAg6/23pj7kTH6gQIMAoGCCqGSM49BAMCA0gAMEUCIQDaj5wx4TWEq1jEP9W7\n"
    "r21IwhpkZqcOthIonMH2GHRItAIgWHMO9OUgIzMGtxkVubDTjS5fON2S2ININndE\n"
    "OcBNiVI=\n"
    "-----END CERTIFICATE-----\n"
)
IMPORT_CERTIFICATE = Command(
    name="pki.certificates.import",
    method="POST",
    path="/v1/pki/certificates/import",
    request=om.ImportCertificate,
    reply=m.CertificateReply,
    status=201,
    permission="cert.import",
    errors=(e.NotFound, e.Conflict, e.UnsupportedChallenge, e.AccountUnusable),
    summary="Take over a certificate of another ACME client, and renew it from now on.",
    example={
        "account_id": "le",
        "chain_pem": _EXAMPLE_PEM,
        "challenge_type": "http-01",
        "source": "certbot:/etc/letsencrypt",
    },
)
_BULK = {"id": "bulk_01k2v7m0e8zq3c9x5w1r4t6y8b"}
CREATE_BULK_RENEWAL = Command(
    name="pki.bulk_renewals.create",
    method="POST",
    path="/v1/pki/bulk-renewals",
    request=m.CreateBulkRenewal,
    reply=m.BulkRenewalReply,
    status=201,
    permission="cert.renew",
    errors=(e.NotFound, e.Conflict),
    summary="Renew many certificates ahead of their time, with a throttle.",
    example={"issuer": "R10", "issued_before": "2026-11-01T00:00:00Z", "per_minute": 30, "note": "CA incident"},
)
LIST_BULK_RENEWALS = Command(
    name="pki.bulk_renewals.list",
    method="GET",
    path="/v1/pki/bulk-renewals",
    request=m.ListBulkRenewals,
    reply=m.BulkRenewalList,
    permission="cert.read",
    summary="List bulk renewals.",
    example={"status": "running"},
)
GET_BULK_RENEWAL = Command(
    name="pki.bulk_renewals.get",
    method="GET",
    path="/v1/pki/bulk-renewals/{id}",
    request=m.BulkRenewalById,
    reply=m.BulkRenewalReply,
    permission="cert.read",
    errors=(e.NotFound,),
    summary="Show how far a bulk renewal has come.",
    example=_BULK,
)
CANCEL_BULK_RENEWAL = Command(
    name="pki.bulk_renewals.cancel",
    method="POST",
    path="/v1/pki/bulk-renewals/{id}/cancel",
    request=m.BulkRenewalById,
    reply=m.BulkRenewalReply,
    permission="cert.renew",
    errors=(e.NotFound, e.Conflict),
    summary="Set no more certificates going; orders under way go on.",
    example=_BULK,
)
_PROVIDER = {"id": "dns-prod"}
CREATE_DNS_PROVIDER = Command(
    name="pki.dns_providers.create",
    method="POST",
    path="/v1/pki/dns-providers",
    request=m.CreateDnsProvider,
    reply=m.DnsProviderReply,
    status=201,
    permission="dns_provider.create",
    errors=(e.Conflict, e.SecretNotFound),
    summary="Configure a DNS provider for dns-01.",
    example={
        "name": "dns-prod",
        "type": "aws_route53",
        "zones": ["example.org"],
        "config": {
            "access_key_id_path": "infra/aws/route53/access-key-id",
            "secret_access_key_path": "infra/aws/route53/secret-access-key",
            "hosted_zone_id": "Z2ABCDEF123456",
        },
    },
)
LIST_DNS_PROVIDERS = Command(
    name="pki.dns_providers.list",
    method="GET",
    path="/v1/pki/dns-providers",
    request=m.ListDnsProviders,
    reply=m.DnsProviderList,
    permission="dns_provider.read",
    summary="List DNS providers.",
    example={"limit": 20},
)
GET_DNS_PROVIDER = Command(
    name="pki.dns_providers.get",
    method="GET",
    path="/v1/pki/dns-providers/{id}",
    request=m.DnsProviderById,
    reply=m.DnsProviderReply,
    permission="dns_provider.read",
    errors=(e.NotFound,),
    summary="Show one DNS provider.",
    example=_PROVIDER,
)
UPDATE_DNS_PROVIDER = Command(
    name="pki.dns_providers.update",
    method="PATCH",
    path="/v1/pki/dns-providers/{id}",
    request=m.UpdateDnsProvider,
    reply=m.DnsProviderReply,
    permission="dns_provider.update",
    errors=(e.NotFound, e.Conflict, e.SecretNotFound),
    summary="Change a DNS provider.",
    example={**_PROVIDER, "zones": ["example.org", "example.net"]},
)
DELETE_DNS_PROVIDER = Command(
    name="pki.dns_providers.delete",
    method="DELETE",
    path="/v1/pki/dns-providers/{id}",
    request=m.DnsProviderById,
    reply=m.Deleted,
    permission="dns_provider.delete",
    errors=(e.NotFound, e.Conflict),
    summary="Delete a DNS provider that nothing needs any more.",
    example=_PROVIDER,
)
TEST_DNS_PROVIDER = Command(
    name="pki.dns_providers.test",
    method="POST",
    path="/v1/pki/dns-providers/{id}/test",
    request=m.TestDnsProvider,
    reply=m.TestReply,
    permission="dns_provider.test",
    errors=(e.NotFound, e.RateLimited),
    summary="Write a random TXT value, watch it appear on all authoritative servers, and remove it.",
    example={**_PROVIDER, "domain": "www.example.org"},
)
TRACE_DNS = Command(
    name="pki.dns_providers.trace",
    method="GET",
    path="/v1/pki/dns-trace/{name}",
    request=m.Trace,
    reply=m.TraceReply,
    permission="dns_provider.read",
    errors=(e.NotFound,),
    summary="Show where a name's dns-01 challenge would go: CNAMEs, zone, provider, name servers, CAA. Writes nothing.",
    example={"name": "*.example.org"},
)
PUT_SECRET = Command(
    name="secrets.put",
    method="PUT",
    path="/v1/secrets/{path}",
    request=m.PutSecret,
    reply=m.SecretReply,
    permission="secret.write",
    summary="Store a secret, sealed; it can be used by reference and never be read back.",
    example={"path": "infra/aws/route53/access-key-id", "value": "..."},
)
LIST_SECRETS = Command(
    name="secrets.list",
    method="GET",
    path="/v1/secrets",
    request=m.ListSecrets,
    reply=m.SecretList,
    permission="secret.list",
    summary="List secrets: paths and versions, never values.",
    example={"prefix": "infra/"},
)
DELETE_SECRET = Command(
    name="secrets.delete",
    method="DELETE",
    path="/v1/secrets/{path}",
    request=m.SecretByPath,
    reply=m.SecretDeleted,
    permission="secret.delete",
    errors=(e.NotFound,),
    summary="Delete a secret.",
    example={"path": "infra/aws/route53/access-key-id"},
)
_TOKEN = {"id": "Ab3dEf9h"}
CREATE_TOKEN = Command(
    name="tokens.create",
    method="POST",
    path="/v1/tokens",
    request=am.CreateToken,
    reply=am.TokenCreated,
    status=201,
    permission="token.create",
    errors=(e.Conflict,),
    summary="Make an API token; its text is shown once.",
    example={"name": "web-ci", "policies": ["web-team"], "lifetime": "90d"},
)
LIST_TOKENS = Command(
    name="tokens.list",
    method="GET",
    path="/v1/tokens",
    request=am.ListTokens,
    reply=am.TokenList,
    permission="token.read",
    summary="List API tokens, never their secrets.",
    example={"include_ended": True},
)
GET_TOKEN = Command(
    name="tokens.get",
    method="GET",
    path="/v1/tokens/{id}",
    request=am.TokenById,
    reply=am.TokenReply,
    permission="token.read",
    errors=(e.NotFound,),
    summary="Show one API token.",
    example=_TOKEN,
)
ROTATE_TOKEN = Command(
    name="tokens.rotate",
    method="POST",
    path="/v1/tokens/{id}/rotate",
    request=am.RotateToken,
    reply=am.TokenCreated,
    permission="token.rotate",
    errors=(e.NotFound, e.Conflict),
    summary="Give an API token another secret; the old one stays good for a while.",
    example={**_TOKEN, "overlap": "24h"},
)
REVOKE_TOKEN = Command(
    name="tokens.revoke",
    method="DELETE",
    path="/v1/tokens/{id}",
    request=am.TokenById,
    reply=am.TokenReply,
    permission="token.revoke",
    errors=(e.NotFound,),
    summary="End an API token at once and for good.",
    example=_TOKEN,
)
_POLICY = {"name": "web-team"}
PUT_POLICY = Command(
    name="policies.put",
    method="PUT",
    path="/v1/policies/{name}",
    request=am.PutPolicy,
    reply=am.PolicyReply,
    permission="policy.write",
    errors=(e.Conflict,),
    summary="Write a policy; it holds from the next request on.",
    example={
        **_POLICY,
        "principals": ["token:web-ci"],
        "rules": [{"actions": ["cert.issue", "cert.renew", "cert.read"], "domains": ["*.web.example.org"]}],
    },
)
LIST_POLICIES = Command(
    name="policies.list",
    method="GET",
    path="/v1/policies",
    request=am.ListPolicies,
    reply=am.PolicyList,
    permission="policy.read",
    summary="List policies.",
    example={"limit": 20},
)
GET_POLICY = Command(
    name="policies.get",
    method="GET",
    path="/v1/policies/{name}",
    request=am.PolicyByName,
    reply=am.PolicyReply,
    permission="policy.read",
    errors=(e.NotFound,),
    summary="Show one policy.",
    example=_POLICY,
)
DELETE_POLICY = Command(
    name="policies.delete",
    method="DELETE",
    path="/v1/policies/{name}",
    request=am.PolicyByName,
    reply=am.PolicyDeleted,
    permission="policy.delete",
    errors=(e.NotFound, e.Conflict),
    summary="Delete a policy.",
    example=_POLICY,
)
CAN_I = Command(
    name="auth.can_i",
    method="POST",
    path="/v1/auth/can-i",
    request=am.CanI,
    reply=am.CanIReply,
    permission=EVERYBODY,
    errors=(e.NotFound,),
    summary="Ask whether something would be allowed, and why.",
    example={"action": "cert.issue", "domains": ["www.example.org"], "account_id": "le"},
)
WHO_AM_I = Command(
    name="auth.whoami",
    method="GET",
    path="/v1/auth/whoami",
    request=m.Nothing,
    reply=am.WhoAmIReply,
    permission=EVERYBODY,
    summary="Show who you are to the daemon, and which policies apply.",
)
LIST_AUDIT = Command(
    name="audit.list",
    method="GET",
    path="/v1/audit",
    request=am.ListAudit,
    reply=am.AuditList,
    permission="audit.read",
    summary="Read the audit log, newest first.",
    example={"action": "key.read", "limit": 20},
)
VERIFY_AUDIT = Command(
    name="audit.verify",
    method="POST",
    path="/v1/audit/verify",
    request=am.VerifyAudit,
    reply=am.AuditVerification,
    permission="audit.read",
    errors=(e.Conflict,),
    summary="Recompute the audit log's hash chain and compare it with its anchors.",
)
MASTER_KEY = Command(
    name="sys.master_key.get",
    method="GET",
    path="/v1/sys/master-key",
    request=m.Nothing,
    reply=am.MasterKeyReply,
    permission="master_key.read",
    summary="Show which master key is in use, where it comes from, and how far a rotation is.",
)
ROTATE_MASTER_KEY = Command(
    name="sys.master_key.rotate",
    method="POST",
    path="/v1/sys/master-key/rotate",
    request=am.RotateMasterKey,
    reply=am.MasterKeyReply,
    status=202,
    permission="master_key.rotate",
    errors=(e.Conflict,),
    summary="Seal everything under a new master key, while the daemon works.",
)
UNSEAL = Command(
    name="sys.unseal",
    method="POST",
    path="/v1/sys/unseal",
    request=am.Unseal,
    reply=am.MasterKeyReply,
    permission="master_key.unseal",
    errors=(e.Conflict, e.RateLimited),
    summary="Give the passphrase of a sealed daemon; over its UNIX socket only.",
    example={"passphrase": "correct horse battery staple"},
)
LIST_EVENTS = Command(
    name="events.list",
    method="GET",
    path="/v1/events",
    request=om.ListEvents,
    reply=om.EventList,
    permission="cert.read",
    summary="Read what has happened, or wait for what happens next.",
    example={"after": 0, "type": "certificate.*"},
)
CREATE_BACKUP = Command(
    name="sys.backup",
    method="POST",
    path="/v1/sys/backup",
    request=om.CreateBackup,
    reply=om.BackupReply,
    permission="backup.create",
    errors=(e.Conflict,),
    summary="Write an encrypted backup into the daemon's state directory.",
    example={"passphrase": "correct horse battery staple"},
)
RESUME = Command(
    name="sys.resume",
    method="POST",
    path="/v1/sys/resume",
    request=m.Nothing,
    reply=om.ResumeReply,
    permission="sys.resume",
    summary="Let a daemon work that was restored from a backup: nothing else has this state any more.",
)
RELOAD = Command(
    name="sys.reload",
    method="POST",
    path="/v1/sys/reload",
    request=m.Nothing,
    reply=om.ReloadReply,
    permission="sys.reload",
    summary="Read the configuration again, as SIGHUP does, and tell what changed and what waits for a restart.",
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
    UPDATE_ACCOUNT,
    ROTATE_ACCOUNT_KEY,
    DEACTIVATE_ACCOUNT,
    LIMITS,
    ISSUE,
    LIST_ORDERS,
    GET_ORDER,
    CANCEL_ORDER,
    LIST_CERTIFICATES,
    GET_CERTIFICATE,
    GET_PEM,
    GET_KEY,
    LIST_VERSIONS,
    RENEW_CERTIFICATE,
    UPDATE_CERTIFICATE,
    IMPORT_CERTIFICATE,
    CONFIRM_DEPLOYMENT,
    LIST_DEPLOYMENTS,
    FORGET_DEPLOYMENT,
    REVOKE,
    GET_REVOCATION,
    CREATE_BULK_RENEWAL,
    LIST_BULK_RENEWALS,
    GET_BULK_RENEWAL,
    CANCEL_BULK_RENEWAL,
    CREATE_DNS_PROVIDER,
    LIST_DNS_PROVIDERS,
    GET_DNS_PROVIDER,
    UPDATE_DNS_PROVIDER,
    DELETE_DNS_PROVIDER,
    TEST_DNS_PROVIDER,
    TRACE_DNS,
    PUT_SECRET,
    LIST_SECRETS,
    DELETE_SECRET,
    CREATE_TOKEN,
    LIST_TOKENS,
    GET_TOKEN,
    ROTATE_TOKEN,
    REVOKE_TOKEN,
    PUT_POLICY,
    LIST_POLICIES,
    GET_POLICY,
    DELETE_POLICY,
    CAN_I,
    WHO_AM_I,
    LIST_AUDIT,
    VERIFY_AUDIT,
    LIST_EVENTS,
    MASTER_KEY,
    ROTATE_MASTER_KEY,
    UNSEAL,
    CREATE_BACKUP,
    RESUME,
    RELOAD,
    HEALTH,
    INFO,
)
"""Every row, in the order of the reference. Any command may also answer `EVERYWHERE`."""

EVERYWHERE: tuple[type[e.ScaivaultError], ...] = (
    e.InvalidRequest,
    e.Unauthenticated,
    e.PermissionDenied,
    e.RateLimited,
    e.Standby,
    e.Sealed,
    e.StorageUnavailable,
    e.Internal,
)

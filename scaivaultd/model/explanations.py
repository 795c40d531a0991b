"""What people ask about errors beyond their advice: what leads to each of ours, and what CAs mean by theirs."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

ACME_ERROR = "urn:ietf:params:acme:error:"

REASONS: Mapping[str, tuple[str, ...]] = {
    "invalid_request": (
        "A member is misspelt, of the wrong kind, or belongs to another command.",
        "A name is no domain name: an address with a port, a URL, an underscore.",
    ),
    "unsupported_challenge": (
        "A wildcard was to be proven by http-01 or tls-alpn-01.",
        "dns-01 was asked for, and no DNS provider is configured.",
    ),
    "not_found": (
        "The id or name is mistyped, or belongs to another daemon.",
        "It is there, but your policies do not let you see it.",
    ),
    "conflict": (
        "The name is taken, or the thing has ended already.",
        "Somebody else changed it at the same time.",
    ),
    "account_unusable": (
        "The account was deactivated, here or at the CA.",
        "The CA has lost it, as test CAs do when they restart.",
    ),
    "cancelled": ("Somebody cancelled the order.",),
    "preflight_failed": (
        "The name resolves to other addresses than those of this daemon.",
        "A CAA record forbids the CA.",
        "Nothing of ours answers at port 80 or 443 of the name.",
    ),
    "unauthenticated": (
        "No token was given, and the address is not the UNIX socket.",
        "The token is mistyped, expired, revoked, or comes from a network that it is not for.",
    ),
    "permission_denied": (
        "No policy allows the action to you, or one denies it.",
        "The token's scopes are narrower than its policies.",
        "The names asked for are not among those of the rule.",
    ),
    "precondition_failed": ("The thing was changed after you had read it.",),
    "rate_limited": (
        "A client asks in a loop.",
        "More orders are under way than `[limits]` allows.",
    ),
    "standby": ("The daemon is starting or stopping.",),
    "sealed": (
        "The daemon has started and waits for its passphrase.",
        "The key file is missing, or is that of another store: a restored backup, an exchanged disk.",
    ),
    "storage_unavailable": (
        "The disk is full.",
        "The file system has become read-only, or is a network share that is away.",
    ),
    "secret_not_found": (
        "The secret was never put, or was deleted.",
        "The reference begins with a scheme (`file:`, `env:`, `cred:`) that `[secrets] allow` does not name.",
    ),
    "dns_error": (
        "The zone is delegated to name servers that do not serve it.",
        "DNSSEC signatures have expired, or the DS record at the parent is that of an old key.",
        "CNAMEs lead in a circle, or this host can reach no name server (a firewall on port 53).",
    ),
    "dns_provider_error": (
        "The credentials are wrong, have expired, or lack rights for the zone.",
        "The zone is in another account of the service.",
        "The service is down, or asks to slow down.",
    ),
    "dns_propagation_timeout": (
        "A secondary name server lags, or does not get NOTIFY.",
        "An old server still stands in the delegation.",
        "The provider takes longer than `propagation_timeout`.",
    ),
    "challenge_failed": (
        "The name resolves to another host than this one, often over IPv6 only.",
        "A firewall or a web server in front keeps the CA from the answer.",
        "The TXT record is written where nobody looks: a CNAME, or a zone in two places.",
    ),
    "ca_error": (
        "The CA will not certify the name, or wants something of the account.",
        "The request is one that this CA does not know, such as a profile.",
    ),
    "ca_unavailable": (
        "The CA has an outage or maintenance.",
        "This host cannot get out: a firewall, a proxy, DNS.",
        "The CA's own certificate is not trusted here (`[acme] trust_files`).",
    ),
    "backend_rate_limited": (
        "Many certificates for one registered domain within a week.",
        "The same names again and again, as after lost state.",
        "Many failed validations within an hour.",
    ),
    "timeout": ("The CA or DNS is slow.",),
    "internal": ("A fault in scaivaultd.",),
}
"""Typical reasons for each code of `model/errors.py`, the commonest first."""


class AcmeProblem(msgspec.Struct, frozen=True):
    """A problem type of CAs: its name, what the CA means by it, and what to do."""

    name: str
    meaning: str
    remedy: str

    @property
    def type(self) -> str:
        """As it stands in a problem document."""
        return f"{ACME_ERROR}{self.name}"


ACME_PROBLEMS = (
    AcmeProblem(
        "accountDoesNotExist",
        "The CA does not know the account that signed the request.",
        "Register another (`scaivaultctl account create`) and give it to the certificates. Test CAs forget accounts "
        "when they restart.",
    ),
    AcmeProblem(
        "alreadyReplaced",
        "The certificate to be replaced has been replaced by an order before.",
        "Nothing: the daemon orders again without saying what is replaced.",
    ),
    AcmeProblem(
        "alreadyRevoked",
        "The certificate was revoked before.",
        "Nothing: the daemon takes it as success.",
    ),
    AcmeProblem(
        "badCSR",
        "The CA does not take the certificate request: its key, its names, or an extension.",
        "With a CSR of your own, make it anew with the names of the order and nothing else; otherwise try another "
        "`key_type`.",
    ),
    AcmeProblem(
        "badNonce",
        "A nonce was used twice, or was too old.",
        "Nothing: the daemon repeats the request. If it lasts, a proxy between you and the CA answers from a cache.",
    ),
    AcmeProblem(
        "badPublicKey",
        "The CA does not take the key: its kind, its size, or because it is known to others.",
        "Choose another `key_type`, or have a new key made.",
    ),
    AcmeProblem(
        "badRevocationReason",
        "The CA does not take this reason for a revocation.",
        "Revoke with another reason, or with none.",
    ),
    AcmeProblem(
        "badSignatureAlgorithm",
        "The CA does not take signatures of the account key's kind.",
        "`scaivaultctl account rotate-key` with a kind that the CA names in its answer.",
    ),
    AcmeProblem(
        "caa",
        "A CAA record of the name, or of a name above it, forbids this CA, this account, or this kind of challenge.",
        "`scaivaultctl dns trace NAME` shows the record and where it stands. Add the CA to it (the account's `CAA "
        "names`), or order from a CA that it permits.",
    ),
    AcmeProblem(
        "compound",
        "Several things are wrong; each stands in a subproblem.",
        "`scaivaultctl order show` tells them for each name.",
    ),
    AcmeProblem(
        "connection",
        "The CA could not connect to the name to look at the challenge.",
        "Open port 80 (http-01) or 443 (tls-alpn-01) to the world, over IPv6 too where the name has an AAAA record; "
        "or prove the name by dns-01.",
    ),
    AcmeProblem(
        "dns",
        "The CA could not look the name up: no such name, a broken delegation, or DNSSEC that does not validate.",
        "`scaivaultctl dns trace NAME` shows the way and the name servers' answers.",
    ),
    AcmeProblem(
        "externalAccountRequired",
        "The CA registers only those who are its customers already.",
        "Get a key id and a MAC key from the CA, and give them with `scaivaultctl account create --eab-key-id`.",
    ),
    AcmeProblem(
        "incorrectResponse",
        "The CA found an answer that is not ours.",
        "Another web server or another ACME client answers for the name, or an old TXT record still stands there: see "
        "`scaivaultctl order show`.",
    ),
    AcmeProblem(
        "invalidContact",
        "The CA does not take the email address.",
        "`scaivaultctl account update --email` with another, or `--no-email`.",
    ),
    AcmeProblem(
        "invalidProfile",
        "The CA has no such certificate profile.",
        "`scaivaultctl account show` lists those that it has.",
    ),
    AcmeProblem(
        "malformed",
        "The CA could not read the request, or it does not fit the state of the order.",
        "Ask again; if it lasts, the daemon's log has the exchange, which is worth a report.",
    ),
    AcmeProblem(
        "orderNotReady",
        "An order was to be finished before its names were proven.",
        "Nothing: the daemon looks again.",
    ),
    AcmeProblem(
        "rateLimited",
        "The CA asks us to slow down.",
        "`scaivaultctl limits` tells which budget is spent and until when; orders wait and go on by themselves.",
    ),
    AcmeProblem(
        "rejectedIdentifier",
        "The CA will not certify this name: it is on a list, or is no public name.",
        "Take it out of the certificate, or use another CA.",
    ),
    AcmeProblem(
        "serverInternal",
        "The CA has a fault.",
        "Usually nothing: the daemon tries again. If it lasts, see the CA's status page.",
    ),
    AcmeProblem(
        "tls",
        "The CA could not set up TLS with the name to look at the challenge.",
        "For tls-alpn-01, port 443 must reach the daemon's listener, not a proxy that ends TLS.",
    ),
    AcmeProblem(
        "unauthorized",
        "At a name: the CA saw an answer that does not prove it, such as a 404. Else: the account may not do that.",
        "`scaivaultctl order show` tells what the CA saw, and what the daemon saw then.",
    ),
    AcmeProblem(
        "unsupportedContact",
        "The CA takes no contact of this kind.",
        "`scaivaultctl account update --email` with a plain address, or `--no-email`.",
    ),
    AcmeProblem(
        "unsupportedIdentifier",
        "The CA certifies no names of this kind, such as IP addresses.",
        "Use another CA, or a profile of this one that does.",
    ),
    AcmeProblem(
        "userActionRequired",
        "The CA waits for a person: new terms of service, or a page to visit.",
        "`scaivaultctl account show` has the address. Afterwards `scaivaultctl account update --agree-tos` lets the "
        "orders go on at once.",
    ),
)
"""The problem types of RFC 8555 section 6.7, RFC 9773 and the profiles extension, by name."""


def acme_problem(text: str) -> AcmeProblem | None:
    """The problem type of that name, with or without its URN, however it is spelt."""
    wanted = text.removeprefix(ACME_ERROR).replace("_", "").replace("-", "").lower()
    return next((each for each in ACME_PROBLEMS if each.name.lower() == wanted), None)

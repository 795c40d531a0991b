"""Requests and replies about access: tokens, policies, the audit log, the master key."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from scaivaultd.api.messages import Cursor, Duration, Limit, Request
from scaivaultd.model.access import AuditRecord, PolicyRule, Reason
from scaivaultd.model.resources import ChallengeType, KeyType

PolicyName = Annotated[
    str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z", description="The policy's name: lower case, unique.")
]
Network = Annotated[str, Meta(min_length=1, max_length=50, description="A network (CIDR), or one address.")]
Action = Annotated[str, Meta(min_length=1, max_length=100, description="`cert.issue`, `cert.*`, `*`.")]


class NatsLogin(msgspec.Struct, frozen=True, kw_only=True):
    """How a caller uses NATS: it asks below `subject_root`, and takes replies below `inbox_prefix` only."""

    subject_root: str
    inbox_prefix: str


class CreateToken(Request, frozen=True):
    """Make an API token. Its text is shown once, in the reply, and only a digest of it is kept."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z][a-z0-9._-]{0,62}\Z", description="What policies call it (`token:NAME`); unique for ever."
        ),
    ]
    policies: Annotated[
        list[PolicyName],
        Meta(
            max_length=50,
            description="Policies for it beside those that name it; `viewer`, `issuer`, `operator`, `admin` are always "
            "there. Whoever may not write policies can give only what it has itself.",
        ),
    ] = msgspec.field(default_factory=list)
    scopes: Annotated[list[Action], Meta(max_length=50, description="The most it may ever do; empty: no bound.")] = (
        msgspec.field(default_factory=list)
    )
    networks: Annotated[
        list[Network], Meta(max_length=50, description="Where it may be used from; empty: anywhere.")
    ] = msgspec.field(default_factory=list)
    lifetime: Annotated[Duration, Meta(description="How long it lives; at most 365d.")] = "90d"


class TokenById(Request, frozen=True):
    """Name one token."""

    id: Annotated[
        str, Meta(max_length=100, description="The token's id (the eight characters after `scvt_`), or name.")
    ]


class RotateToken(TokenById, frozen=True):
    """Give a token another secret. The one it had stays good for a while; its expiry begins anew."""

    overlap: Annotated[Duration, Meta(description="How long the old secret stays good; at most 7d.")] = "24h"
    lifetime: Annotated[
        Duration | None, Meta(description="How long it lives from now on; absent: as long as before.")
    ] = None


class ListTokens(Request, frozen=True):
    """Page through tokens."""

    include_ended: Annotated[bool, Meta(description="Those that are revoked or expired too.")] = False
    limit: Limit = 100
    cursor: Cursor | None = None


class TokenReply(msgspec.Struct, frozen=True, kw_only=True):
    """An API token, without its secret."""

    id: str
    name: str
    principal: Annotated[str, Meta(description="`token:ID`.")]
    status: Literal["valid", "expired", "revoked"]
    policies: list[str]
    scopes: list[str]
    networks: list[str]
    created_at: datetime
    created_by: str
    expires_at: datetime
    last_used_at: Annotated[datetime | None, Meta(description="To the minute.")] = None
    revoked_at: datetime | None = None
    previous_until: Annotated[datetime | None, Meta(description="Until when the secret before is good too.")] = None
    nats: Annotated[NatsLogin | None, Meta(description="Its place on NATS, where tokens log in there.")] = None


class TokenCreated(TokenReply, frozen=True, kw_only=True):
    """A token with its text. It is never shown again."""

    token: Annotated[
        str, Meta(description="`scvt_...`; send it as `Authorization: Bearer`, or log in to NATS with it.")
    ]

    def __repr__(self) -> str:
        return f"TokenCreated(id={self.id!r})"


class TokenList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of tokens."""

    items: list[TokenReply]
    next_cursor: str | None


class PutPolicy(Request, frozen=True):
    """Write a policy, new or in place of the one of that name."""

    name: PolicyName
    principals: Annotated[
        list[Annotated[str, Meta(max_length=1100)]],
        Meta(
            max_length=500,
            description="For whom: `token:web-ci` (name or id), `nats:APP/web`, `nkey:U...`, `unix:33`; a `*` at the "
            "end stands for any rest.",
        ),
    ] = msgspec.field(default_factory=list)
    rules: Annotated[list[PolicyRule], Meta(max_length=200, description="What they may do, and what not.")] = (
        msgspec.field(default_factory=list)
    )


class PolicyByName(Request, frozen=True):
    """Name one policy."""

    name: PolicyName


class ListPolicies(Request, frozen=True):
    """Page through policies."""

    limit: Limit = 100
    cursor: Cursor | None = None


class PolicyReply(msgspec.Struct, frozen=True, kw_only=True):
    """A policy. Those of the configuration file (`file`) and `built_in` ones cannot be changed by request."""

    name: str
    origin: Literal["api", "file", "built_in"]
    principals: list[str]
    rules: list[PolicyRule]
    created_at: datetime | None = None
    updated_at: datetime | None = None


class PolicyList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of policies."""

    items: list[PolicyReply]
    next_cursor: str | None


class PolicyDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """The policy is gone."""

    name: str


class CanI(Request, frozen=True):
    """Ask whether something would be allowed, and by which rule. Nothing is done."""

    action: Action
    domains: Annotated[
        list[Annotated[str, Meta(max_length=1000)]], Meta(max_length=1000, description="The names of the certificate.")
    ] = msgspec.field(default_factory=list)
    account_id: Annotated[str, Meta(max_length=100, description="The ACME account, by id or name.")] | None = None
    challenge_type: Annotated[ChallengeType, Meta(description="How the names would be proven.")] = "http-01"
    key_type: Annotated[KeyType, Meta(description="Kind of the certificate's private key.")] = "ec-p256"
    secret: Annotated[str, Meta(max_length=500, description="A secret reference, for `secret.*`.")] | None = None
    principal: (
        Annotated[
            str,
            Meta(
                max_length=1100, description="For whom, such as `token:web-ci`; needs `policy.read`. Absent: yourself."
            ),
        ]
        | None
    ) = None


class CanIReply(msgspec.Struct, frozen=True, kw_only=True):
    """The decision, and why."""

    allowed: bool
    principal: str
    action: str
    policy: Annotated[str | None, Meta(description="The policy whose rule decided; null: no rule speaks of it.")]
    rule: Annotated[int | None, Meta(description="Which of its rules, counted from 1.")]
    reasons: list[Reason]


class WhoAmIReply(msgspec.Struct, frozen=True, kw_only=True):
    """Who you are to the daemon."""

    principal: str
    name: Annotated[str | None, Meta(description="A token's name.")]
    policies: Annotated[list[str], Meta(description="The policies that apply to you.")]
    scopes: list[str]
    expires_at: datetime | None
    nats: NatsLogin | None


class ListAudit(Request, frozen=True):
    """Page through the audit log, newest first."""

    principal: Annotated[str, Meta(max_length=1100, description="Only what this principal did.")] | None = None
    action: Annotated[str, Meta(max_length=100, description="Only this action.")] | None = None
    object: Annotated[str, Meta(max_length=1100, description="Only what was about this.")] | None = None
    limit: Limit = 100
    cursor: Cursor | None = None


class AuditList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of audit records."""

    items: list[AuditRecord]
    next_cursor: str | None


class VerifyAudit(Request, frozen=True):
    """Recompute the hash chain of the audit log, and compare it with its anchors."""


class AuditBreak(msgspec.Struct, frozen=True, kw_only=True):
    """The first record at which the chain is not whole."""

    sequence: int
    kind: Annotated[str, Meta(description="`unreadable`, `edited`, `removed`, `reordered`, `rewritten` or `cut_off`.")]
    detail: str


class AuditVerification(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the audit log is whole."""

    is_sound: bool
    records: Annotated[int, Meta(description="How many records are sound, from the first one kept.")]
    head_sequence: Annotated[int, Meta(description="The last sound record.")]
    head_hash: str
    anchors: Annotated[int, Meta(description="How many anchors it was compared with.")]
    broken: AuditBreak | None = None


class RotationReply(msgspec.Struct, frozen=True, kw_only=True):
    """How far a rotation of the master key has come."""

    from_kid: str
    to_kid: str
    started_at: datetime
    rewrapped: int
    finished_at: datetime | None = None


class MasterKeyReply(msgspec.Struct, frozen=True, kw_only=True):
    """The master key, by its public name."""

    is_sealed: bool
    reason: Annotated[
        Literal["key_missing", "key_mismatch", "passphrase_needed"] | None, Meta(description="Why it is sealed.")
    ] = None
    detail: str = ""
    kid: Annotated[str | None, Meta(description="The name of the key that the store is sealed with.")] = None
    source: Annotated[str | None, Meta(description="Where the key is looked for.")] = None
    created_at: datetime | None = None
    rotation: RotationReply | None = None


class RotateMasterKey(Request, frozen=True):
    """Seal everything under a new master key, while the daemon works; survives any crash.

    Without `new_source` the daemon replaces the key in the file that it has now.
    """

    new_source: (
        Annotated[
            str,
            Meta(max_length=1000, description="Where the new key is: `file:PATH`, `credential:NAME` or `env:NAME`."),
        ]
        | None
    ) = None
    new_passphrase: (
        Annotated[
            str, Meta(min_length=8, max_length=1000, description="A new passphrase, where the key comes from one.")
        ]
        | None
    ) = None

    def __repr__(self) -> str:
        return f"RotateMasterKey(new_source={self.new_source!r})"


class Unseal(Request, frozen=True):
    """Give the passphrase from which the master key is made; over the UNIX socket only."""

    passphrase: Annotated[str, Meta(min_length=8, max_length=1000, description="The passphrase itself.")]

    def __repr__(self) -> str:
        return "Unseal()"

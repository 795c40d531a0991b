"""Requests and replies about running the daemon and the hosts it serves: events, deployments, imports, backups."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from scaivaultd.api.messages import CertificateById, Limit, PropagationRequest, Request
from scaivaultd.model.resources import ChallengeType

Host = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        description="The host's own name for itself, such as its host name.",
    ),
]


class ListEvents(Request, frozen=True):
    """Read what has happened, oldest first. With `wait_seconds` the answer comes when there is something."""

    after: (
        Annotated[
            int,
            Meta(
                ge=0,
                description="Only events behind this sequence number; 0 is the beginning. Absent: those from now on.",
            ),
        ]
        | None
    ) = None
    type: (
        Annotated[str, Meta(max_length=64, description="Only this type, or with a final `.*` only this family.")] | None
    ) = None
    resource_id: Annotated[str, Meta(max_length=64, description="Only what is about this resource.")] | None = None
    limit: Limit = 100
    wait_seconds: Annotated[
        float, Meta(ge=0, le=60, description="How long to wait where there is nothing yet; 0: not at all.")
    ] = 0.0


class EventReply(msgspec.Struct, frozen=True, kw_only=True):
    """One event, as it went out on NATS."""

    sequence: Annotated[int, Meta(description="Its place; grows, with gaps.")]
    id: Annotated[str, Meta(description="The same event has the same id everywhere, `ce-id` on NATS.")]
    type: str
    resource_id: str
    time: datetime
    data: dict[str, Any]


class EventList(msgspec.Struct, frozen=True, kw_only=True):
    """Events, oldest first. Ask again with `after` = `next_after`, also when there are none."""

    items: list[EventReply]
    next_after: Annotated[int, Meta(description="Where to go on; beyond events that were passed over.")]
    oldest: (
        Annotated[
            int, Meta(description="The oldest sequence that is kept; when `after` lies before it, some are gone.")
        ]
        | None
    ) = None


class ConfirmDeployment(CertificateById, frozen=True):
    """Tell that a host uses a version of a certificate. The same again changes nothing but the time."""

    host: Host
    version: Annotated[int, Meta(ge=1, description="The version that is installed there.")]
    where: Annotated[str, Meta(max_length=500, description="The folder or service, for people.")] = ""
    error: (
        Annotated[
            str,
            Meta(
                max_length=1000, description="What went wrong when it was put in use, such as the words of its reload."
            ),
        ]
        | None
    ) = None


class DeploymentByHost(CertificateById, frozen=True):
    """Name one host of a certificate."""

    host: Host


class DeploymentReply(msgspec.Struct, frozen=True, kw_only=True):
    """One host that uses a certificate."""

    id: Annotated[str, Meta(description="The certificate, `cert_...`.")]
    host: str
    version: int
    current_version: int
    is_current: bool
    is_overdue: Annotated[bool, Meta(description="It was told to be behind: `certificate.deploy_overdue`.")] = False
    where: str = ""
    error: str | None = None
    first_seen_at: datetime
    confirmed_at: datetime
    confirmed_by: Annotated[str, Meta(description="Who said so: `token:...`, `unix:...`.")]


class DeploymentList(msgspec.Struct, frozen=True, kw_only=True):
    """Every host that has confirmed a version, by name."""

    items: list[DeploymentReply]


class DeploymentForgotten(msgspec.Struct, frozen=True, kw_only=True):
    """The host is no longer expected to follow."""

    id: str
    host: str
    deleted: Literal[True] = True


class ImportCertificate(Request, frozen=True):
    """Take over a certificate that another ACME client has obtained; it is renewed here from now on.

    The same chain again finds the same certificate.
    """

    account_id: Annotated[str, Meta(description="The account that renews it, `acme_...`.")]
    chain_pem: Annotated[str, Meta(max_length=50_000, description="The certificate and its chain, leaf first (PEM).")]
    private_key_pem: (
        Annotated[
            str, Meta(max_length=20_000, description="Its private key; stored sealed. Absent: the next one is new.")
        ]
        | None
    ) = None
    challenge_type: Annotated[ChallengeType, Meta(description="How its names are proved from now on.")] = "http-01"
    dns_provider: Annotated[str | None, Meta(description="For dns-01: the DNS provider, where there are several.")] = (
        None
    )
    propagation: Annotated[
        PropagationRequest | None, Meta(description="For dns-01: when its values count as visible.")
    ] = None
    auto_renew: Annotated[bool, Meta(description="false: it is only kept, and told of when it ends.")] = True
    reuse_key: Annotated[bool, Meta(description="Renew it with the same private key.")] = False
    source: Annotated[str, Meta(max_length=500, description="Where it comes from, for people.")] = ""
    allow_duplicate: Annotated[
        bool, Meta(description="Take it although a valid certificate here has the same names and kind of key.")
    ] = False

    def __repr__(self) -> str:
        return f"ImportCertificate(account_id={self.account_id!r}, source={self.source!r})"


class CreateBackup(Request, frozen=True):
    """Write a consistent, encrypted copy of everything into the daemon's state directory.

    Exactly one of the two. A passphrase is taken over the UNIX socket only.
    """

    recipient: (
        Annotated[str, Meta(max_length=200, description="The public key of `scaivaultctl backup keygen`: `scvr1...`.")]
        | None
    ) = None
    passphrase: Annotated[str, Meta(min_length=8, max_length=1000, description="What opens it again.")] | None = None

    def __repr__(self) -> str:
        return f"CreateBackup(recipient={self.recipient!r})"


class BackupReply(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was written."""

    path: Annotated[str, Meta(description="Where it lies, on the daemon's host.")]
    bytes: int
    sha256: str
    created_at: datetime
    documents: int
    audit_records: int


class ResumeReply(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon works; `was_paused` tells whether it had not, being restored from a backup."""

    was_paused: bool
    restored_from: str | None = None


class ReloadReply(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the configuration as it stands in the file now."""

    ok: Annotated[bool, Meta(description="false: it cannot be used, and all is as it was.")]
    changed: Annotated[list[str], Meta(description="Keys that are in force with their new value.")] = []
    needs_restart: Annotated[list[str], Meta(description="Keys that have changed, and wait for a restart.")] = []
    mistakes: Annotated[list[str], Meta(description="What is wrong, as FILE:LINE: key: what.")] = []

"""Who sent a request over NATS: what the server vouches for, by the way that its subject root is configured.

NATS tells a service nothing of the sender by itself. What can be believed is what the server enforces: below which
subject a user may publish, and the header that it writes when a request crosses from one account to another. The
reply subject is the sender's choice and is not checked by the server: answering would make us publish wherever a
caller likes, with our permissions. So it is judged here, too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from scaivaultd.gateways import nkeys
from scaivaultd.model.principals import Principal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.api.commands import Command
    from scaivaultd.plugin import Secret

IdentityMode = Literal["auth_callout", "subject_token", "account_import", "trusted", "local"]
"""`local` is the plain root of the embedded server, which only the login in `client.json` may use."""

REQUEST_INFO = "Nats-Request-Info"
OWN_INBOX = "_INBOX_scaivaultd"
"""Where the daemon itself takes replies, acknowledgements of events among them."""

_LOCAL = Principal(kind="nats", id="$G/local")
_TRUSTED = Principal(kind="nats", id="$G/trusted")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?P<pre>-\S*)?")
# CVE-2026-33246: before, a leaf node could write the header itself.
_OLDEST_TRUE_2_11 = (2, 11, 15)
_OLDEST_TRUE = (2, 12, 6)


class Ingress(msgspec.Struct, frozen=True, kw_only=True):
    """One subject root; `account` stands in `nats:ACCOUNT/USER`. `keys_to_any`: any reply subject may get a key."""

    root: str
    identity: IdentityMode
    account: str = "$G"
    keys_to_any: bool = False

    @property
    def names_sender(self) -> bool:
        """Whether the sender stands in the subject: ROOT.as.SENDER.COMMAND."""
        return self.identity in ("auth_callout", "subject_token")

    def subject(self, command: Command[Any, Any]) -> str:
        """Where the command is asked for."""
        return command.subject(f"{self.root}.as.*" if self.names_sender else self.root)

    def sender(self, subject: str) -> str:
        """Who asks, as `subject` says: it is one that the subject of a command matches."""
        return subject.removeprefix(f"{self.root}.as.").partition(".")[0]


class KnownTokens(Protocol):
    """Who has a token."""

    def by_token(self, token: Secret, address: str | None) -> Principal | None:
        """The principal; raises RateLimited when too many wrong ones came from this address."""
        ...

    def by_token_id(self, token_id: str) -> Principal | None:
        """The principal, as long as its token is good; the server has seen the token itself."""
        ...


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request before its body is looked at."""

    subject: str
    reply: str
    headers: Mapping[str, str]
    server_version: str


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. `principal` None: nobody that is known, and `refusal` says what to do about it."""

    principal: Principal | None = None
    refusal: str = ""
    takes_keys: bool = False

    @property
    def is_one(self) -> bool:
        """Whether it is one of many that are told apart, and not everybody together."""
        return self.principal not in (None, _LOCAL, _TRUSTED)


class Callers:
    """Knows the senders of requests, and the subjects that answers may go to."""

    def __init__(self, tokens: KnownTokens, *, closed: Sequence[str]) -> None:
        """`closed` are the roots below which nothing is ever answered."""
        self._tokens = tokens
        self._closed = (*closed, OWN_INBOX)

    def may_answer(self, ingress: Ingress, asked: Asked) -> bool:
        """Whether an answer may go to the reply subject. Where not, the request must not even be looked at.

        What comes without a reply subject below a root that names the sender was not sent by that sender: servers
        republish messages to subjects that whoever configured it need not be allowed to publish to.
        """
        if not asked.reply:
            return not ingress.names_sender
        if ingress.identity == "auth_callout":
            return _is_below(asked.reply, f"_INBOX_{ingress.sender(asked.subject)}")
        return self.may_refuse(asked)

    def may_refuse(self, asked: Asked) -> bool:
        """Whether a refusal may go to the reply subject, whoever asks."""
        reply = asked.reply
        return _is_plain(reply) and reply[0] != "$" and not any(_is_below(f"{reply}.x", each) for each in self._closed)

    def caller(self, ingress: Ingress, asked: Asked) -> Caller:
        """Who asks; for requests that may be answered."""
        match ingress.identity:
            case "auth_callout":
                return self._by_token_id(ingress.sender(asked.subject))
            case "subject_token":
                return _by_subject(ingress, asked)
            case "account_import":
                return _by_header(ingress, asked)
            case "trusted":
                return Caller(principal=_TRUSTED, takes_keys=ingress.keys_to_any)
            case "local":
                return Caller(principal=_LOCAL, takes_keys=True)

    def _by_token_id(self, token_id: str) -> Caller:
        principal = self._tokens.by_token_id(token_id)
        if principal is None:
            return Caller(refusal="the token of this login is revoked, expired, or unknown")
        return Caller(principal=principal, takes_keys=True)


def how_to_ask(ingress: Ingress) -> str:
    """What to tell whoever asks at a root that names the sender, without a name."""
    if ingress.identity == "auth_callout":
        return (
            f"log in to NATS with an API token, and ask below {ingress.root}.as.TOKEN_ID, where TOKEN_ID is the eight "
            "characters after scvt_; replies go to _INBOX_TOKEN_ID only"
        )
    return f"ask below {ingress.root}.as.USER, where USER is your NATS user"


def vouches_for_accounts(server_version: str) -> bool:
    """Whether a server of that version writes `Nats-Request-Info` itself, whatever its leaf nodes send."""
    found = _VERSION.fullmatch(server_version.partition("+")[0])
    if found is None:
        return False
    version = int(found[1]), int(found[2]), int(found[3])
    oldest = _OLDEST_TRUE_2_11 if version[:2] == (2, 11) else _OLDEST_TRUE
    return version > oldest or (version == oldest and not found["pre"])


def _by_subject(ingress: Ingress, asked: Asked) -> Caller:
    user = ingress.sender(asked.subject)
    principal = _nats_user(ingress.account, user)
    if principal is None:
        return Caller(refusal=f"{user[:80]!r} in account {ingress.account!r} cannot be a principal here")
    return Caller(principal=principal, takes_keys=ingress.keys_to_any or _is_below(asked.reply, f"_INBOX_{user}"))


class _RequestInfo(msgspec.Struct, frozen=True):
    """What the server writes about a request from another account; no more than `acc` where it is not shared."""

    acc: Annotated[str, Meta(min_length=1)]
    user: str = ""
    nkey: str = ""


def _by_header(ingress: Ingress, asked: Asked) -> Caller:
    if not vouches_for_accounts(asked.server_version):
        return Caller(
            refusal=f"this nats-server ({asked.server_version}) may pass on a forged {REQUEST_INFO} (CVE-2026-33246): "
            "its administrator must upgrade it to 2.11.15, 2.12.6 or later"
        )
    # In the server's own spelling only: any other is the sender's.
    text = asked.headers.get(REQUEST_INFO)
    if text is None:
        return Caller(refusal=f"the request came from no other account: it has no {REQUEST_INFO}, or more than one")
    try:
        info = msgspec.json.decode(text, type=_RequestInfo)
    except (msgspec.DecodeError, UnicodeError):
        return Caller(refusal=f"{REQUEST_INFO} cannot be read")
    name = info.user or info.nkey
    if not name:
        return Caller(refusal=f"account {info.acc!r} does not share who asks: its import needs `share: true`")
    principal = Principal(kind="nkey", id=name) if nkeys.is_public(name, "U") else _nats_user(info.acc, name)
    if principal is None:
        return Caller(refusal=f"{name[:80]!r} in account {info.acc[:80]!r} cannot be a principal here")
    return Caller(principal=principal, takes_keys=ingress.keys_to_any)


def _nats_user(account: str, user: str) -> Principal | None:
    try:
        principal = Principal(kind="nats", id=f"{account}/{user}")
    except ValueError:
        return None
    # Policies know these two as our own: no user of that name may have what they have.
    return None if principal in (_LOCAL, _TRUSTED) else principal


def _is_below(subject: str, root: str) -> bool:
    return subject.startswith(f"{root}.") and _is_plain(subject)


def _is_plain(subject: str) -> bool:
    return subject.isprintable() and all(token not in ("", "*", ">") for token in subject.split("."))

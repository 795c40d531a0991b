"""Writes the reference page of the NATS subjects from the tables of commands and events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER

from scaivaultd.api.asyncapi import asyncapi
from scaivaultd.api.commands import COMMANDS
from scaivaultd.api.events import EVENTS
from scaivaultd.settings import NatsSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_IDENTITIES = (
    ("`auth_callout`", "`ROOT.as.TOKEN_ID.COMMAND`", "`_INBOX_TOKEN_ID.>`", "whoever logs in with an API token"),
    ("`subject_token`", "`ROOT.as.USER.COMMAND`", "`_INBOX_USER.>`", "the user whom the server lets publish there"),
    ("`account_import`", "`ROOT.COMMAND`", "made by the server", "users of accounts that import the service"),
    ("`trusted`", "`ROOT.COMMAND`", "any", "whoever reaches the root"),
    ("the login in `client.json`", "`ROOT.COMMAND`", "any", "who can read that file of our own server"),
)
_REQUEST_HEADERS = (
    ("`Idempotency-Key`", "the same request once more gets the first one's answer"),
    ("`traceparent`, `tracestate`", "the W3C trace that the request belongs to"),
    ("`Nats-Request-Info`", "for `account_import`: who asks; written by the server, whatever the sender wrote"),
)
_REPLY_HEADERS = (
    ("`X-Request-Id`", "the request's id, as in the logs and the audit log"),
    ("`Content-Type`", "`application/json`, or `application/problem+json` for an error"),
    ("`traceparent`", "the trace, when there is one"),
    (f"`{ERROR_HEADER}`, `{ERROR_CODE_HEADER}`", "only for an error: its title, and its code"),
)


def subjects_page() -> str:
    """The page, as Markdown."""
    usual = NatsSettings()
    channels = asyncapi(subject_root=usual.subject_root, events_root=usual.events_root)["channels"]
    lines = [
        "# NATS subjects",
        "",
        "Generated from the tables of commands and events. ROOT is a subject root: `subject_root` of `[nats]`, or one",
        f"of `[[nats.ingress]]`; `{usual.subject_root}` unless configured. Events are below `events_root`,",
        f"`{usual.events_root}` unless configured.",
        "[Know who asks over NATS](../how-to/nats-identity.md) has whole configurations of servers.",
        "",
        "## Who asks where",
        "",
        *_table(("identity of the root", "publish to", "replies below", "who"), _IDENTITIES),
        "A token may publish below its own subject and subscribe below its own inbox; one that may do `event.read` may",
        f"subscribe to `{usual.events_root}.>` too. Private keys in plain go to the sender's own inbox only, unless",
        '`key_replies = "any"`. `auth.whoami` tells subject and inbox.',
        "",
        "## Headers of requests",
        "",
        *_table(("header", "meaning"), _REQUEST_HEADERS),
        "## Headers of replies",
        "",
        *_table(("header", "meaning"), _REPLY_HEADERS),
        "## Commands",
        "",
        "Below ROOT, or below `ROOT.as.WHO`. `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS` of the service `scaivaultd`",
        "list them too (at our own server for the login in `client.json`).",
        "",
        *_table(
            ("subject", "permission", "what it does"),
            [(f"`{each.subject('ROOT')}`", f"`{each.permission}`", each.summary) for each in COMMANDS],
        ),
        "## Events",
        "",
        "Published by the daemon only, with the headers of [Events](events.md); kept in the stream `SCAIVAULT_EVENTS`.",
        "",
        *_table(
            ("subject", "what happened"),
            [(f"`{channels[each.type]['address']}`", each.summary) for each in EVENTS],
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "|---" * len(headings) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""

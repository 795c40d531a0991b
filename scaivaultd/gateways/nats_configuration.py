"""What the embedded nats-server is told: who may log in to it, and what they may do. Its language takes JSON as it is.

`local` and our own users are the server's to know. Whoever else knocks is asked about at us (`auth_callout.py`), over
a connection in the system account: there nobody but us hears the question, which holds the token, or can answer it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from scaivaultd.plugin import Secret

SYSTEM_ACCOUNT = "$SYS"


class Login(msgspec.Struct, frozen=True):
    """A user's name and password."""

    user: str
    password: Secret


class Callout(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens log in: `issuer` is the account key whose word counts, `root` where those asks who did."""

    issuer: str
    root: str


class Logins(msgspec.Struct, frozen=True, kw_only=True):
    """Who may log in by password: the daemon, whoever answers for tokens, and readers of `client.json`."""

    own: Login
    callout: Login
    local: Login


class _JetStream(msgspec.Struct, frozen=True):
    store_dir: str  # the server adds `/jetstream`
    max_memory_store: int = 64 << 20
    max_file_store: int = 4 << 30
    sync_interval: str = "always"  # the default, two minutes, loses acknowledged writes with the power


class Configuration(msgspec.Struct, frozen=True):
    """The server's configuration as a whole."""

    listen: str
    ports_file_dir: str
    authorization: dict[str, Any]
    accounts: dict[str, Any]
    jetstream: _JetStream
    feature_flags: dict[str, bool] | msgspec.UnsetType
    max_payload: int = 2 << 20
    max_connections: int = 4096
    max_subscriptions: int = 1024  # of a connection; the limits of a user that we let in are not looked at
    logtime: bool = False  # our log has its own


def configuration(
    *, listen: str, ports: str, store: str, logins: Logins, callout: Callout | None, flags: dict[str, bool] | None
) -> Configuration:
    """The configuration for one start."""
    authorization, accounts = _access(logins, callout)
    return Configuration(
        listen=listen,
        ports_file_dir=ports,
        authorization=authorization,
        accounts=accounts,
        jetstream=_JetStream(store_dir=store),
        feature_flags=msgspec.UNSET if flags is None else flags,
    )


def _access(logins: Logins, callout: Callout | None) -> tuple[dict[str, Any], dict[str, Any]]:
    local = msgspec.structs.asdict(logins.local)
    if callout is None:
        return {"users": [msgspec.structs.asdict(logins.own), local]}, {}
    # It may do everything, under its own name: requests of tokens are not its to send.
    local["permissions"] = {"publish": {"deny": [f"{callout.root}.as.>"]}}
    by_password = [each.user for each in (logins.own, logins.callout, logins.local)]
    authorization = {
        "users": [msgspec.structs.asdict(logins.own), local],
        "auth_callout": {"issuer": callout.issuer, "account": SYSTEM_ACCOUNT, "auth_users": by_password},
    }
    return authorization, {SYSTEM_ACCOUNT: {"users": [msgspec.structs.asdict(logins.callout)]}}

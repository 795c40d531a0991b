"""Makes the rooms of access for the roof: policies, tokens, who is asking, the gate and the audit log."""

from __future__ import annotations

import grp
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from publicsuffixlist import PublicSuffixList

from scaivaultd.api import access_messages as am
from scaivaultd.api import commands
from scaivaultd.gateways.nats_identity import Ingress
from scaivaultd.gateways.rest_sockets import UnixSocket
from scaivaultd.services.access_answers import AccessAnswers
from scaivaultd.services.auditing import Auditing
from scaivaultd.services.gatekeeping import Gatekeeper
from scaivaultd.services.identifying import Identifying
from scaivaultd.services.policies import Policies
from scaivaultd.services.tokens import Tokens
from scaivaultd.settings_policies import policies_in
from scaivaultd.store.audit_file import AuditFiles
from scaivaultd.systemd import address_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AsyncExitStack

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import Binding
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.services.ports import Store
    from scaivaultd.settings import NatsSettings, Settings

SOCKET_NAME = "api.sock"


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateways need to know who asks, and what everything behind them needs to be let do it."""

    policies: Policies
    tokens: Tokens
    identifying: Identifying
    auditing: Auditing
    gate: Gatekeeper
    answers: AccessAnswers

    @property
    def bindings(self) -> Sequence[Binding]:
        """The rows of the table that are answered here."""
        return [
            commands.CREATE_TOKEN.bind(self.tokens.create),
            commands.LIST_TOKENS.bind(self.tokens.list),
            commands.GET_TOKEN.bind(self.tokens.get),
            commands.ROTATE_TOKEN.bind(self.tokens.rotate),
            commands.REVOKE_TOKEN.bind(self.tokens.revoke),
            commands.PUT_POLICY.bind(self.policies.put),
            commands.LIST_POLICIES.bind(self.policies.list),
            commands.GET_POLICY.bind(self.policies.get),
            commands.DELETE_POLICY.bind(self.policies.delete),
            commands.CAN_I.bind(self.answers.can_i),
            commands.WHO_AM_I.bind(self.answers.who_am_i),
            commands.LIST_AUDIT.bind(self.auditing.list),
            commands.VERIFY_AUDIT.bind(self.auditing.verify),
        ]


async def open_access(
    settings: Settings,
    store: Store,
    stack: AsyncExitStack,
    *,
    clock: Clock,
    randomness: Randomness,
    log: FilteringBoundLogger,
) -> Access:
    """Open them, in an order in which each finds what it needs.

    Raises:
        StartupError: a policy file cannot be used, or the audit log has no place.
    """
    auditing = Auditing(
        file=AuditFiles(
            settings.state_dir / "audit", file_bytes=settings.audit.file_mib << 20, keep=settings.audit.keep_files
        ),
        store=store,
        clock=clock,
        log=log,
    )
    await auditing.resume()
    stack.push_async_callback(auditing.close)
    policies = Policies(
        store=store,
        from_file=policies_in(settings.access.policy_files),
        own_uid=os.geteuid(),
        suffixes=PublicSuffixList(accept_unknown=False),
        clock=clock,
        log=log,
    )
    await policies.resume()
    login = nats_login(ingress_of(settings.nats))
    tokens = Tokens(store=store, policies=policies, nats_login=login, clock=clock, randomness=randomness, log=log)
    await tokens.resume()
    return Access(
        policies=policies,
        tokens=tokens,
        identifying=Identifying(
            tokens=tokens,
            own_uid=os.geteuid(),
            admin_gid=_gid(settings.access.admin_group, log),
            clock=clock,
            log=log,
        ),
        auditing=auditing,
        gate=Gatekeeper(store=store, policies=policies, tokens=tokens, auditing=auditing, clock=clock, log=log),
        answers=AccessAnswers(store=store, policies=policies, tokens=tokens, nats_login=login),
    )


def ingress_of(nats: NatsSettings) -> Sequence[Ingress]:
    """Where requests are taken; without a word in the configuration, the safe way for that server."""
    is_own = not nats.servers
    configured = [
        Ingress(
            root=str(each.root),
            identity=each.identity,
            account=str(each.account or "$G"),
            keys_to_any=each.key_replies == "any",
        )
        for each in nats.ingress
    ]
    root = str(nats.subject_root)
    asking = configured or [Ingress(root=root, identity="auth_callout" if is_own else "subject_token")]
    if is_own and root not in {each.root for each in asking if each.identity in ("trusted", "account_import")}:
        asking.append(Ingress(root=root, identity="local"))
    return asking


def nats_login(ingress: Sequence[Ingress]) -> Callable[[str], am.NatsLogin | None]:
    """What tells the place on NATS of the token with an id: None where tokens do not log in there."""
    root = next((each.root for each in ingress if each.identity == "auth_callout"), None)

    def login(token_id: str) -> am.NatsLogin | None:
        if root is None:
            return None
        return am.NatsLogin(subject_root=f"{root}.as.{token_id}", inbox_prefix=f"_INBOX_{token_id}")

    return login


def unix_socket(settings: Settings, environment: Mapping[str, str], passed: socket.socket | None = None) -> UnixSocket:
    """Where the UNIX socket of REST is: the one that systemd has passed, whatever the settings say, else a path."""
    if passed is not None:
        return UnixSocket(path=Path(address_of(passed)), passed=passed)
    path = next((Path(each) for each in settings.rest.listen if each.is_path), None)
    runtime = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
    group = settings.access.admin_group
    return UnixSocket(
        path=path or (Path(runtime) if runtime else settings.state_dir) / SOCKET_NAME,
        group=str(group) if group is not None and _exists(str(group)) else None,
    )


def _gid(group: str | None, log: FilteringBoundLogger) -> int | None:
    if group is None:
        return None
    if not _exists(group):
        log.info("access.admin_group_missing", group=group, advice="create it, and put administrators into it")
        return None
    return grp.getgrnam(group).gr_gid


def _exists(group: str) -> bool:
    try:
        grp.getgrnam(group)
    except KeyError:
        return False
    return True

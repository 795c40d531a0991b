"""The policies there are: built in, from files, and written by request; all of them in memory, judged at once.

Names are unique. Those built in come before those of the administrator's files, and these before what was written by
request: whoever may write policies by request cannot take the place of another one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import access_messages as am
from scaivaultd.api.policies import KEY_READ, ROLES, Rules, applying, policy_from_request
from scaivaultd.model.access import ANY_TENANT, Policy, PolicyRule, StoredPolicy
from scaivaultd.model.errors import Conflict, NotFound, RevisionConflict, StartupError
from scaivaultd.model.storage import ABSENT, Delete
from scaivaultd.services.documents import PAGE_BYTES, POLICIES, Versioned
from scaivaultd.services.jobs import unbroken
from scaivaultd.services.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Literal

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.api.policies import PublicSuffixes
    from scaivaultd.model.access import AccessRequest, Decision, RoleName
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.principals import Principal
    from scaivaultd.services.ports import Store

TENANT = "default"
"""The only tenant there is."""
LOCAL_ADMINS = "local-admins"
"""The built-in policy of root, of the daemon's own user, and of members of the admin group, over the UNIX socket."""
EMBEDDED_OWNER = "embedded-owner"
"""The built-in policy of `LOCAL_NATS`, whose login only the daemon's own user can read."""
TRUSTED = "trusted-bus"
"""The built-in policy of `TRUSTED_BUS`."""
LOCAL_NATS = "nats:$G/local"
"""Whoever logs in to the embedded NATS server with `client.json`, for its own user and root."""
TRUSTED_BUS = "nats:$G/trusted"
"""Everybody on a bus that the administrator has called trusted."""

STORED_MAX = 5_000
KNOWN_MAX = 1_000
"""Principals whose policies are remembered."""

_WRITE_SECONDS = 5.0
_WAYS_IN = ("policy.", "token.")


def built_in_policies(own_uid: int) -> Sequence[Policy]:
    """The policies nobody has to write, and nobody can."""
    local = tuple(dict.fromkeys(("unix:0", f"unix:{own_uid}")))
    roles: Sequence[RoleName] = tuple(ROLES)
    return (
        *(_policy(role, (), role) for role in roles),
        _policy(LOCAL_ADMINS, local, "admin"),
        _policy(EMBEDDED_OWNER, (LOCAL_NATS,), "admin", KEY_READ),
        _policy(TRUSTED, (TRUSTED_BUS,), "admin"),
    )


def _policy(name: str, principals: tuple[str, ...], role: RoleName, *actions: str) -> Policy:
    rule = PolicyRule(roles=(role,), actions=actions, domains=("**",), wildcards=True, ips=("0.0.0.0/0", "::/0"))
    return Policy(name=name, principals=principals, tenant=ANY_TENANT, rules=(rule,))


class Policies:
    """Handlers of `policies.*`, and the judge of every request."""

    def __init__(
        self,
        *,
        store: Store,
        from_file: Sequence[Policy],
        own_uid: int,
        suffixes: PublicSuffixes,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        """`from_file` are those of the administrator, who alone changes them; raises StartupError as `reload`."""
        self._store = store
        self._suffixes = suffixes
        self._clock = clock
        self._log = log
        self._built_in: Mapping[str, Policy] = {each.name: each for each in built_in_policies(own_uid)}
        self._from_file: Mapping[str, Policy] = self._checked(from_file)
        self._stored: dict[str, Versioned[StoredPolicy]] = {}
        self._local = frozenset(self._built_in[LOCAL_ADMINS].principals)
        self._all: Mapping[str, Policy] = {}
        self._for: dict[Principal, Rules] = {}
        self._at_all: dict[tuple[Principal, str], Decision] = {}
        self._writing = asyncio.Lock()
        self.changed: Signal[None] = Signal()
        """What was judged before may be judged otherwise now."""
        self._gather()

    async def resume(self) -> None:
        """Read what was written before; to be done before anything is judged."""
        found = await POLICIES.all(self._store, self._log)
        self._stored = {each.value.policy.name: each for each in found}
        self._gather()

    def reload(self, from_file: Sequence[Policy]) -> None:
        """Take other policies of the administrator from now on.

        Raises:
            StartupError: one of them has the name of one that is built in; all stay as they were.
        """
        self.prepared(from_file)()

    def prepared(self, from_file: Sequence[Policy]) -> Callable[[], None]:
        """Judge them like `reload`; what this returns takes them, and does not fail."""
        checked = self._checked(from_file)

        def take() -> None:
            self._from_file = checked
            self._gather()
            self._log.info("policies.loaded", from_file=len(self._from_file), stored=len(self._stored))
            self.changed.tell(None)

        return take

    def _checked(self, from_file: Sequence[Policy]) -> Mapping[str, Policy]:
        for each in from_file:
            if each.name in self._built_in:
                raise StartupError(f"access.policy_files: the policy {each.name!r} is built in; choose another name")
            if each.tenant not in (ANY_TENANT, TENANT):
                self._log.warning("policy.of_no_tenant", policy=each.name, tenant=each.tenant, there_is=TENANT)
        return {each.name: each for each in from_file}

    def _gather(self) -> None:
        stored = {name: each.value.policy for name, each in self._stored.items()}
        for name in stored.keys() & (self._from_file.keys() | self._built_in.keys()):
            self._log.warning("policy.hidden", policy=name, reason="one of that name is configured or built in")
        self._all = {**stored, **self._from_file, **self._built_in}
        self._for.clear()
        self._at_all.clear()

    def decide(self, request: AccessRequest) -> Decision:
        """Judge a request by all policies there are now."""
        return self._judging(request).decide(request, self._suffixes)

    def allow(self, request: AccessRequest) -> bool:
        """The same without words: lists are judged item by item."""
        return self._judging(request).allow(request, self._suffixes)

    def decide_action(self, request: AccessRequest) -> Decision:
        """Judge whether its principal may do such a thing at all, to whatever."""
        asked = (request.principal, request.action)
        if (known := self._at_all.get(asked)) is not None:
            return known
        if len(self._at_all) >= KNOWN_MAX:
            self._at_all.clear()
        found = self._at_all[asked] = self._judging(request).decide_action(request)
        return found

    def _judging(self, request: AccessRequest) -> Rules:
        if request.action.startswith(_WAYS_IN) and str(request.principal) in self._local:
            # Root and the daemon's own user can read and write the store anyway; that they can always undo a denial
            # over the UNIX socket means that nobody locks everybody out for good.
            return Rules([self._built_in[LOCAL_ADMINS]])
        return self._applying(request.principal)

    def _applying(self, principal: Principal) -> Rules:
        if (known := self._for.get(principal)) is not None:
            return known
        if len(self._for) >= KNOWN_MAX:
            self._for.clear()
        found = self._for[principal] = Rules(applying(self._all.values(), principal, TENANT))
        return found

    def applying(self, principal: Principal) -> Sequence[str]:
        """The names of the policies that are for a principal."""
        return sorted(each.name for each in self._applying(principal).policies)

    def exists(self, name: str) -> bool:
        """Whether there is a policy of that name."""
        return name in self._all

    async def put(self, request: am.PutPolicy, context: RequestContext) -> am.PolicyReply:
        """Handle `policies.put`."""
        self._require_free(request.name)
        policy = policy_from_request(request.name, request.principals, request.rules, self._suffixes)
        # A caller that goes away must not leave behind a policy that is in the store and judges nothing.
        written = await unbroken(self._put(policy), _WRITE_SECONDS)
        self._log.info(
            "policy.written", policy=policy.name, principal=str(context.principal), request_id=context.request_id
        )
        return self._reply(policy, written)

    async def _put(self, policy: Policy) -> StoredPolicy:
        async with self._writing:
            now = self._clock.now()
            held = self._stored.get(policy.name)
            if held is None and len(self._stored) >= STORED_MAX:
                raise Conflict(f"there are {len(self._stored)} policies already; delete those that nobody needs")
            stored = StoredPolicy(
                policy=policy, created_at=now if held is None else held.value.created_at, updated_at=now
            )
            put = POLICIES.put(stored, ABSENT if held is None else held.revision)
            try:
                revisions = await self._store.commit([put])
            except RevisionConflict:
                raise await self._changed_elsewhere(policy.name) from None
            self._stored[policy.name] = Versioned(stored, revisions[put.key])
            self._gather()
        self.changed.tell(None)
        return stored

    async def list(self, request: am.ListPolicies, context: RequestContext) -> am.PolicyList:
        """Handle `policies.list`."""
        names = sorted(name for name in self._all if name > (request.cursor or ""))
        items: list[am.PolicyReply] = []
        size = 0
        for name in names[: request.limit]:
            reply = self._shown(name)
            size += len(msgspec.json.encode(reply))
            if items and size > PAGE_BYTES:
                break
            items.append(reply)
        return am.PolicyList(items=items, next_cursor=items[-1].name if len(items) < len(names) else None)

    async def get(self, request: am.PolicyByName, context: RequestContext) -> am.PolicyReply:
        """Handle `policies.get`."""
        return self._shown(request.name)

    async def delete(self, request: am.PolicyByName, context: RequestContext) -> am.PolicyDeleted:
        """Handle `policies.delete`."""
        self._require_free(request.name)
        await unbroken(self._delete(request.name), _WRITE_SECONDS)
        self._log.info(
            "policy.deleted", policy=request.name, principal=str(context.principal), request_id=context.request_id
        )
        return am.PolicyDeleted(name=request.name)

    async def _delete(self, name: str) -> None:
        async with self._writing:
            held = self._stored.get(name)
            if held is None:
                raise _unknown(name)
            try:
                await self._store.commit([Delete(key=POLICIES.key(name), expect_revision=held.revision)])
            except RevisionConflict:
                raise await self._changed_elsewhere(name) from None
            del self._stored[name]
            self._gather()
        self.changed.tell(None)

    async def _changed_elsewhere(self, name: str) -> Conflict:
        """Take what is in the store, which somebody else has written."""
        held = await POLICIES.get(self._store, name)
        if held is None:
            self._stored.pop(name, None)
        else:
            self._stored[name] = held
        self._gather()
        self.changed.tell(None)
        return Conflict(f"policy {name} was changed by another request; look at it again")

    def _require_free(self, name: str) -> None:
        if name in self._built_in:
            raise Conflict(f"the policy {name!r} is built in and cannot be changed; write one of another name")
        if name in self._from_file:
            raise Conflict(f"the policy {name!r} stands in the daemon's configuration; change it there")

    def _shown(self, name: str) -> am.PolicyReply:
        policy = self._all.get(name)
        if policy is None:
            raise _unknown(name)
        stored = self._stored.get(name)
        is_hidden = name in self._from_file or name in self._built_in
        return self._reply(policy, None if stored is None or is_hidden else stored.value)

    def _reply(self, policy: Policy, stored: StoredPolicy | None) -> am.PolicyReply:
        origin: Literal["api", "file", "built_in"] = "file" if stored is None else "api"
        return am.PolicyReply(
            name=policy.name,
            origin="built_in" if policy.name in self._built_in else origin,
            principals=list(policy.principals),
            rules=list(policy.rules),
            created_at=None if stored is None else stored.created_at,
            updated_at=None if stored is None else stored.updated_at,
        )


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no policy {name!r}")
